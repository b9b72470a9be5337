r"""Parse every accepted row shape into one form: turns of (role, text) and images.

    llava       {"id", "image": name | [names] | null, "conversations": [{"from": "human", "value":
                "<image>\n..."}, ...]}
    sharegpt    {"conversations" or "messages": [...], "images": [...], "system"}
                LLaMA-Factory
    messages    {"messages": [{"role", "content": text or parts}], "images": [...]}
                TRL, `phisense convert`
    openai      {"messages": [{"role", "content": [{"type": "image_url", "image_url": {"url":
                "data:..."}}, ...]}]}
    texts       {"images": [...], "texts": [{"user", "assistant"}]}
                Cauldron, FineVision
    pairs       {"file_name" or "image", "question", "answer"} or {"file_name", "text" or "caption"}
                image folders

An image is a name, a data URL, or `datasets`' struct `{"bytes", "path"}`. The accepted keys and
their aliases are in keys.py.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from ..file_types import sniff
from ..safe_parsing import MAX_PATH_LENGTH, quote
from . import question_answer, turn_parser
from .image_finder import normalize_image_name
from .keys import (
    FILE_NAME_KEYS,
    IMAGE_ID_KEYS,
    PLAIN_KEYS,
    CellError,
    GroupedFields,
    ambiguity_fault,
    ends_like_data,
    is_empty,
    names_image,
    normalize_key,
    parse_cell,
)
from .options import parse_options
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
_ROLE = ("role", "from")
_BARE = frozenset(("id", "image", "images", "conversations", "messages"))
_SPOKEN = ("conversations", "messages", "texts")


def parse_row(row: Any) -> ParsedRow:
    """Parse any raw row; one of unknown shape is returned with a fault."""
    if not isinstance(row, dict):
        return ParsedRow(
            "unknown", faults=[("unknown-shape", f"is a {type(row).__name__}, wanted a mapping")]
        )
    return (_as_published(row) if PLAIN_KEYS.issuperset(row) else None) or _parse_by_keys(row)


def _as_published(row: dict[str, Any]) -> ParsedRow | None:
    """The fast path for rows as LLaVA, LLaMA-Factory and TRL write them; None if the row needs the
    general path.
    """
    key = "conversations" if "conversations" in row else "messages"
    spoken = row.get(key)
    picture = row.get("image")
    pictures = row.get("images")
    named = row.get("id")
    if (
        type(spoken) is not list
        or not spoken
        or (picture is not None and pictures is not None)
        or ("messages" in row) == (key[0] == "c")
    ):
        return None
    parsed = ParsedRow(
        _shape(row, key), named if named is None or type(named) is str else str(named)
    )
    if (shown := picture if picture is not None else pictures) is not None:
        if type(shown) is str and shown[:1] == "[":
            return None
        _add_pictures(parsed, shown)
    turn_parser.parse_turns(parsed, spoken, key)
    if parsed.part_images:
        _carried(parsed)
    elif not parsed.pictures and len(row) > 1 and _may_name_one(row):
        return None
    return parsed


def _may_name_one(row: dict[str, Any]) -> bool:
    """Whether an ignored key may name the image of a row without one."""
    for key, value in row.items():
        if key in _BARE:
            continue
        if key in IMAGE_ID_KEYS or (
            (type(value) is not str or "." in value) and names_image(value)
        ):
            return True
    return False


def _shape(row: dict[str, Any], key: str) -> str:
    return "messages" if key == "messages" else "sharegpt" if "images" in row else "llava"


def _parse_by_keys(row: dict[str, Any]) -> ParsedRow:
    """The general path: any row, by the tables of keys.py. Unused keys are reported at the end."""
    fields = GroupedFields(row)
    parsed = ParsedRow(
        "unknown",
        next((str(value) for _, value in fields.take("id")), None),
        faults=fields.take_unsupported(),
    )
    refused = bool(parsed.faults)
    shown = _row_pictures(parsed, fields)
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
        _add_pictures(parsed, shown := by_id)
        fields.rest += [key for key, value in ids if not _same(value, by_id)]
    _system(parsed, fields)
    for key, value in fields.take("history"):
        turn_parser.parse_history(parsed, _cell(parsed, key, value), key)
    choices, faults = parse_options(fields)
    parsed.faults += faults
    if (group := _turns(parsed, fields)) is not None:
        parsed.shape = (
            group
            if group == "texts"
            else _shape(row, group)
            if parsed.shape == "unknown"
            else parsed.shape
        )
        if choices is not None:
            question_answer.append_options(parsed, choices)
    else:
        if parsed.id is None and isinstance(shown, str) and not _embedded(shown):
            parsed.id = shown
        parsed.shape = "pairs"
        if (
            not question_answer.parse_question_answer(
                parsed, fields, choices, pictures=shown is not None
            )
            and not refused
        ):
            parsed.shape = "unknown"
            parsed.faults.append(
                ("unknown-shape", f"has the keys {question_answer.describe_keys(row)}")
            )
    _weight(parsed, fields)
    if parsed.part_images:
        if by_id:
            parsed.pictures = []
        _carried(parsed)
    if not parsed.pictures:  # then these keys are the only trace of an image
        fields.rest += [
            key for key, value in [*ids, *fields.ignored] if key in dict(ids) or names_image(value)
        ]
    if parsed.shape != "unknown":
        parsed.ignored_keys += fields.unused()
    return parsed


def _cell(parsed: ParsedRow, key: str, value: Any) -> Any:
    """Parse a list or mapping that may be text in a table cell."""
    try:
        return parse_cell(value)
    except CellError as error:
        parsed.faults.append(("bad-cell", f"has text under {quote(key)} {error}"))
        return []


def _turns(parsed: ParsedRow, fields: GroupedFields) -> str | None:
    """Parse the turns under the one key that has them and return its group; None for a row without
    such a key.
    """
    found = [(group, key, value) for group in _SPOKEN for key, value in fields.take(group)]
    full = [one for one in found if not is_empty(one[2])]
    if not found:
        return _prompt(parsed, fields)
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
    return group


def _prompt(parsed: ParsedRow, fields: GroupedFields) -> str | None:
    """TRL's `prompt` and `completion`, if one of them is a list of turns; the other may be text."""
    asked, answered = fields.take("question"), fields.take("answer")
    lists = [[_turn_list(value) for _, value in found] for found in (asked, answered)]
    if len(asked) != 1 or not any(one for found in lists for one in found):
        fields.put_back("question", asked)
        fields.put_back("answer", answered)
        return None
    if len(answered) > 1:
        parsed.faults.append(ambiguity_fault(answered, "the answer"))
    spoken = lists[0][0] or [{"role": "user", "content": asked[0][1]}]
    if answered:
        spoken = [*spoken, *(lists[1][0] or [{"role": "assistant", "content": answered[0][1]}])]
    turn_parser.parse_turns(parsed, spoken, "messages")
    return "messages"


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


