"""What the value of a key is: whether it is empty or ends like a file name, its text, and the list
or mapping that a table cell holds as text.
"""

from __future__ import annotations

import ast
import re
from itertools import islice
from typing import Any

import orjson

from .. import safe_parsing

_MAX_CELL_LENGTH = 2**24  # characters of a cell that is parsed
_MAX_NAME_LENGTH = 4096
_ENDS_LIKE_DATA = re.compile(
    r".*\.(?:txt|json|jsonl|ndjson|csv|tsv|parquet|arrow|md|xml|ya?ml|html?|pdf|docx?|xlsx?|py|tar|"
    r"zip|gz)",
    re.I | re.S,
)
_ENDINGS = r"\.(?:jpe?g|png|webp|bmp|gif|tiff?|heic|heif|avif)"
_IMAGE_NAME = re.compile(rf"[^\n]*{_ENDINGS}(?:[?#][^\n]*)?", re.IGNORECASE)
_IMAGE_NAME_INSIDE = re.compile(rf"{_ENDINGS}[\"'?#]", re.IGNORECASE)


def is_empty(value: Any) -> bool:
    """True for null, an empty cell, an empty list or mapping, a list of only empty values, and NaN,
    which tables write for null.
    """
    if value is None:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, (list, tuple)):
        return all(one is None or (isinstance(one, str) and not one.strip()) for one in value)
    return (isinstance(value, dict) and not value) or (isinstance(value, float) and value != value)


def cell_text(value: Any) -> str:
    """A value as text. Integral floats lose their fraction, because tables store integer columns
    with gaps as floats: 2.0 becomes "2".
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def names_image(value: Any, depth: int = 2) -> bool:
    """Whether a value, or one nested in it, ends like an image name."""
    if isinstance(value, str):
        if value[:1] in "[{" and value.strip():
            return _IMAGE_NAME_INSIDE.search(value[:_MAX_NAME_LENGTH]) is not None
        return len(value) <= _MAX_NAME_LENGTH and _IMAGE_NAME.fullmatch(value.strip()) is not None
    if depth and isinstance(value, (dict, list)):
        some = islice(value.values() if isinstance(value, dict) else value, 20)
        return any(names_image(one, depth - 1) for one in some)
    return False


def ends_like_data(value: Any) -> bool:
    """Whether a value is the name of a table or text file."""
    return isinstance(value, str) and _ENDS_LIKE_DATA.fullmatch(value.strip()) is not None


class CellError(Exception):
    """A text that is not the expected list or mapping; the message completes "has text under
    'choices' ".
    """


def parse_cell(value: Any) -> Any:
    """Parse a list or mapping stored as text in a table cell, as JSON or a Python literal; other
    values are returned unchanged. Raises CellError.
    """
    if not isinstance(value, str) or not (text := value.strip()).startswith(("[", "{")):
        return value
    if len(text) > _MAX_CELL_LENGTH:
        raise CellError(f"of more than {_MAX_CELL_LENGTH // 2**20} MB")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        found = _parse_python_literal(text)
        if found is None:
            raise CellError(f"that is not JSON ({safe_parsing.truncate(str(error))})") from error
    if safe_parsing.is_too_deep(found):
        raise CellError(f"that is nested more than {safe_parsing.MAX_DEPTH} levels deep")
    return found


def _parse_python_literal(text: str) -> Any:
    """Parse `['a', 'b']`, as pandas writes lists into cells; only if its repr is the same text
    again, so that nothing is guessed.
    """
    if len(text) > 2**20 or any(text.count(bracket) > 10_000 for bracket in "[{("):
        return None
    try:
        found = ast.literal_eval(text)
        return found if repr(found) == text else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
