"""One validated conversation, independent of its source format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IMAGE = "<image>"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """`text` may contain `<image>` markers, one for each image at that position.

    An answer that is not `supervised` is context only and has no loss.
    """

    role: Role
    text: str
    supervised: bool = True

    def __repr__(self) -> str:
        """Digests of the training data use this: a supervised message is written as before
        `supervised` existed.
        """
        return (
            f"Message(role={self.role!r},"
            f" text={self.text!r}{'' if self.supervised else ', supervised=False'})"
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """`images` are names relative to the image folders, in the order of their markers."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageReference:
    r"""An image that a row names. `data` has its bytes if it is embedded (a data URL, a Parquet
    struct); `elsewhere`: its name was a path of another machine (`C:\x\a.jpg`, `/mnt/a.jpg`,
    `../a.jpg`), and `name` is the part below a folder.
    """

    name: str
    data: bytes | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """For evaluation: any of `answers` is correct; `kind` groups questions in the report.

    `choices` are the options of a multiple-choice question, in order. Questions of one `group` are
    scored together (MMBench's rotations, MME's pairs); a question without a group is scored alone.
    """

    id: str
    image: str | None
    text: str
    answers: tuple[str, ...]
    kind: str
    choices: tuple[str, ...] = ()
    group: str = ""
