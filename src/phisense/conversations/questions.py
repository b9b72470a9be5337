"""Reads questions with known answers, for the merge and the evaluation: JSON or one row a line, in any of the usual namings.

    {"question_id": 7, "image": "a.jpg", "text": "What colour is the circle?", "answer": "Red.", "category": "colour"}
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}                        POPE
    {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}]}      LLaVA: its first exchange

An answer may also be a list under `answers`. A question without a kind is `other`, or `description` where the right answer
is a text of more than `LONG` words, which no exact match can score.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConversationError
from .read import usable
from .rows import examine
from .sources import open_source
from .types import IMAGE, Conversation, Question

LONG = 12
#: Of these an exact match says nothing.
CAPTION_KINDS = ("caption", "description", "detail")
_KIND = ("category", "kind", "type")


def read_questions(path: Path) -> list[Question]:
    """Every question of `path`, with ids made unique. Raises ConversationError, naming the row, for one that cannot be used."""
    seen: Counter[str] = Counter()
    unique = []
    for number, raw, fault in open_source(path).rows():
        question = _question(usable(examine(raw, number, fault), path), raw, f"{path}, row {number}")
        seen[question.id] += 1
        times = seen[question.id]
        unique.append(question if times == 1 else replace(question, id=f"{question.id}#{times}"))
    return unique


def _question(conversation: Conversation, raw: dict[str, Any], called: str) -> Question:
    """The first exchange; with every answer that the row accepts."""
    if len(conversation.images) > 1:
        raise ConversationError(f"{called} has several pictures", wanted="at most one in a question")
    at = next(i for i, message in enumerate(conversation.messages) if message.role == "user")
    accepted = raw.get("answers")
    told = tuple(map(str, accepted)) if isinstance(accepted, list) and accepted else (conversation.messages[at + 1].text,)
    text = conversation.messages[at].text.replace(IMAGE, "").strip()
    kind = next((str(raw[key]) for key in _KIND if raw.get(key) is not None), None) or _kind(told)
    return Question(conversation.id, conversation.images[0] if conversation.images else None, text, told, kind)


def _kind(answers: tuple[str, ...]) -> str:
    return "description" if min(len(answer.split()) for answer in answers) > LONG else "other"
