"""What rows of any format have, read by the tables of keys.py: `parse_by_keys`, and the parts of it
that formats share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..safe_parsing import quote
from . import turn_parser
from .cells import CellError, is_empty, names_image, parse_cell
from .formats.base import SPOKEN_GROUPS, RawRow
from .grouped_fields import GroupedFields, ambiguity_fault
from .options import Options, parse_options
from .parsed_row import ParsedRow
from .question_options import append_options
from .row_images import add_images, names_same_images, read_row_images, use_part_images


@dataclass(frozen=True, slots=True)
class RowParts:
    """What `parse_by_keys` leaves to a format: the keys that were not taken yet, the options of a
    question, the value that names the row's images (None without one), and whether an unsupported
    key rejects the row.
    """

    fields: GroupedFields
    choices: Options | None
    images: Any
    refused: bool


#: Reads a row's turns into it, and sets its shape.
TurnReader = Callable[[ParsedRow, RowParts], None]


def parse_by_keys(row: RawRow, read_turns: TurnReader) -> ParsedRow:
    """Parse what rows of any format have, by the tables of keys.py: id, images, system text,
    history, options, weight. `read_turns` reads the turns. Unused keys are reported at the end.
    """
    fields = row.fields.copy()
    parsed = ParsedRow(
        "unknown",
        next((str(value) for _, value in fields.take("id")), None),
        faults=fields.take_unsupported(),
    )
    refused = bool(parsed.faults)
    shown = read_row_images(parsed, fields)
    ids = fields.take("picture ids")
    by_id = shown is None and next(
        (
            value
            for _, value in ids
            if isinstance(value, str) and value[:1] not in "[{" and names_image(value)
        ),
        None,
    )
    if isinstance(by_id, str):
        add_images(parsed, shown := by_id)
        fields.rest += [key for key, value in ids if not names_same_images(value, by_id)]
    _system(parsed, fields)
    for key, value in fields.take("history"):
        turn_parser.parse_history(parsed, _cell(parsed, key, value), key)
    choices, faults = parse_options(fields)
    parsed.faults += faults
    read_turns(parsed, RowParts(fields, choices, shown, refused))
    _weight(parsed, fields)
    if parsed.part_images:
        if by_id:
            parsed.pictures = []
        use_part_images(parsed)
    if not parsed.pictures:  # then these keys are the only trace of an image
        fields.rest += [
            key for key, value in [*ids, *fields.ignored] if key in dict(ids) or names_image(value)
        ]
    if parsed.shape != "unknown":
        parsed.ignored_keys += fields.unused()
    return parsed


def read_turn_list(parsed: ParsedRow, parts: RowParts) -> None:
    """Read the turns under the one key that has them."""
    fields = parts.fields
    found = [(group, key, value) for group in SPOKEN_GROUPS for key, value in fields.take(group)]
    full = [one for one in found if not is_empty(one[2])]
    if any(value != full[0][2] for _, _, value in full[1:]):
        parsed.faults.append(ambiguity_fault([(key, value) for _, key, value in full], "its turns"))
    group, key, value = (full or found)[0]
    faults = len(parsed.faults)
    spoken = _cell(parsed, key, value)
    if not isinstance(spoken, list) or not spoken:
        if faults == len(parsed.faults):
            parsed.faults.append(
                ("no-turns", f"has no turns under {quote(key)}, wanted a list of them")
            )
    elif group == "texts":
        turn_parser.parse_text_pairs(parsed, spoken)
    else:
        turn_parser.parse_turns(parsed, spoken, group)


def finish_turns(parsed: ParsedRow, parts: RowParts, shape: str) -> None:
    """Set the shape of a row with turns, unless one of them has set it, and add its options to the
    question.
    """
    parsed.shape = shape if parsed.shape == "unknown" else parsed.shape
    if parts.choices is not None:
        append_options(parsed, parts.choices)


def _cell(parsed: ParsedRow, key: str, value: Any) -> Any:
    """Parse a list or mapping that may be text in a table cell."""
    try:
        return parse_cell(value)
    except CellError as error:
        parsed.faults.append(("bad-cell", f"has text under {quote(key)} {error}"))
        return []


def _system(parsed: ParsedRow, fields: GroupedFields) -> None:
    found = fields.take("system")
    if len(found) > 1:
        parsed.faults.append(ambiguity_fault(found, "its system text"))
    for key, value in found[:1]:
        if isinstance(value, str):
            parsed.add_turn("system", value)
        else:
            parsed.faults.append(
                ("bad-turn", f"has {quote(value)} under {quote(key)}, wanted a text")
            )


def _weight(parsed: ParsedRow, fields: GroupedFields) -> None:
    """A row of weight 0 is unsupervised. phisense weights data sets, not rows."""
    for key, value in fields.take("weight"):
        if value in (0, "0"):
            parsed.faults.append(
                (
                    "no-answer",
                    f"has the weight 0 under {quote(key)}, so no token would be supervised",
                )
            )
        elif value not in (1, "1", "1.0"):
            parsed.faults.append(
                ("bad-weight", f"has the weight {quote(value)} under {quote(key)}, wanted 0 or 1")
            )
