"""TRL's format: turns under `prompt` and `completion`, of which one may be a text."""

from __future__ import annotations

from typing import Any

from .. import turn_parser
from ..cells import CellError, parse_cell
from ..grouped_fields import ambiguity_fault
from ..keys import normalize_key
from ..parsed_row import ParsedRow
from ..row_fields import RowParts, finish_turns, parse_by_keys
from .base import Format, RawRow

_ROLE = ("role", "from")


class PromptCompletionFormat:
    """Rows of the shape "messages", whose question or answer is a list of turns."""

    def parse(self, row: RawRow) -> ParsedRow | None:
        """A row with one question and perhaps answers, one of which is a list of turns."""
        asked, answered = row.fields.get("question"), row.fields.get("answer")
        if (
            row.spoken_group is not None
            or len(asked) != 1
            or not any(_turn_list(value) for _, value in (*asked, *answered))
        ):
            return None
        return parse_by_keys(row, _read)


def _read(parsed: ParsedRow, parts: RowParts) -> None:
    ((_, question),) = parts.fields.take("question")
    answered = parts.fields.take("answer")
    if len(answered) > 1:
        parsed.faults.append(ambiguity_fault(answered, "the answer"))
    spoken = _turn_list(question) or [{"role": "user", "content": question}]
    if answered:
        answer = answered[0][1]
        spoken = [*spoken, *(_turn_list(answer) or [{"role": "assistant", "content": answer}])]
    turn_parser.parse_turns(parsed, spoken, "messages")
    finish_turns(parsed, parts, "messages")


def _turn_list(value: Any) -> list[Any] | None:
    try:
        value = parse_cell(value)
    except CellError:  # a text that starts with a bracket
        return None
    fields = value if isinstance(value, list) else []
    return (
        fields
        if fields
        and all(
            isinstance(one, dict) and any(normalize_key(str(key)) in _ROLE for key in one)
            for one in fields
        )
        else None
    )


FORMAT: Format = PromptCompletionFormat()
