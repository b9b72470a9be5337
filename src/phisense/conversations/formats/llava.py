"""LLaVA's and LLaMA-Factory's format: turns under "conversations"."""

from __future__ import annotations

from ..parsed_row import ParsedRow
from ..published_rows import parse_published, turns_shape
from ..row_fields import RowParts, finish_turns, parse_by_keys, read_turn_list
from .base import Format, RawRow

KEY = "conversations"


class LlavaFormat:
    """Rows of the shape "llava"; with several images, "sharegpt"."""

    def parse(self, row: RawRow) -> ParsedRow | None:
        """A row whose turns are under "conversations", or an alias of it."""
        if row.plain:
            if KEY not in row.mapping:
                return None
            if (found := parse_published(row.mapping, KEY)) is not None:
                return found
        if row.spoken_group != KEY:
            return None

        def read(parsed: ParsedRow, parts: RowParts) -> None:
            read_turn_list(parsed, parts)
            finish_turns(parsed, parts, turns_shape(row.mapping, KEY))

        return parse_by_keys(row, read)


FORMAT: Format = LlavaFormat()
