"""Reads LLaVA conversations, a JSON list or one row a line:

    {"id": "000000033471", "image": "000000033471.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"},
                                                                          {"from": "gpt", "value": "..."}]}

`image` may be missing, one name, or a list. A row is turned into a `Conversation` or refused with its number (from 1) and id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from ..errors import ConversationError
from .types import IMAGE, Conversation, Message, Role

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_CONTROL = re.compile(r"<\|[a-z_0-9]+\|>")


def read_conversations(path: Path) -> list[Conversation]:
    """Every row of `path`. Raises ConversationError for the first one that cannot be used; `check` lists them all."""
    return [parse_row(row, number) for number, row in read_rows(path)]


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered raw rows of a JSON list or of JSON lines. Raises ConversationError if the file is neither."""
    if not path.is_file():
        raise ConversationError(f"there is no data file {path}")
    data = path.read_bytes()
    if data.lstrip()[:1] == b"[":
        try:
            rows = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ConversationError(f"{path} is not JSON", got=str(error)) from error
        yield from enumerate(rows, 1)
        return
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ConversationError(
                    f"{path} is not JSON lines", got=f"line {number}: {error}", wanted="a JSON list, or one row a line"
                ) from error


def parse_row(row: Any, number: int) -> Conversation:
    """One checked conversation. Raises ConversationError for the row's first defect."""
    defects = row_defects(row, number)
    if defects:
        raise ConversationError(f"row {number}{_called(row)}: {defects[0]}", do="phisense check lists every defect")
    images = row_images(row)
    messages = [Message(_ROLES[turn["from"]], turn["value"].strip()) for turn in row["conversations"]]
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    if images and not any(IMAGE in message.text for message in messages):  # published sets leave the marker out
        marks = "\n".join([IMAGE] * len(images))
        messages[first] = Message("user", f"{marks}\n{messages[first].text}")
    return Conversation(str(row.get("id", number)), tuple(messages), images)


def row_images(row: dict[str, Any]) -> tuple[str, ...]:
    image = row.get("image")
    if image is None:
        return ()
    return (image,) if isinstance(image, str) else tuple(image)


def row_defects(row: Any, number: int) -> list[str]:
    """What is wrong with one raw row, a sentence for each defect; empty if it can be used."""
    if not isinstance(row, dict):
        return [f"is a {type(row).__name__}, wanted a mapping with id, image and conversations"]
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return ["has no conversations, wanted a list of turns"]
    found = [*image_name_defects(row.get("image")), *_turn_defects(turns)]
    return found or _slot_defects(row, turns)


def image_name_defects(image: Any) -> list[str]:
    names = [] if image is None else [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return [f"names its picture as {image!r}, wanted a file name or a list of them"]
    outside = [name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name]
    return [f"names the picture {name!r}, wanted a path inside the images folder" for name in outside]


def _turn_defects(turns: list[Any]) -> list[str]:
    found: list[str] = []
    expected = "user"
    for at, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            found.append(f'turn {at} is {str(turn)[:60]!r}, wanted {{"from": ..., "value": text}}')
            continue
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            found.append(f"turn {at} is from {turn.get('from')!r}, wanted human, gpt or system")
            continue
        if role == "system" and at == 1:
            continue
        if role != expected:
            found.append(f"turn {at} is from {turn['from']!r}, wanted {'human' if expected == 'user' else 'gpt'}")
        expected = "assistant" if role == "user" else "user"
        if not turn["value"].strip():
            found.append(f"turn {at} from {turn['from']!r} is empty")
        if control := _CONTROL.search(turn["value"]):
            found.append(f"turn {at} holds the control token {control.group()}, which only the chat template may write")
    if not any(isinstance(turn, dict) and _ROLES.get(str(turn.get("from"))) == "assistant" for turn in turns):
        found.append("has no answer, so no token would be supervised")
    return found


def _slot_defects(row: dict[str, Any], turns: list[dict[str, str]]) -> list[str]:
    pictures = len(row_images(row))
    by_user = sum(turn["value"].count(IMAGE) for turn in turns if _ROLES[turn["from"]] == "user")
    elsewhere = sum(turn["value"].count(IMAGE) for turn in turns) - by_user
    if elsewhere:
        return [f"has {IMAGE} in an answer or system text, wanted it in questions only"]
    if by_user not in (pictures, 0) or (by_user and not pictures):
        return [f"has {by_user} {IMAGE} for {pictures} pictures, wanted as many of one as of the other"]
    return []


def _called(row: Any) -> str:
    return f" (id {row['id']})" if isinstance(row, dict) and "id" in row else ""
