"""Parse a row of any format into turns of (role, text) and images.

The formats are in formats/; an image is a name, a data URL, or `datasets`' struct `{"bytes",
"path"}` (row_images.py). The accepted keys and their aliases are in keys.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .formats import FORMATS, Format, RawRow
from .formats.question_answer import parse_pair
from .parsed_row import ParsedRow


def parse_row(row: Any) -> ParsedRow:
    """Parse any raw row by the first format that has it; one of unknown shape is returned with a
    fault.
    """
    if not isinstance(row, dict):
        return ParsedRow(
            "unknown", faults=[("unknown-shape", f"is a {type(row).__name__}, wanted a mapping")]
        )
    raw = RawRow(row)
    for name, module in FORMATS.modules.items():
        if (parsed := _format(name, module).parse(raw)) is not None:
            return parsed
    return parse_pair(raw)  # with the fault


@lru_cache
def _format(name: str, module: str) -> Format:
    """A format, looked up once for all rows."""
    return FORMATS[name]
