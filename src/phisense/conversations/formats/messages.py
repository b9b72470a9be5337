"""OpenAI's and TRL's format: turns under "messages", with texts or content parts."""

from __future__ import annotations

from ..parsed_row import ParsedRow
from ..published_rows import parse_published
from ..row_fields import RowParts, finish_turns, parse_by_keys, read_turn_list
from .base import Format, RawRow

KEY = "messages"


class MessagesFormat:
    """Rows of the shape "messages"; with `image_url` parts, "openai"."""

    def parse(self, row: RawRow) -> ParsedRow | None:
        """A row whose turns are under "messages"."""
        if row.plain:
            if KEY not in row.mapping:
                return None
            if (found := parse_published(row.mapping, KEY)) is not None:
                return found
        return parse_by_keys(row, _read) if row.spoken_group == KEY else None


def _read(parsed: ParsedRow, parts: RowParts) -> None:
    read_turn_list(parsed, parts)
    finish_turns(parsed, parts, KEY)


FORMAT: Format = MessagesFormat()
