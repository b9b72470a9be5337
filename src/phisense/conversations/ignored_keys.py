"""Counts ignored keys over a data set: one note per key, however many rows have it."""

from __future__ import annotations

from collections.abc import Iterable

from .defects import Defect
from .grouped_fields import ignored_key_note

MAX_NOTES = 1000  # distinct keys reported separately; data used as keys has no limit


class IgnoredKeyCounter:
    """For each (level, key): the first row that has it, and the number of rows."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[int]] = {}
        self._others = [0, 0]

    def add(self, row: int, keys: Iterable[tuple[str, str]]) -> None:
        """Count each of a row's `keys` once."""
        beyond = False
        for named in dict.fromkeys(keys):
            if named in self._rows:
                self._rows[named][1] += 1
            elif len(self._rows) < MAX_NOTES:
                self._rows[named] = [row, 1]
            else:
                beyond = True
        if beyond:
            self._others = [self._others[0] or row, self._others[1] + 1]

    def findings(self) -> list[Defect]:
        """A note for each key, most frequent first, and one note for all beyond the first
        `MAX_NOTES`.
        """
        by_number = sorted(self._rows.items(), key=lambda item: -item[1][1])
        notes = [
            Defect(first, None, "unread-key", ignored_key_note(*named), rows)
            for named, (first, rows) in by_number
        ]
        first, rows = self._others
        return (
            [
                *notes,
                Defect(first, None, "unread-key", "has still other keys, which are not read", rows),
            ]
            if rows
            else notes
        )