def _row_pictures(parsed: ParsedRow, fields: GroupedFields) -> Any:
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
    elif any(not _same(found[0][1], value) for _, value in found[1:]):
        parsed.faults.append(ambiguity_fault(found, "pictures"))
    names_again = [one for one in weak if found and any(_same(value, one[1]) for _, value in found)]
    fields.put_back(
        "weak pictures", [one for one in weak if one not in names_again and not _is_address(one)]
    )
    if not found:
        return None
    embedded = [value for _, value in found if _embedded(value)]
    shown = embedded[0] if embedded else found[0][1]
    _add_pictures(parsed, shown)
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
        _embedded(one) or (isinstance(one, str) and bool(_IMAGE_NAME.fullmatch(one)))
        for one in values
    )


def _is_address(named: tuple[str, Any]) -> bool:
    """Whether a value is the original URL of an image, which is redundant next to the image."""
    return isinstance(named[1], str) and _REMOTE.match(named[1]) is not None


def _embedded(value: Any) -> bool:
    one = value[0] if isinstance(value, list) and value else value
    if isinstance(one, dict):
        return bool(one.get("bytes"))
    return isinstance(one, bytes) or (
        isinstance(one, str) and (one.startswith("data:") or is_base64_image(one))
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two values name the same images: equal, one a path suffix of the other, or one the
    bytes and the other the name.
    """
    some, others = (
        [value for value in (it if isinstance(it, list) else [it]) if not is_empty(value)]
        for it in (one, other)
    )
    if some == others:
        return True
    if len(some) != len(others) or _embedded(some) != _embedded(others):
        return len(some) == len(others)
    return all(
        isinstance(a, str)
        and isinstance(b, str)
        and (f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}"))
        for a, b in zip(some, others, strict=True)
    )


def _carried(parsed: ParsedRow) -> None:
    """Use the images of turns and parts, which must equal the row's own if there are any; otherwise
    their order is ambiguous.
    """
    row, parsed.pictures = parsed.pictures, []
    for value in parsed.part_images:
        _add_pictures(parsed, value)
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
    if len(before) == len(names) and all(_same(a, b) for a, b in zip(before, names, strict=True)):
        parsed.part_images = []
        return
    _carried(parsed)


def _add_pictures(parsed: ParsedRow, value: Any) -> None:
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
