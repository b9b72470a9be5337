"""The engine that runs the model folder here, in torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..conversations import Message
from ..model import Phi3WithProjector, load_model
from ..model.decoding import Decoding
from ..model.gaze import gaze_at
from .engine import Sampling
from .kept import Shelf, shared
from .turns import Turns
from .words import Words

AT_ONCE = {"cpu": 64, "cuda": 1024}  # tokens of a prompt between two looks at whether to stop
MOST_KEPT = 4e9  # bytes of keys and values of conversations that wait for their next turn


@dataclass(frozen=True, slots=True)
class _Kept:
    """A conversation so far: what was read, the pictures in it, and its keys and values."""

    ids: tuple[int, ...]
    seen: tuple[torch.Tensor, ...]
    keys_and_values: torch.Tensor


class TorchEngine:
    """One generation at a time; others wait, in the order they came. A picture is encoded and projected once, by `see`; of a conversation
    that goes on, only what is new is computed. Keys and values of those that spoke last are kept, the more the shorter the window.
    """

    def __init__(self, built: Phi3WithProjector, name: str) -> None:
        self.built = built
        self.name = name
        self._decoding = Decoding(built)
        self._kept: Shelf[_Kept] = Shelf(max(2, min(256, int(MOST_KEPT // self._decoding.nbytes))))
        self._turns = Turns()

    @classmethod
    def open(cls, folder: Path, device: str = "auto", picture_tokens: int | None = None, *, quantise: bool = False) -> TorchEngine:
        return cls(load_model(folder, device, picture_tokens=picture_tokens, quantise=quantise, step="chat"), folder.name)

    @property
    def window(self) -> int:
        return self.built.window

    @property
    def picture_tokens(self) -> int:
        return self.built.slots

    @torch.inference_mode()
    def see(self, picture: Image) -> torch.Tensor:
        """`(P', H)`."""
        with self._turns.next():
            return self.built.project([picture])[0]

    def count(self, messages: Sequence[Message], seen: Sequence[torch.Tensor]) -> int:
        return len(self.built.prompt.ask(messages, [len(slots) for slots in seen]))

    def defuse(self, text: str) -> str:
        return self.built.prompt.defuse(text)

    def stream(
        self, messages: Sequence[Message], seen: Sequence[torch.Tensor], sampling: Sampling, stop: threading.Event, owner: object
    ) -> Iterator[str]:
        ids = self.built.prompt.ask(messages, [len(slots) for slots in seen])
        with self._turns.next(stop) as mine:
            if not mine:
                return
            logits = self._read(ids, seen, stop, owner)
            words = Words(self.built.prompt.tokenizer)
            try:
                if logits is not None:
                    yield from self._say(logits, words, sampling, stop)
            finally:
                read = (*ids, *words.ids)[: self._decoding.length]
                self._kept.put(owner, _Kept(read, tuple(seen), self._decoding.save()))

    def gaze(self, messages: Sequence[Message], seen: Sequence[torch.Tensor]) -> Any:
        """Where on the picture the model looked while it said the last of `messages`, a grid `(rows, columns)`: see model/gaze.py."""
        prompt, slots = self.built.prompt, [len(one) for one in seen]
        asked, answer = messages[:-1], messages[-1]
        before = prompt.ask(asked, slots)
        whole = prompt.render(messages, slots).ids[:-1]  # without the end of the text
        assert answer.role == "assistant"
        with self._turns.next():
            return gaze_at(self.built, whole, seen[0], len(whole) - len(before))

    def _read(self, ids: list[int], seen: Sequence[torch.Tensor], stop: threading.Event, owner: object) -> torch.Tensor | None:
        """Reads what the conversation has more than at its last turn; the next token's logits, or None if stopped before they came."""
        decoding = self._decoding
        kept = self._kept.take(owner)
        same = 0 if kept is None else _same(kept, ids, seen, self.built.prompt.image_id)
        decoding.length = 0
        if kept is not None and same:
            decoding.load(kept.keys_and_values, same)
        logits = None
        for part in decoding.embed(ids, list(seen))[:, same:].split(AT_ONCE.get(self.built.device.type, 512), 1):
            if stop.is_set():
                return None
            logits = decoding.read(part)
        return logits

    def _say(self, logits: torch.Tensor, words: Words, sampling: Sampling, stop: threading.Event) -> Iterator[str]:
        stops = set(self.built.prompt.stop_ids)
        for left in reversed(range(sampling.max_new_tokens)):
            token = choose(logits, sampling)
            if token in stops:
                break
            if piece := words.push(token):
                yield piece
            if stop.is_set() or not left:
                break
            logits = self._decoding.step(token)
        if rest := words.rest():
            yield rest


def _same(kept: _Kept, ids: Sequence[int], seen: Sequence[torch.Tensor], image: int) -> int:
    """How many of `ids` the kept ones begin with; at least the last is read again, for its logits."""
    same = shared(kept.ids, ids[:-1])
    if len(kept.seen) != len(seen) or any(a is not b for a, b in zip(kept.seen, seen, strict=True)):
        return next((i for i in range(same) if ids[i] == image), same)
    return same


@torch.inference_mode()
def choose(logits: torch.Tensor, sampling: Sampling) -> int:
    """The next token of logits `(V,)`: the likeliest, or with a temperature one of the likeliest that make up `top_p` together."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    chances, order = (logits / sampling.temperature).softmax(0).sort(descending=True)
    chances[chances.cumsum(0) - chances >= sampling.top_p] = 0
    return int(order[torch.multinomial(chances, 1)])
