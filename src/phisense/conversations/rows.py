"""One raw row -> its turns and pictures, and everything that is wrong with them. This is the inner loop of the check."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from .defects import KINDS
from .documents import Fault
from .shapes import ROLES, Shaped, shape_row
from .types import IMAGE, Conversation, Message, Picture

LONGEST_ANSWER = 20_000  # characters; no answer of that length fits into a window of 4,096 tokens
_CONTROL = re.compile(r"<\|[A-Za-z_0-9]+\|>")
_MARKED = ("llava", "sharegpt")  # other shapes never write a marker
_FORMATS = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*", ".tif"), (b"MM\0*", ".tif"))


@dataclass(slots=True)
class Row:
    """`turns` are (role, text) in the order given, `faults` (code, sentence). A row without a rejecting fault is a conversation."""

    number: int
    id: str | None
    shape: str
    turns: list[tuple[str, str]]
    pictures: list[Picture]
    faults: list[Fault]

    @property
    def good(self) -> bool:
        return not any(KINDS[code].rejects for code, _ in self.faults)

    @property
    def embedded(self) -> dict[str, bytes]:
        """Pictures that came inside the file, by name."""
        return {picture.name: picture.data for picture in self.pictures if picture.data is not None}

    def conversation(self) -> Conversation:
        """Only of a good row. A missing marker is put where published sets mean it: at the head of the first question."""
        messages = [Message(ROLES[role], text.strip()) for role, text in self.turns]  # type: ignore[arg-type]
        images = tuple(picture.name for picture in self.pictures)
        if images and not any(IMAGE in message.text for message in messages):
            first = next(i for i, message in enumerate(messages) if message.role == "user")
            messages[first] = Message("user", "\n".join([*[IMAGE] * len(images), messages[first].text]))
        return Conversation(self.id if self.id is not None else str(self.number), tuple(messages), images)


def examine(raw: Any, number: int, fault: Fault | None = None) -> Row:
    """`fault` is what the document itself had against the row."""
    if fault is not None and raw is None:
        return Row(number, None, "unknown", [], [], [fault])
    shaped = shape_row(raw)
    faults = [fault, *shaped.faults] if fault is not None else shaped.faults
    shape_is_sound = not faults or not any(KINDS[code].rejects for code, _ in faults)
    if shape_is_sound:
        _turn_faults(shaped, faults)
    if shaped.pictures:
        _name_embedded(shaped)
    row = Row(number, shaped.id, shaped.shape, shaped.turns, shaped.pictures, faults)
    names = [picture.name for picture in shaped.pictures]
    for text in (shaped.id or "", *names):
        if not text.isascii() and not _encodes(text):
            faults.append(("not-utf8", "has bytes or lone surrogates in its id or picture name that are no UTF-8"))
    return row


def _turn_faults(shaped: Shaped, faults: list[Fault]) -> None:
    """Roles, order, emptiness, control tokens and slots; the cheap tests come first, for this runs once a turn."""
    expected, answered, known = "user", False, True
    markers = 0
    for at, (written, text) in enumerate(shaped.turns, 1):
        role = ROLES.get(written)
        if role is None:
            faults.append(("unknown-role", f"has turn {at} from {written[:40]!r}, wanted human or user, gpt or assistant, or system"))
            known = False
            continue
        if not (role == "system" and at == 1):
            if role != expected and known:
                faults.append(
                    ("wrong-order", f"has turn {at} from {written!r}, wanted {'a question' if expected == 'user' else 'an answer'}")
                )
                known = False
            expected = "assistant" if role == "user" else "user"
        answered = answered or role == "assistant"
        if not text or text.isspace():
            faults.append(("empty-turn", f"has an empty turn {at} from {written!r}"))
        if "<" in text:
            markers += _marks(text, role, at, faults)
        if role == "assistant" and len(text) > LONGEST_ANSWER:
            faults.append(("long-answer", f"has {len(text):,} characters in turn {at}, wanted at most {LONGEST_ANSWER:,}"))
        if not text.isascii() and not _encodes(text):
            faults.append(("not-utf8", f"has bytes or lone surrogates in turn {at} that are no UTF-8"))
    if not answered and known:
        faults.append(("no-answer", "has no answer, so no token would be supervised"))
    elif expected == "assistant" and known:
        faults.append(("unanswered", "ends with a question"))
    if known:
        _slot_faults(markers, shaped, faults)


def _marks(text: str, role: str, at: int, faults: list[Fault]) -> int:
    """The `<image>` markers of a question; elsewhere they are a fault, and so are control tokens anywhere."""
    if "<|" in text and (control := _CONTROL.search(text)):
        faults.append(("control-token", f"holds the control token {control.group()[:40]} in turn {at}"))
    found = text.count(IMAGE)
    if not found or role == "user":
        return found
    faults.append(("image-in-answer", f"has {IMAGE} in turn {at}, {'an answer' if role == 'assistant' else 'the system text'}"))
    return 0


def _slot_faults(markers: int, shaped: Shaped, faults: list[Fault]) -> None:
    pictures = len(shaped.pictures)
    if markers == pictures or any(code == "image-in-answer" for code, _ in faults):
        return
    if markers:
        faults.append(("image-count", f"has {markers} {IMAGE} for {pictures} pictures, wanted as many of one as of the other"))
    elif shaped.shape in _MARKED:
        faults.append(("marker-added", f"has no {IMAGE} for its {pictures} picture{'s' if pictures > 1 else ''}"))


def _name_embedded(shaped: Shaped) -> None:
    for at, picture in enumerate(shaped.pictures):
        if picture.data is not None:
            shaped.pictures[at] = Picture(content_name(picture.data), picture.data)


def content_name(data: bytes) -> str:
    """Bytes get a name of their own content, so that equal pictures are one."""
    ending = next((ending for magic, ending in _FORMATS if data.startswith(magic)), ".webp")
    return hashlib.sha256(data).hexdigest()[:24] + ending


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
