"""Validate one raw row: its turns and images, and all of its defects. This is the inner loop of
`check`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..families import known_special_tokens
from ..file_types import AVIF, HEAD_BYTES, sniff
from ..safe_parsing import is_encodable, quote
from .defects import DEFECT_KINDS
from .json_reader import Fault
from .parsed_row import ParsedRow
from .row_parser import parse_row
from .tags import may_contain_tag
from .turn_normalizer import normalize_turns
from .turn_parser import ROLE_NAMES, reorder_images
from .types import IMAGE, Conversation, ImageReference, Message

MAX_ANSWER_LENGTH = (
    20_000  # characters; a longer answer does not fit into a context window of 4,096 tokens
)
_TOOLS = (
    "tool",
    "function",
    "function_call",
    "function_response",
    "observation",
    "ipython",
    "tool_call",
    "tool_response",
)
_MARKED = ("llava", "sharegpt")  # other shapes never contain a marker
_FORMATS = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*", ".tif"),
    (b"MM\0*", ".tif"),
)


def special_token_finder(known: Iterable[str]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The pattern that finds `<|...|>` and the `known` tokens in a text; and how those begin that
    begin otherwise than `<|`: most texts have neither.
    """
    usual = r"<\|[A-Za-z_0-9]+\|>"
    tokens = [token for token in known if not re.fullmatch(usual, token)]
    pattern = re.compile("|".join([usual, *map(re.escape, tokens)]))
    return pattern, tuple({token[:2] for token in tokens} - {"<|"})


_SPECIAL_TOKEN, _OTHER_STARTS = special_token_finder(known_special_tokens())


