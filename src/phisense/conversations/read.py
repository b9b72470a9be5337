"""Read the conversations of a data set, of any accepted shape. The first unusable row raises;
`check` lists them all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ConversationError
from ..safe_parsing import truncate
from .defects import DEFECT_KINDS
from .ignored_keys import IgnoredKeyCounter
from .rows import Row, validate_row
from .sources import open_data_source
from .types import Conversation

_logger = logging.getLogger(__name__)

_MAX_NOTES = 10  # ignored keys that are reported per file


_reported: set[str] = set()


def read_conversations(path: Path) -> list[Conversation]:
    """Every row of `path`. Raises ConversationError for the first unusable one; ignored keys are
    reported.
    """
    return [require_conversation(row, path) for row in warn_ignored_keys(read_rows(path), path)]


def warn_ignored_keys(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """Pass the rows through. After the last one, ignored keys are reported on the standard error,
    once per process.
    """
    unread = IgnoredKeyCounter()
    for row in rows:
        if row.ignored_keys:
            unread.add(row.number, row.ignored_keys)
        yield row
    for note in unread.findings()[:_MAX_NOTES]:
        sentence = f"{path}: {note}."
        if sentence not in _reported:
            _reported.add(sentence)
            _logger.warning("%s", sentence)


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of `path`, validated, as a stream. Raises ConversationError if there is no such
    data.
    """
    for number, raw, fault in open_data_source(path).rows():
        yield validate_row(raw, number, fault)


def require_conversation(row: Row, path: Path) -> Conversation:
    """The row's conversation. Raises ConversationError for its first defect, or if its images are
    embedded in the file.
    """
    called = f"{path}, row {row.number}{f' (id {truncate(row.id)})' if row.id is not None else ''}"
    for code, what in row.faults:
        if DEFECT_KINDS[code].rejects:
            raise ConversationError(
                f"{called} {what}",
                do="phisense check lists every defect; phisense convert leaves such rows out",
            )
    if row.embedded:
        raise ConversationError(
            f"{called} holds its picture inside the file",
            wanted="pictures in files of their own",
            do="Run phisense convert on it first",
        )
    return row.conversation()
