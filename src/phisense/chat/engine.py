"""The interface between a chat session and an inference engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from ..conversations import Message

EncodedImage = Any
"""A picture as an engine keeps it: encoded once, used in every turn."""

AttentionMap = Callable[[Sequence[Message], Sequence[EncodedImage]], Sequence[Any]]
"""Attention over each image while the last of the messages was generated, `(rows, columns)`; of all
images together with the sum 1."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Temperature 0 is greedy decoding, hence deterministic."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 0.95


class Engine(Protocol):
    """Inference engine, shared by many sessions.

    State cached for a session between turns is used for its `owner` only, and can always be
    recomputed.
    """

    @property
    def kind(self) -> str:
        """What kind of engine it is, as reports name it."""
        ...

    @property
    def name(self) -> str:
        """Name of the model, as the page and the API show it."""
        ...

    @property
    def where(self) -> str:
        """What computes the answers, for the log."""
        ...

    @property
    def endpoint(self) -> str | None:
        """Server and model, without secrets, if answers come from a server."""
        ...

    @property
    def attention_map(self) -> AttentionMap | None:
        """The function that computes attention maps; None if the engine has none."""
        ...

    @property
    def window(self) -> int:
        """Context length in tokens: prompt and answer together."""
        ...

    @property
    def picture_tokens(self) -> int:
        """Image tokens per image."""
        ...

    @property
    def places(self) -> int:
        """Answers that are generated at once; more wait, first come first served."""
        ...

    def encode_image(self, picture: Image) -> EncodedImage:
        """Encode an image once, for all turns that use it."""

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[EncodedImage]) -> int:
        """Number of prompt tokens for the next answer, image tokens included."""
        ...

    def escape_special_tokens(self, text: str) -> str:
        """Escape special tokens and image markers in `text`, so that they are tokenized as plain
        text.
        """
        ...

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[EncodedImage],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        """Yield the next answer in chunks, until it ends or `stop` is set. Closing the iterator
        also ends generation.

        `owner`, normally the session, is the key under which this turn's state is cached.
        """
        ...
