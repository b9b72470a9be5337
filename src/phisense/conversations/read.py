"""Reads the conversations of a data set, of any accepted shape. The first row that cannot be used is an error; `check` lists them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import ConversationError
from .defects import KINDS
from .rows import Row, examine
from .sources import open_source
from .types import Conversation


def read_conversations(path: Path) -> list[Conversation]:
    """Every row of `path`. Raises ConversationError for the first one that cannot be used."""
    return [usable(row, path) for row in read_rows(path)]


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of `path`, examined, as a stream. Raises ConversationError if there is no such data."""
    for number, raw, fault in open_source(path).rows():
        yield examine(raw, number, fault)


def usable(row: Row, path: Path) -> Conversation:
    """The row's conversation. Raises ConversationError for its first defect, or if its pictures are inside the file."""
    called = f"{path}, row {row.number}{f' (id {row.id})' if row.id is not None else ''}"
    for code, what in row.faults:
        if KINDS[code].rejects:
            raise ConversationError(f"{called} {what}", do="phisense check lists every defect; phisense convert leaves such rows out")
    if row.embedded:
        raise ConversationError(
            f"{called} holds its picture inside the file", wanted="pictures in files of their own", do="Run phisense convert on it first"
        )
    return row.conversation()
