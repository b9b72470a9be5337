"""Rows with a question and an answer in separate keys, and rows with an image and its caption."""

from __future__ import annotations

from ..parsed_row import ParsedRow
from ..question_answer import describe_keys, parse_question_answer
from ..row_fields import RowParts, parse_by_keys
from ..row_images import is_embedded
from .base import Format, RawRow


class QuestionAnswerFormat:
    """Rows of the shape "pairs"."""

    def parse(self, row: RawRow) -> ParsedRow | None:
        """A row without turns that has a question, or an image with a caption."""
        parsed = parse_pair(row)
        return None if parsed.shape == "unknown" else parsed


def parse_pair(row: RawRow) -> ParsedRow:
    """A row as a question and its answer; without them of the shape "unknown", with a fault."""

    def read(parsed: ParsedRow, parts: RowParts) -> None:
        if parsed.id is None and isinstance(parts.images, str) and not is_embedded(parts.images):
            parsed.id = parts.images
        parsed.shape = "pairs"
        found = parse_question_answer(
            parsed, parts.fields, parts.choices, pictures=parts.images is not None
        )
        if not found and not parts.refused:
            parsed.shape = "unknown"
            parsed.faults.append(("unknown-shape", f"has the keys {describe_keys(row.mapping)}"))

    return parse_by_keys(row, read)


FORMAT: Format = QuestionAnswerFormat()
