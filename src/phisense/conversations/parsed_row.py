"""The intermediate result of parsing: a row that is being converted to turns and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .json_reader import Fault
from .types import ImageReference


@dataclass(slots=True)
class ParsedRow:
    """`turns` are (original role, text); `faults` are (code, message) for what could not be parsed.

    `unsupervised` has the 0-based indices of unsupervised turns; `ignored_keys` are (level, key);
    `part_images` are the images, as raw values, given in turns and content parts; `part_indices`
    has, for each image part, the index of the row's image or None; `options` are the choices of a
    question and `accepted` its correct answers. Containers that grow with the turns are lists or
    sets, because growing tuples would be copied each time.
    """

    shape: str
    id: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[ImageReference] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    unsupervised: set[int] = field(default_factory=set)
    ignored_keys: list[tuple[str, str]] = field(default_factory=list)
    part_images: list[Any] = field(default_factory=list)
    part_indices: list[Any] = field(default_factory=list)
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()

    def add_turn(self, role: str, text: str, *, supervised: bool = True) -> None:
        """Append a turn; one that is not `supervised` is context only."""
        if not supervised:
            self.unsupervised.add(len(self.turns))
        self.turns.append((role, text))
