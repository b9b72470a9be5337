"""Engine for ZeroGPU Spaces: a GPU is attached per answer, in another process, to which all
arguments are pickled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL.Image import Image

from ..conversations import Message
from .engine import Engine, Sampling


class ZeroGPUEngine:
    """Wraps an engine; `gpu_decorator` is applied to the one function that computes: `spaces.GPU`.

    Images stay unencoded and are encoded again for each answer, since GPU state is lost with the
    GPU. No KV state is cached between turns.
    """

    kind = "zerogpu"
    attention_map = None
    places = 1

    def __init__(
        self,
        engine: Engine,
        gpu_decorator: Callable[[Callable[..., Iterator[str]]], Callable[..., Iterator[str]]],
    ) -> None:
        self.engine = engine
        self.name = engine.name
        self.where = engine.where
        self.endpoint = engine.endpoint
        self.window = engine.window
        self.picture_tokens = engine.picture_tokens

        def answer(
            messages: Sequence[Message], pictures: Sequence[Image], sampling: Sampling
        ) -> Iterator[str]:
            seen = [engine.encode_image(picture) for picture in pictures]
            yield from engine.stream(messages, seen, sampling, threading.Event(), _NoOwner())

        self._answer = gpu_decorator(answer)

    def encode_image(self, picture: Image) -> Image:
        """Return the image unchanged: it is encoded when a GPU is attached."""
        return picture

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[Image]) -> int:
        """Number of prompt tokens, image tokens included."""
        # placeholders with the length of the encoded images
        slots: list[Any] = [range(self.picture_tokens)] * len(seen)
        return self.engine.count_tokens(messages, slots)

    def escape_special_tokens(self, text: str) -> str:
        """Escape special tokens in a user's text, so that they are tokenized as plain text."""
        return self.engine.escape_special_tokens(text)

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[Image],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the answer. An event cannot be pickled, so `stop` closes the iterator, and `spaces`
        then ends the GPU call.
        """
        pieces = self._answer(list(messages), list(seen), sampling)
        try:
            for piece in pieces:
                yield piece
                if stop.is_set():
                    return
        finally:
            getattr(pieces, "close", lambda: None)()


class _NoOwner:
    """Cache owner of a single answer."""
