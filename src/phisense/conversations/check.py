"""Looks at every row of a data set before anything is trained on it: what can be used, and what is wrong with the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .read import parse_row, read_rows, row_defects, row_images
from .types import Conversation

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Defect:
    row: int
    id: str | None
    what: str


@dataclass(slots=True)
class Checked:
    """`good` are the conversations that can be trained on."""

    rows: int = 0
    turns: int = 0
    pictures: set[str] = field(default_factory=set)
    good: int = 0
    without_picture: int = 0
    defects: list[Defect] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        defects = [{"row": d.row, "id": d.id, "what": d.what} for d in self.defects]
        counts = {"rows": self.rows, "good": self.good, "turns": self.turns, "pictures": len(self.pictures)}
        return {**counts, "without_picture": self.without_picture, "defects": defects}


def check(
    path: Path, images: Path | None, *, defects_of: Callable[[Path, str], str | None] | None = None, progress: Progress = lambda done: None
) -> Checked:
    """Every defect of every row. `defects_of(images, name)` says what is wrong with a picture, or None; each is looked at once."""
    found = Checked()
    ids: Counter[str] = Counter()
    looked: dict[str, str | None] = {}
    for number, row in read_rows(path):
        found.rows += 1
        called = str(row["id"]) if isinstance(row, dict) and "id" in row else None
        wrong = row_defects(row, number)
        if called is not None:
            ids[called] += 1
            if ids[called] == 2:
                wrong = [*wrong, f"has the id {called!r} of an earlier row"]
        names = row_images(row) if not row_defects(row, number) else ()
        if images is not None and defects_of is not None:
            for name in names:
                if name not in looked:
                    looked[name] = defects_of(images, name)
                wrong += [looked[name]] if looked[name] is not None else []  # type: ignore[list-item]
        found.defects += [Defect(number, called, what) for what in wrong]
        if not wrong:
            _count(found, parse_row(row, number))
        progress(found.rows)
    return found


def _count(found: Checked, conversation: Conversation) -> None:
    found.good += 1
    found.turns += sum(message.role == "assistant" for message in conversation.messages)
    found.pictures.update(conversation.images)
    found.without_picture += not conversation.images
