"""The engine for machines without a GPU: words by llama.cpp, pictures by the tower in torch.

What a sequence of the cache holds is told by keys, one for each position: a token's id, or for a picture's positions a number below
zero that no other picture has. A turn computes what lies behind the longest beginning that its prompt shares with them.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from .. import artefact
from ..conversations import Message
from ..errors import ArtefactError
from ..prompt import Prompt
from .choose import GGUF
from .engine import Sampling
from .kept import Shelf, shared
from .llama_context import LlamaContext, Logits, Stopped, Vectors
from .llama_probe import require_llama_cpp
from .machine import cores, free_memory
from .turns import Turns
from .words import Words

KIND = GGUF
MOST_KEPT = 16  # conversations whose cells are kept, if there is memory for so many
PICTURE_PART = "vision"  # inside the folder: a native model whose language part has no layers


@dataclass(eq=False, slots=True)
class Seen:
    """A picture's vectors `(P', H)`, as they enter the language part. `key` is its name in the cache."""

    vectors: Vectors
    key: int

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(eq=False)
class _State:
    """What a conversation's sequence holds, position by position."""

    sequence: int = -1
    keys: list[int] = field(default_factory=list)
    free: Callable[[], object] = lambda: None  # gives the sequence back, once


class LlamaEngine:
    """One generation at a time, in the order of asking. A conversation keeps its cells until others that spoke later need them."""

    def __init__(self, folder: Path, *, picture_tokens: int | None = None, threads: int | None = None, kept: int | None = None) -> None:
        """Raises ArtefactError for a folder that `phisense export` did not write or finish, PartError without llama.cpp."""
        about = artefact.read_manifest(folder, kind=KIND, verify=False)
        require_llama_cpp()
        from transformers import AutoConfig, AutoTokenizer

        from ..model.folder import window
        from ..model.projectors import nested_pool, picture_slots

        self.name = f"{about['name']} {about['quant']}"
        self._part = folder / PICTURE_PART
        config = AutoConfig.from_pretrained(self._part, trust_remote_code=False)
        self._asked_tokens = picture_tokens
        self.picture_tokens = picture_slots(config, nested_pool(config, picture_tokens))
        self.window = window(config)
        self.prompt = Prompt(AutoTokenizer.from_pretrained(self._part, trust_remote_code=False))
        file = folder / about["file"]
        if not file.is_file():
            raise ArtefactError(f"{folder} lacks its model", got=f"no {about['file']}", do="Run phisense export again")
        kept = kept or _affordable(file, about["bytes_per_position"] * self.window)
        self.context = LlamaContext(file, window=self.window, sequences=kept, threads=threads or cores())
        self._shelf: Shelf[_State] = Shelf(kept)
        self._free = deque(range(kept))
        self._turns = Turns()
        self._pictures = itertools.count(1)
        self._eyes: Any = None
        self._random = np.random.default_rng()

    @classmethod
    def open(cls, folder: Path, picture_tokens: int | None = None, threads: int | None = None) -> LlamaEngine:
        return cls(folder, picture_tokens=picture_tokens, threads=threads)

    def see(self, picture: Image) -> Seen:
        """Encodes and projects the picture, once. The tower is loaded when the first one comes."""
        import torch

        with self._turns.next():
            if self._eyes is None:
                from ..model import load_model

                self._eyes = load_model(self._part, "cpu", picture_tokens=self._asked_tokens)
            with torch.inference_mode():
                vectors = self._eyes.project([picture])[0].float().numpy()
        return Seen(vectors, -next(self._pictures))

    def count(self, messages: Sequence[Message], seen: Sequence[Seen]) -> int:
        return len(self.prompt.ask(messages, [len(one) for one in seen]))

    def defuse(self, text: str) -> str:
        return self.prompt.defuse(text)

    def stream(
        self, messages: Sequence[Message], seen: Sequence[Seen], sampling: Sampling, stop: threading.Event, owner: object
    ) -> Iterator[str]:
        ids = self.prompt.ask(messages, [len(one) for one in seen])
        with self._turns.next(stop) as mine:
            if not mine:
                return
            state = self._take(owner)
            try:
                logits = self._read(state, ids, seen, stop)
                yield from self._say(state, logits, sampling, stop)
            except Stopped:
                return
            except GeneratorExit:
                raise
            except BaseException:  # whatever it was, what the cells hold is no longer known
                state.keys.clear()
                raise
            finally:
                self._shelf.put(owner, state)

    def _say(self, state: _State, logits: Logits, sampling: Sampling, stop: threading.Event) -> Iterator[str]:
        ends = set(self.prompt.stop_ids)
        words = Words(self.prompt.tokenizer)
        for number in range(sampling.max_new_tokens):
            token = self._choose(logits, sampling)
            if token in ends or stop.is_set():
                break
            piece = words.push(token)
            if piece:
                yield piece
            if number + 1 == sampling.max_new_tokens or stop.is_set():
                break
            logits = self.context.decode(state.sequence, len(state.keys), [token])
            state.keys.append(token)
        rest = words.rest()
        if rest:
            yield rest

    def _read(self, state: _State, ids: Sequence[int], seen: Sequence[Seen], stop: threading.Event) -> Logits:
        """Computes what of the prompt the sequence does not hold; returns the logits `(V,)` after it."""
        keys, vectors = self._keys(ids, seen)
        held = min(shared(state.keys, keys), len(keys) - 1)  # the last one is computed again for its logits
        self.context.forget(state.sequence, held)
        del state.keys[held:]
        logits: Logits | None = None
        for begin, end in _runs(keys, held):
            new = vectors[keys[begin]][begin - keys.index(keys[begin]) :][: end - begin] if keys[begin] < 0 else ids[begin:end]
            logits = self.context.decode(state.sequence, begin, new, stop=stop)
            state.keys += keys[begin:end]
        assert logits is not None
        return logits

    def _keys(self, ids: Sequence[int], seen: Sequence[Seen]) -> tuple[list[int], dict[int, Vectors]]:
        """`ids` with each picture's positions named by the picture, and the vectors of each."""
        keys = list(ids)
        places = iter([i for i, token in enumerate(ids) if token == self.prompt.image_id])
        for one in seen:
            for place in itertools.islice(places, len(one)):
                keys[place] = one.key
        return keys, {one.key: one.vectors for one in seen}

    def _choose(self, logits: Logits, sampling: Sampling) -> int:
        if sampling.temperature <= 0:
            return int(logits.argmax())
        scaled = np.exp((logits - logits.max()) / sampling.temperature, dtype=np.float64)
        order = np.argsort(-scaled)
        sums = np.cumsum(scaled[order] / scaled.sum())
        nucleus = order[: int(np.searchsorted(sums, min(sampling.top_p, 1 - 1e-9))) + 1]
        return int(self._random.choice(nucleus, p=scaled[nucleus] / scaled[nucleus].sum()))

    def _take(self, owner: object) -> _State:
        """The owner's state, or a new one in a sequence that is free, or that of the conversation that has been silent longest."""
        state = self._shelf.take(owner)
        if state is None:
            for gone in self._shelf.put(owner, _State()):  # whoever has to leave for it has left
                gone.free()
            state = self._shelf.take(owner)
            assert state is not None
            state.sequence = self._free.popleft()
            # However it goes, with its owner or pushed from the shelf, its cells are free then.
            state.free = weakref.finalize(state, self._free.append, state.sequence)
            state.free.atexit = False
            self.context.forget(state.sequence)
        return state


def _affordable(file: Path, bytes_each: int) -> int:
    """How many conversations' cells fit into half of the memory that is left when the model is in it."""
    free = free_memory()
    return 1 if free is None else int(min(MOST_KEPT, max(1, (free - file.stat().st_size) // 2 // bytes_each)))


def _runs(keys: Sequence[int], begin: int) -> Iterator[tuple[int, int]]:
    """The stretches from `begin` on that are computed alike: text, or one picture."""
    for _, run in itertools.groupby(range(begin, len(keys)), key=lambda i: min(keys[i], 0)):
        places = list(run)
        yield places[0], places[-1] + 1
