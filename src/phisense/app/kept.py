"""A conversation that the visitor's browser keeps: what the browser is given, and what it brings
back after a reload. Nothing of it stays here, and what comes back is as untrusted as any request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from ..chat.session import ChatSession, Turn
from ..errors import ChatError
from .asgi import RejectedError
from .limits import Limits
from .request_validation import parse_json_body

_KEYS = {"turns", "picture"}


@dataclass(frozen=True, slots=True)
class KeptConversation:
    """The turns of a conversation, and whether it was about a picture. The picture itself is no
    part of it: the browser uploads its copy like any other.
    """

    turns: tuple[Turn, ...]
    picture: bool


def dump_conversation(session: ChatSession, limits: Limits) -> str:
    """The conversation as JSON text for the browser, its newest turns that fit the limit; "" if
    there are none.
    """
    turns = [[turn.question, turn.answer] for turn in session.turns]
    while turns:
        text = json.dumps({"turns": turns, "picture": session.has_image}, ensure_ascii=False)
        # as a request brings it back: a text within JSON
        if len(orjson.dumps(text)) <= limits.max_kept_bytes:
            return text
        del turns[0]
    return ""


def parse_conversation(text: str, limits: Limits) -> KeptConversation:
    """Read what a browser brings back. Raises ChatError unless it is what `dump_conversation`
    could have written: its shape, texts that are not empty, and its size.
    """
    if len(orjson.dumps(text)) > limits.max_kept_bytes:
        raise _unreadable("more than is ever kept")
    try:
        found = parse_json_body(text.encode())
    except RejectedError as error:
        raise _unreadable(error.detail) from None
    if not isinstance(found, dict) or found.keys() != _KEYS:
        raise _unreadable("other fields")
    if not isinstance(found["picture"], bool) or not isinstance(found["turns"], list):
        raise _unreadable("fields of other kinds")
    if not found["turns"] or not all(map(_is_turn, found["turns"])):
        raise _unreadable("turns that are no question and answer")
    return KeptConversation(tuple(Turn(*turn) for turn in found["turns"]), found["picture"])


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, list)
        and len(turn) == 2
        and all(isinstance(said, str) and said.strip() for said in turn)
    )


def _unreadable(got: str) -> ChatError:
    return ChatError(
        "what this browser kept cannot be read",
        got=got,
        wanted="a conversation of this page",
        do="Delete it under Settings, and begin anew",
    )
