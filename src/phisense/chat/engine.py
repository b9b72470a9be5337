"""What a session needs of whatever produces the words."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from ..conversations import Message

Seen = Any
"""A picture as an engine keeps it: encoded once, used in every turn."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 is greedy: the same question gets the same answer."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 0.95


class Engine(Protocol):
    """One engine serves many sessions. What it keeps of one between turns, it keeps for that `owner` alone, and can do without."""

    @property
    def name(self) -> str: ...

    @property
    def window(self) -> int:
        """Tokens that a conversation and its next answer may have together."""
        ...

    @property
    def picture_tokens(self) -> int:
        """Positions that one picture takes."""
        ...

    def see(self, picture: Image) -> Seen: ...

    def count(self, messages: Sequence[Message], seen: Sequence[Seen]) -> int:
        """Tokens of the prompt for the next answer."""
        ...

    def defuse(self, text: str) -> str:
        """`text` with control tokens and picture markers broken, so that they stay text."""
        ...

    def stream(
        self, messages: Sequence[Message], seen: Sequence[Seen], sampling: Sampling, stop: threading.Event, owner: object
    ) -> Iterator[str]:
        """The next answer piece by piece, until it ends or `stop` is set. Closing the iterator also ends the generation.

        `owner`, in practice the session, is who may find again what was computed in this turn.
        """
        ...
