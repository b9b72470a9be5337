"""The images that a row names: names, data URLs, base64, bytes, and `datasets`' struct `{"bytes",
"path"}`, or lists of these.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from ..file_types import sniff
from ..safe_parsing import MAX_PATH_LENGTH, quote
from .cells import CellError, ends_like_data, is_empty, parse_cell
from .grouped_fields import GroupedFields, ambiguity_fault
from .image_finder import normalize_image_name
from .keys import FILE_NAME_KEYS, normalize_key
from .parsed_row import ParsedRow
from .types import ImageReference

_MIN_BASE64_LENGTH = 64
# JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF
_BASE64_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A", "AAAA")
_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_IMAGE_NAME = re.compile(
    r".*\.(?:jpe?g|png|webp|bmp|gif|tiff?|heic|heif|avif)(?:[?#].*)?", re.IGNORECASE | re.DOTALL
)


def read_row_images(parsed: ParsedRow, fields: GroupedFields) -> Any:
    """Add the row's images, under whichever key; two different values are a fault. Returns the
    value that was used, None if there is none.
    """
    found = [(key, _picture_cell(value)) for key, value in fields.take("pictures")]
    of_the_set = [
        one for one in found if normalize_key(one[0]) in FILE_NAME_KEYS and ends_like_data(one[1])
    ]
    found = [one for one in found if one not in of_the_set]
    fields.rest += [key for key, _ in of_the_set]
    if fields.numbered:
        names = [fields.numbered[at] for at in sorted(fields.numbered)]
        found.append(
            (
                names[0][0] if len(names) == 1 else f"{names[0][0]} ... {names[-1][0]}",
                [value for _, value in names],
            )
        )
        fields.numbered.clear()
    weak = fields.take("weak pictures")
    if not found:
        shown = [(key, value) for key, value in weak if _looks_like_one(key, value)]
        found, weak = shown, [one for one in weak if one not in shown]
    elif any(not names_same_images(found[0][1], value) for _, value in found[1:]):
        parsed.faults.append(ambiguity_fault(found, "pictures"))
    names_again = [
        one for one in weak if found and any(names_same_images(value, one[1]) for _, value in found)
    ]
    fields.put_back(
        "weak pictures", [one for one in weak if one not in names_again and not _is_address(one)]
    )
    if not found:
        return None
    embedded = [value for _, value in found if is_embedded(value)]
    shown = embedded[0] if embedded else found[0][1]
    add_images(parsed, shown)
    return found[0][1]


def _picture_cell(value: Any) -> Any:
    """Parse a list or struct in a table cell; a file name may start with a bracket, too."""
    try:
        return parse_cell(value)
    except CellError:
        return value


def _looks_like_one(key: str, value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(
        is_embedded(one) or (isinstance(one, str) and bool(_IMAGE_NAME.fullmatch(one)))
        for one in values
    )


def _is_address(named: tuple[str, Any]) -> bool:
    """Whether a value is the original URL of an image, which is redundant next to the image."""
    return isinstance(named[1], str) and _REMOTE.match(named[1]) is not None


def is_embedded(value: Any) -> bool:
    """Whether a value, or the first of a list, is an image itself and not its name."""
    one = value[0] if isinstance(value, list) and value else value
    if isinstance(one, dict):
        return bool(one.get("bytes"))
    return isinstance(one, bytes) or (
        isinstance(one, str) and (one.startswith("data:") or is_base64_image(one))
    )


def names_same_images(one: Any, other: Any) -> bool:
    """Whether two values name the same images: equal, one a path suffix of the other, or one the
    bytes and the other the name.
    """
    some, others = (
        [value for value in (it if isinstance(it, list) else [it]) if not is_empty(value)]
        for it in (one, other)
    )
    if some == others:
        return True
    if len(some) != len(others) or is_embedded(some) != is_embedded(others):
        return len(some) == len(others)
    return all(
        isinstance(a, str)
        and isinstance(b, str)
        and (f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}"))
        for a, b in zip(some, others, strict=True)
    )


def use_part_images(parsed: ParsedRow) -> None:
    """Use the images of turns and parts, which must equal the row's own if there are any; otherwise
    their order is ambiguous.
    """
    row, parsed.pictures = parsed.pictures, []
    for value in parsed.part_images:
        add_images(parsed, value)
    parsed.part_images = []
    if row and row != parsed.pictures:
        parsed.faults.append(
            (
                "ambiguous-keys",
                "has pictures of its own and others in its turns, and their order cannot be told",
            )
        )


def add_named_images(parsed: ParsedRow, names: list[str]) -> None:
    """Add images that the texts themselves name, in order."""
    parsed.part_images = list(names)
    before = [picture.name for picture in parsed.pictures]
    if len(before) == len(names) and all(
        names_same_images(a, b) for a, b in zip(before, names, strict=True)
    ):
        parsed.part_images = []
        return
    use_part_images(parsed)


def add_images(parsed: ParsedRow, value: Any) -> None:
    """Add the image, or list of images, that a value names or is; what is none is a fault."""
    for one in value if isinstance(value, list) else (value,):
        if type(one) is str and one and not one.isspace():
            picture, fault = _named(one)
        elif is_empty(one):
            continue
        elif isinstance(one, bytes):
            picture, fault = ImageReference("", one), None
        elif isinstance(one, dict) and isinstance(one.get("bytes"), bytes):
            picture, fault = ImageReference(str(one.get("path") or ""), one["bytes"]), None
        elif isinstance(one, dict) and isinstance(one.get("path"), str) and one["path"]:
            picture, fault = _named(one["path"])
        else:
            picture, fault = (
                None,
                (
                    "bad-picture-name",
                    f"names its picture as {quote(one)}, wanted a file name, bytes or a list",
                ),
            )
        if picture is not None:
            parsed.pictures.append(picture)
        if fault is not None:
            parsed.faults.append(fault)


def is_base64_image(text: str) -> bool:
    """Whether a text is a base64-encoded image, as in MMBench's tables."""
    if len(text) < _MIN_BASE64_LENGTH or not text.startswith(_BASE64_HEADS) or "." in text:
        return False
    try:
        kind = sniff(base64.b64decode(text[:_MIN_BASE64_LENGTH], validate=True))
    except (binascii.Error, ValueError):
        return False
    return kind is not None and kind.group == "picture"


def _named(name: str) -> tuple[ImageReference | None, tuple[str, str] | None]:
    if len(name) >= _MIN_BASE64_LENGTH and is_base64_image(name):
        try:
            return ImageReference("", base64.b64decode("".join(name.split()), validate=True)), None
        except (binascii.Error, ValueError):
            return None, (
                "bad-data-url",
                f"has {quote(name, 40)} as its picture, which begins as base64 and is none",
            )
    if name.startswith("data:"):
        head = _DATA_URL.match(name)
        try:
            return (
                ImageReference(
                    "",
                    base64.b64decode(
                        name[head.end() if head else 0 :] if head else "?", validate=True
                    ),
                ),
                None,
            )
        except (binascii.Error, ValueError):
            return None, (
                "bad-data-url",
                f"has the data URL {quote(name, 40)}, wanted data:image/...;base64, and base64",
            )
    if _REMOTE.match(name) and name[:5].lower() != "file:":
        return None, (
            "remote-url",
            f"names the picture {quote(name, MAX_PATH_LENGTH)}, which is on the network",
        )
    if (path := normalize_image_name(name)) is None:
        return None, (
            "path-escape",
            (
                f"names the picture {quote(name, MAX_PATH_LENGTH)}, wanted a path inside the"
                f" picture"
                " folders"
            ),
        )
    return ImageReference(path, elsewhere=path != name), None
