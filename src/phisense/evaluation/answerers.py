"""Who answers: the model folder in batches, in torch; or any engine that can be talked to, one question after the other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..chat.engine import Engine, Sampling
from ..chat.remote_engine import RemoteEngine
from ..conversations import IMAGE, Message
from ..errors import DataError
from ..model import Phi3WithProjector
from ..model.asking import Asked, ask
from ..vision.pictures import open_picture

_MOST_SEEN = 1e9  # bytes of projected pictures kept for the next batches and conditions
_ENCODED = 16  # pictures at once


@dataclass(frozen=True, slots=True)
class Put:
    """A question as it is put, with the picture that is shown, and a right answer."""

    id: str
    text: str
    shown: Path | None
    right: str

    @property
    def message(self) -> Message:
        return Message("user", self.text if self.shown is None else f"{IMAGE}\n{self.text}")


@dataclass(frozen=True, slots=True)
class Said:
    """An answer; where the answerer tells it, the loss of the right one, summed over so many tokens."""

    text: str
    loss: float | None = None
    tokens: int | None = None


class Answerer(Protocol):
    @property
    def batch(self) -> int:
        """How many questions it is given at once."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """What the record says of it: engine, device, dtype."""
        ...

    @property
    def whom(self) -> dict[str, Any]:
        """What tells it from another, beyond the record, and belongs in no report: a server's address."""
        ...

    def expect(self, pictures: Sequence[Path]) -> None:
        """Called first, with every picture that will be shown, in the order in which they will."""
        ...

    def answer(self, put: Sequence[Put], max_new_tokens: int, *, losses: bool) -> list[Said]:
        """Greedy answers. Raises DataError for a question that does not fit into the window."""
        ...


class InBatches:
    """Rows of a batch are padded on the left and their positions counted without the padding, so that an answer does not depend on its
    neighbours; each picture is read once for all its questions of a batch. Pictures are always encoded in the same company, whatever was
    asked before, so that an evaluation that goes on computes to the last bit what it would have.
    """

    def __init__(self, built: Phi3WithProjector, batch: int) -> None:
        self.built, self.batch = built, batch
        self._groups: dict[Path, tuple[Path, ...]] = {}
        self._seen: OrderedDict[tuple[Path, ...], dict[Path, torch.Tensor]] = OrderedDict()

    @property
    def whom(self) -> dict[str, Any]:
        return {}

    def expect(self, pictures: Sequence[Path]) -> None:
        for start in range(0, len(pictures), _ENCODED):
            group = tuple(pictures[start : start + _ENCODED])
            self._groups.update(dict.fromkeys(group, group))

    @property
    def about(self) -> dict[str, Any]:
        dtype = str(self.built.model.lm_head.weight.dtype).removeprefix("torch.")
        held = "NF4, computing in " if getattr(self.built.model, "is_loaded_in_4bit", False) else ""
        return {"engine": "torch", "device": self.built.device.type, "dtype": held + dtype, "picture_tokens": self.built.slots}

    @torch.inference_mode()
    def answer(self, put: Sequence[Put], max_new_tokens: int, *, losses: bool) -> list[Said]:
        slots = {one.shown: self._look(one.shown) for one in put if one.shown is not None}
        asked = [Asked((one.message,), Message("assistant", one.right), () if one.shown is None else (slots[one.shown],)) for one in put]
        for one, this in zip(put, asked, strict=True):
            _check_window(one, len(self.built.prompt.ask(this.messages, [len(s) for s in this.slots])), max_new_tokens, self.built.window)
        answered = ask(self.built, asked, max_new_tokens=max_new_tokens, losses=losses)
        return [Said(one.text, one.loss, one.tokens) if losses else Said(one.text) for one in answered]

    def _look(self, path: Path) -> torch.Tensor:
        """The slots `(P', H)` of a picture, kept or encoded now with its group."""
        group = self._groups[path]
        if group not in self._seen:
            slots = self.built.project([open_picture(one, name=one.name) for one in group])
            self._seen[group] = dict(zip(group, slots, strict=True))
            if sum(one.nbytes for seen in self._seen.values() for one in seen.values()) > _MOST_SEEN:
                self._seen.popitem(last=False)
        return self._seen[group][path]


class ByEngine:
    """Questions about one picture follow each other, so an engine that keeps what it read reads the picture once."""

    batch = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._last: tuple[Path, Any] | None = None

    @property
    def about(self) -> dict[str, Any]:
        named = type(self.engine).__name__.removesuffix("Engine").lower()
        return {"engine": named, "served": self.engine.name, "picture_tokens": self.engine.picture_tokens}

    @property
    def whom(self) -> dict[str, Any]:
        return {"whom": self.engine.whom} if isinstance(self.engine, RemoteEngine) else {}

    def expect(self, pictures: Sequence[Path]) -> None:
        """Pictures are seen one by one."""

    def answer(self, put: Sequence[Put], max_new_tokens: int, *, losses: bool) -> list[Said]:
        return [Said(self._ask(one, max_new_tokens)) for one in put]

    def _ask(self, put: Put, max_new_tokens: int) -> str:
        messages = (Message("user", f"{IMAGE}\n" * (put.shown is not None) + self.engine.defuse(put.text)),)
        seen = [] if put.shown is None else [self._see(put.shown)]
        _check_window(put, self.engine.count(messages, seen), max_new_tokens, self.engine.window)
        pieces = self.engine.stream(messages, seen, Sampling(max_new_tokens=max_new_tokens), threading.Event(), self)
        return "".join(pieces).strip()

    def _see(self, path: Path) -> Any:
        if self._last is None or self._last[0] != path:
            self._last = path, self.engine.see(open_picture(path, name=path.name))
        return self._last[1]


def _check_window(put: Put, tokens: int, max_new_tokens: int, window: int) -> None:
    if tokens + max_new_tokens > window:
        raise DataError(
            f"question {put.id} does not fit into the window",
            got=f"{tokens} tokens and {max_new_tokens} for the answer",
            wanted=f"at most {window} together",
            do="Leave it out, or ask for shorter answers with --max-new-tokens",
        )
