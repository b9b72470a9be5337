"""Cauldron's and FineVision's format: question-answer pairs under "texts"."""

from __future__ import annotations

from ..parsed_row import ParsedRow
from ..row_fields import RowParts, finish_turns, parse_by_keys, read_turn_list
from .base import Format, RawRow

KEY = "texts"


class TextsFormat:
    """Rows of the shape "texts"."""

    def parse(self, row: RawRow) -> ParsedRow | None:
        """A row whose turns are under "texts"."""
        return parse_by_keys(row, _read) if row.spoken_group == KEY else None


def _read(parsed: ParsedRow, parts: RowParts) -> None:
    read_turn_list(parsed, parts)
    parsed.shape = KEY  # whatever a history before them is
    finish_turns(parsed, parts, KEY)


FORMAT: Format = TextsFormat()
