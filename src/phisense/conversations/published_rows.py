"""The fast path for rows as LLaVA, LLaMA-Factory and TRL write them."""

from __future__ import annotations

from typing import Any

from . import turn_parser
from .cells import names_image
from .keys import IMAGE_ID_KEYS
from .parsed_row import ParsedRow
from .row_images import add_images, use_part_images

_BARE = frozenset(("id", "image", "images", "conversations", "messages"))
_OTHER_KEY = {"conversations": "messages", "messages": "conversations"}


def parse_published(row: dict[Any, Any], key: str) -> ParsedRow | None:
    """Parse a row of `PLAIN_KEYS` with turns under `key`, "conversations" or "messages"; None if
    the row needs the general path, `parse_by_keys`.
    """
    spoken = row.get(key)
    picture = row.get("image")
    pictures = row.get("images")
    named = row.get("id")
    if (
        type(spoken) is not list
        or not spoken
        or (picture is not None and pictures is not None)
        or _OTHER_KEY[key] in row
    ):
        return None
    parsed = ParsedRow(
        turns_shape(row, key), named if named is None or type(named) is str else str(named)
    )
    if (shown := picture if picture is not None else pictures) is not None:
        if type(shown) is str and shown[:1] == "[":
            return None
        add_images(parsed, shown)
    turn_parser.parse_turns(parsed, spoken, key)
    if parsed.part_images:
        use_part_images(parsed)
    elif not parsed.pictures and len(row) > 1 and _may_name_one(row):
        return None
    return parsed


def _may_name_one(row: dict[Any, Any]) -> bool:
    """Whether an ignored key may name the image of a row without one."""
    for key, value in row.items():
        if key in _BARE:
            continue
        if key in IMAGE_ID_KEYS or (
            (type(value) is not str or "." in value) and names_image(value)
        ):
            return True
    return False


def turns_shape(row: dict[Any, Any], key: str) -> str:
    """The shape of a row with turns under `key`."""
    return "messages" if key == "messages" else "sharegpt" if "images" in row else "llava"
