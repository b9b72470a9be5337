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
    """`images` are names relative to the picture folders, in the order of their markers."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a row names. `data` are its bytes where it came inside the file (a data URL, a Parquet struct)."""

    name: str
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """For evaluation: any of `answers` is right; `kind` groups questions in the report.

    `choices` are what a multiple-choice question offers, in order. Questions of one `group` are judged together (MMBench's rotations, MME's
    pairs); a question without one stands for itself.
    """

    id: str
    image: str | None
    text: str
    answers: tuple[str, ...]
    kind: str
    choices: tuple[str, ...] = ()
    group: str = ""