@dataclass(slots=True)
class Row:
    """`turns` are (role, text) in order, `faults` are (code, message). A row without a rejecting
    fault is a conversation.

    `unsupervised`, `ignored_keys`, `options` and `accepted` as in `ParsedRow`.
    """

    number: int
    id: str | None
    shape: str
    turns: list[tuple[str, str]]
    pictures: list[ImageReference]
    faults: list[Fault]
    unsupervised: frozenset[int] = frozenset()
    ignored_keys: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether no defect rejects the row."""
        return not any(DEFECT_KINDS[code].rejects for code, _ in self.faults)

    @property
    def embedded(self) -> dict[str, bytes]:
        """Images embedded in the file, by name."""
        return {picture.name: picture.data for picture in self.pictures if picture.data is not None}

    def conversation(self) -> Conversation:
        """Convert a good row. Missing markers are inserted where published data sets put them: at
        the start of the first question.
        """
        off = self.unsupervised
        messages = [
            Message(ROLE_NAMES[role], text.strip(), index not in off)
            for index, (role, text) in enumerate(self.turns)
        ]
        images = tuple(picture.name for picture in self.pictures)
        if images and not any(IMAGE in message.text for message in messages):
            first = next(i for i, message in enumerate(messages) if message.role == "user")
            messages[first] = Message(
                "user", "\n".join([*[IMAGE] * len(images), messages[first].text])
            )
        return Conversation(
            self.id if self.id is not None else str(self.number), tuple(messages), images
        )


def validate_row(raw: Any, number: int, fault: Fault | None = None) -> Row:
    """Parse and validate a raw row; `fault` is what the reader already found."""
    if fault is not None and raw is None:
        return Row(number, None, "unknown", [], [], [fault])
    parsed = parse_row(raw)
    if parsed.part_indices:
        reorder_images(parsed)
    faults = [fault, *parsed.faults] if fault is not None else parsed.faults
    if not faults or not any(DEFECT_KINDS[code].rejects for code, _ in faults):
        before = len(faults)
        if _turn_faults(parsed, faults):
            del faults[before:]
            if not any(DEFECT_KINDS[code].rejects for code, _ in normalize_turns(parsed, faults)):
                _turn_faults(parsed, faults, tidied=True)
    if parsed.pictures:
        _name_embedded(parsed)
    for text in (parsed.id or "", *[picture.name for picture in parsed.pictures]):
        if not text.isascii() and not is_encodable(text):
            faults.append(
                (
                    "not-utf8",
                    "has bytes or lone surrogates in its id or picture name that are no UTF-8",
                )
            )
    return Row(
        number, parsed.id, parsed.shape, parsed.turns, parsed.pictures, faults,
        frozenset(parsed.unsupervised), tuple(parsed.ignored_keys), parsed.options, parsed.accepted,
    )  # fmt: skip


def _turn_faults(parsed: ParsedRow, faults: list[Fault], *, tidied: bool = False) -> bool:
    """Check roles, order, emptiness, special tokens and image tokens. Cheap checks come first,
    because this runs for every turn.

    Returns True, before it is done, if something needs `normalize_turns`, which fixes or rejects
    it.
    """
    expected, answered, known, markers = "user", False, True, 0
    for index, (written, text) in enumerate(parsed.turns, 1):
        role = ROLE_NAMES.get(written)
        if role != expected:
            if not tidied and _may_be_tidied(role, index, text, parsed):
                return True
            known = (role == "system" and index == 1) or _misplaced(
                role, written, index, expected, known, faults
            )
            if role is None:
                continue
        if role == "assistant":
            expected = "user"
            answered = answered or index - 1 not in parsed.unsupervised
        elif role == "user" or index > 1:
            expected = "assistant" if role == "user" else "user"
        if "<" in text or "[" in text or "{" in text:
            found = _tags(text, role, index, faults, tidied=tidied)
            if found < 0:
                return True
            markers += found
        if len(text) > MAX_ANSWER_LENGTH or not text.isascii() or not text or text.isspace():
            _text_faults(text, role, written, index, faults)
    if known:
        _last_faults(parsed, faults, answered=answered, asked=expected == "assistant")
        _marker_faults(markers, parsed, faults)
    return False


def _may_be_tidied(role: str | None, index: int, text: str, parsed: ParsedRow) -> bool:
    """Whether an unexpected role may be an alias, an empty system text, or a turn to be merged with
    the previous one.
    """
    if role is None or (role == "system" and not text.strip()):
        return True
    return index > 1 and role == ROLE_NAMES.get(parsed.turns[index - 2][0])


def _misplaced(
    role: str | None, written: str, index: int, expected: str, known: bool, faults: list[Fault]
) -> Literal[False]:
    """Add the fault; for turns out of order only the first, because the others follow from it."""
    if role is None:
        tool = (
            "; phisense does not train on calls of tools"
            if written.strip().lower() in _TOOLS
            else ""
        )
        wanted = f"human or user, gpt or assistant, or system{tool}"
        faults.append(
            ("unknown-role", f"has turn {index} from {quote(written, 40)}, wanted {wanted}")
        )
    elif known:
        wanted = "a question" if expected == "user" else "an answer"
        faults.append(("wrong-order", f"has turn {index} from {quote(written)}, wanted {wanted}"))
    return False


def _last_faults(parsed: ParsedRow, faults: list[Fault], *, answered: bool, asked: bool) -> None:
    if not answered:
        weighed = "only answers of weight 0" if parsed.unsupervised else "no answer"
        faults.append(("no-answer", f"has {weighed}, so no token would be supervised"))
    elif asked:
        faults.append(("unanswered", "ends with a question"))


def _text_faults(text: str, role: str, written: str, index: int, faults: list[Fault]) -> None:
    if not text.strip():
        faults.append(("empty-turn", f"has an empty turn {index} from {quote(written)}"))
    if role == "assistant" and len(text) > MAX_ANSWER_LENGTH:
        faults.append(
            (
                "long-answer",
                f"has {len(text):,} characters in turn {index}, wanted at most"
                f" {MAX_ANSWER_LENGTH:,}",
            )
        )
    if not text.isascii() and not is_encodable(text):
        faults.append(
            ("not-utf8", f"has bytes or lone surrogates in turn {index} that are no UTF-8")
        )


def _tags(text: str, role: str, index: int, faults: list[Fault], *, tidied: bool) -> int:
    """The number of `<image>` markers of a question, -1 if the text must be normalized first. The
    most common case comes first.
    """
    found = text.count(IMAGE)
    if found == text.count("<") and role == "user" and "[" not in text and "{" not in text:
        return found
    if not tidied and may_contain_tag(text):
        return -1
    return _marks(text, found, role, index, faults)


def _marks(text: str, found: int, role: str, index: int, faults: list[Fault]) -> int:
    """The number of `<image>` markers of a question; elsewhere they are a fault, and so are special
    tokens anywhere.
    """
    may_hold = "<|" in text or (_OTHER_STARTS and any(start in text for start in _OTHER_STARTS))
    if may_hold and (control := _SPECIAL_TOKEN.search(text)):
        faults.append(
            ("control-token", f"holds the control token {control.group()[:40]} in turn {index}")
        )
    if not found or role == "user":
        return found
    faults.append(
        (
            "image-in-answer",
            (
                f"has {IMAGE} in turn {index},"
                f" {'an answer' if role == 'assistant' else 'the system text'}"
            ),
        )
    )
    return 0


def _marker_faults(markers: int, parsed: ParsedRow, faults: list[Fault]) -> None:
    pictures = len(parsed.pictures)
    if markers == pictures or any(code == "image-in-answer" for code, _ in faults):
        return
    if markers:
        faults.append(
            (
                "image-count",
                (
                    f"has {markers} {IMAGE} for {pictures} pictures, wanted as many of one as of"
                    " the other"
                ),
            )
        )
    elif parsed.shape in _MARKED or (parsed.shape == "pairs" and len(parsed.turns) > 3):
        # with a history the position is ambiguous
        faults.append(
            (
                "marker-added",
                f"has no {IMAGE} for its {pictures} picture{'s' if pictures > 1 else ''}",
            )
        )


def _name_embedded(parsed: ParsedRow) -> None:
    for index, picture in enumerate(parsed.pictures):
        if picture.data is not None:
            parsed.pictures[index] = ImageReference(content_name(picture.data), picture.data)


def content_name(data: bytes) -> str:
    """Name an embedded image by its content hash, so that equal images are one."""
    ending = next((ending for magic, ending in _FORMATS if data.startswith(magic)), None)
    if ending is None:
        ending = ".avif" if sniff(data[:HEAD_BYTES]) == AVIF else ".webp"
    return hashlib.sha256(data).hexdigest()[:24] + ending
