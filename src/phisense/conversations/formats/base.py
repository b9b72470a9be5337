"""The interface of a data format: one way in which the rows of a data set are written."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from ..cells import is_empty
from ..grouped_fields import GroupedFields
from ..keys import PLAIN_KEYS
from ..parsed_row import ParsedRow

#: Groups of keys.py that hold all turns of a row.
SPOKEN_GROUPS = ("conversations", "messages", "texts")


class RawRow:
    """A row as it was read. What all formats ask of it is found once."""

    def __init__(self, mapping: dict[Any, Any]) -> None:
        self.mapping = mapping
        self.plain = PLAIN_KEYS.issuperset(mapping)  # then its keys have no other names

    @cached_property
    def fields(self) -> GroupedFields:
        """The keys by group, as keys.py has them; a format takes from a `copy`."""
        return GroupedFields(self.mapping)

    @cached_property
    def spoken_group(self) -> str | None:
        """The group of the first key that has turns, or could have; None without one."""
        found = [(group, pair) for group in SPOKEN_GROUPS for pair in self.fields.get(group)]
        full = [group for group, (_, value) in found if not is_empty(value)]
        return full[0] if full else found[0][0] if found else None


class Format(Protocol):
    """One way in which rows are written."""

    def parse(self, row: RawRow) -> ParsedRow | None:
        """The turns and images of a row, with the faults of what could not be parsed; None for a
        row of another format.

        Formats are asked in the order of `seams.FORMAT_MODULES`, and the first that returns a row
        has it. `ParsedRow.shape` is the name that `check` counts it under. `row_images.add_images`
        adds images from names, data URLs, bytes or lists of these; keys that mean something and are
        not read belong into `ignored_keys`.
        """
