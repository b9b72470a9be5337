"""Every accepted shape of a row, turned into one: turns of (role, text) and pictures.

    llava       {"id", "image": name | [names] | null, "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}
    sharegpt    {"conversations" or "messages": [...], "images": [...], "system"}                 LLaMA-Factory
    messages    {"messages": [{"role", "content": text or parts}], "images": [...]}               TRL, `phisense convert`
    openai      {"messages": [{"role", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}, ...]}]}
    texts       {"images": [...], "texts": [{"user", "assistant"}]}                               Cauldron, FineVision
    pairs       {"file_name" or "image", "question", "answer"} or {"file_name", "text" or "caption"}   image folders

A picture is a name, a data URL, or `datasets`' struct `{"bytes", "path"}`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any

from .types import IMAGE, Picture

#: What a picture with only a caption is asked: one of LLaVA's own prompts for alignment.
CAPTION_QUESTION = "Provide a brief description of the given image."
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PICTURE_KEYS = ("images", "image", "image_file_names", "images_file_names", "file_names")
_NAMES, _QUESTIONS = ("file_name", "image", "images", "image_path"), ("question", "query", "instruction", "prompt")
_ANSWERS, _CAPTIONS = ("answer", "answers", "label", "output", "response"), ("caption", "captions", "text", "description")
_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(slots=True)
class Shaped:
    """`turns` are (role as written, text); `faults` (code, sentence) of what could not be turned."""

    shape: str
    id: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


def shape_row(row: Any) -> Shaped:
    """Any raw row; one of no known shape comes back with a fault."""
    if not isinstance(row, dict):
        return Shaped("unknown", faults=[("unknown-shape", f"is a {type(row).__name__}, wanted a mapping")])
    if row.get("conversations") is not None:
        return _spoken(row, "conversations", "sharegpt" if "images" in row else "llava")
    if row.get("messages") is not None:
        return _spoken(row, "messages", "messages")
    if isinstance(row.get("texts"), list):
        return _texts(row)
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return _spoken({**row, "messages": [*row["prompt"], *row["completion"]]}, "messages", "messages")
    return _pair(row)


def _id(row: dict[str, Any]) -> str | None:
    found = row.get("id", row.get("question_id"))
    return None if found is None else str(found)


def _spoken(row: dict[str, Any], key: str, shape: str) -> Shaped:
    shaped = Shaped(shape, _id(row))
    for name in _PICTURE_KEYS:
        if (value := row.get(name)) is not None:
            _add_pictures(shaped, value)
            break
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        shaped.faults.append(("no-turns", f"has no turns under {key!r}, wanted a list of them"))
        return shaped
    if isinstance(system := row.get("system"), str) and system.strip():
        shaped.turns.append(("system", system))
    for at, turn in enumerate(turns, 1):
        if type(turn) is dict:
            if (role := turn.get("from")) is not None:
                text = turn.get("value")
            else:
                role, text = turn.get("role"), turn.get("content")
            if type(text) is str and type(role) is str:
                shaped.turns.append((role, text))
                continue
            if isinstance(text, list) and isinstance(role, str):
                shaped.turns.append((role, _parts(shaped, text, at)))
                continue
        wanted = '{"from": ..., "value": text}' if key == "conversations" else '{"role": ..., "content": text or parts}'
        shaped.faults.append(("bad-turn", f"has {str(turn)[:60]!r} as turn {at}, wanted {wanted}"))
    return shaped


def _parts(shaped: Shaped, parts: list[Any], at: int) -> str:
    """The text of a message in parts; its pictures, where the parts carry them, are added in order."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(IMAGE)
            if kind == "image_url":
                shaped.shape = "openai"
            carried = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
            if isinstance(carried, dict) and "url" in carried:
                carried = carried["url"]
            if carried is not None:
                _add_pictures(shaped, carried)
        else:
            shaped.faults.append(("unsupported-part", f"has a part of type {kind!r} in turn {at}, wanted text or image"))
    return "\n".join(texts)


