"""One checked conversation, whatever format it came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IMAGE = "<image>"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """`text` may hold `<image>` markers, one for each picture shown there."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """`images` are paths relative to the images folder, in the order of their markers."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """For evaluation: any of `answers` is right; `kind` groups questions in the report."""

    id: str
    image: str | None
    text: str
    answers: tuple[str, ...]
    kind: str
