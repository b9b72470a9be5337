"""An engine on a GPU that is lent for one answer at a time, as ZeroGPU Spaces do: in another process, to which everything is pickled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL.Image import Image

from ..conversations import Message
from .engine import Engine, Sampling


class OnLoan:
    """`lend` decorates the one function that computes: `spaces.GPU`.

    A picture is kept as it is and encoded with every answer, because what a GPU made is gone with it; nothing is kept between turns.
    """

    def __init__(self, engine: Engine, lend: Callable[[Callable[..., Iterator[str]]], Callable[..., Iterator[str]]]) -> None:
        self.engine = engine
        self.name, self.window, self.picture_tokens = engine.name, engine.window, engine.picture_tokens

        def answer(messages: Sequence[Message], pictures: Sequence[Image], sampling: Sampling) -> Iterator[str]:
            seen = [engine.see(picture) for picture in pictures]
            yield from engine.stream(messages, seen, sampling, threading.Event(), _Nobody())

        self._answer = lend(answer)

    def see(self, picture: Image) -> Image:
        return picture

    def count(self, messages: Sequence[Message], seen: Sequence[Image]) -> int:
        slots: list[Any] = [range(self.picture_tokens)] * len(seen)  # as long as what the engine would see
        return self.engine.count(messages, slots)

    def defuse(self, text: str) -> str:
        return self.engine.defuse(text)

    def stream(
        self, messages: Sequence[Message], seen: Sequence[Image], sampling: Sampling, stop: threading.Event, owner: object
    ) -> Iterator[str]:
        """An event cannot be pickled, so stopping closes the iterator, and the lender ends the work."""
        pieces = self._answer(list(messages), list(seen), sampling)
        try:
            for piece in pieces:
                yield piece
                if stop.is_set():
                    return
        finally:
            getattr(pieces, "close", lambda: None)()


class _Nobody:
    """Who owns what is computed for one answer only."""