def _texts(row: dict[str, Any]) -> Shaped:
    shaped = Shaped("texts", _id(row))
    if row.get("images") is not None:
        _add_pictures(shaped, row["images"])
    for at, pair in enumerate(row["texts"], 1):
        told = [pair.get("user"), pair.get("assistant")] if isinstance(pair, dict) else []
        if len(told) == 2 and all(isinstance(text, str) for text in told):
            shaped.turns += [("user", str(told[0])), ("assistant", str(told[1]))]
        else:
            shaped.faults.append(("bad-turn", f'has {str(pair)[:60]!r} as text {at}, wanted {{"user": text, "assistant": text}}'))
    if not row["texts"]:
        shaped.faults.append(("no-turns", "has no turns under 'texts', wanted a list of them"))
    return shaped


def _pair(row: dict[str, Any]) -> Shaped:
    shaped = Shaped("pairs", _id(row))
    name, question, answer, caption = (_first(row, keys) for keys in (_NAMES, _QUESTIONS, _ANSWERS, _CAPTIONS))
    if name is not None:
        _add_pictures(shaped, name)
    if shaped.id is None and isinstance(name, str) and not name.startswith("data:"):
        shaped.id = name
    if question is None and answer is None and name is not None and caption is not None:
        question, answer = CAPTION_QUESTION, caption
    elif question is None and answer is not None:
        question = caption
    if isinstance(answer, list) and answer and all(isinstance(one, str) for one in answer):
        if len(answer) > 1:
            shaped.faults.append(("more-captions", f"has {len(answer)} captions or answers"))
        answer = answer[0]
    if isinstance(question, str) and isinstance(answer, (str, int, float)):
        shaped.turns += [("user", question), ("assistant", str(answer))]
    elif isinstance(question, str) and answer is None:
        shaped.turns.append(("user", question))
    else:
        shaped.faults.append(("unknown-shape", f"has the keys {', '.join(map(str, sorted(row, key=str)))[:120] or 'none'}"))
        shaped.shape = "unknown"
    return shaped


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _add_pictures(shaped: Shaped, value: Any) -> None:
    for one in value if isinstance(value, list) else (value,):
        if type(one) is str and one:
            picture, fault = _named(one)
        elif isinstance(one, bytes):
            picture, fault = Picture("", one), None
        elif isinstance(one, dict) and isinstance(one.get("bytes"), bytes):
            picture, fault = Picture(str(one.get("path") or ""), one["bytes"]), None
        elif isinstance(one, dict) and isinstance(one.get("path"), str) and one["path"]:
            picture, fault = _named(one["path"])
        else:
            picture, fault = None, ("bad-picture-name", f"names its picture as {str(one)[:60]!r}, wanted a file name, bytes or a list")
        if picture is not None:
            shaped.pictures.append(picture)
        if fault is not None:
            shaped.faults.append(fault)


def _named(name: str) -> tuple[Picture | None, tuple[str, str] | None]:
    if name.startswith("data:"):
        head = _DATA_URL.match(name)
        try:
            return Picture("", base64.b64decode(name[head.end() if head else 0 :] if head else "?", validate=True)), None
        except (binascii.Error, ValueError):
            return None, ("bad-data-url", f"has the data URL {name[:40]!r}, wanted data:image/...;base64, and base64")
    if _REMOTE.match(name):
        return None, ("remote-url", f"names the picture {name[:120]!r}, which is on the network")
    if leaves_its_folder(name):
        return None, ("path-escape", f"names the picture {name[:120]!r}, wanted a path inside the picture folders")
    return Picture(name), None


def leaves_its_folder(name: str) -> bool:
    """Whether a picture's name is no path that stays inside the picture folders."""
    return name.startswith(("/", "~")) or "\\" in name or ":" in name or "\0" in name or (".." in name and ".." in name.split("/"))
