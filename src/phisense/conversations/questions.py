"""Read questions with reference answers, for the merge and the evaluation: JSON or JSON lines, in
any common naming.

    {"question_id": 7, "image": "a.jpg", "text": "What color is the circle?", "answer": "Red.",
    "category": "color"}
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    POPE
    {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}]}
    LLaVA: its first exchange

An answer may also be a list of equally correct answers. Options (`choices`, `options`, columns A, B
...) are part of the question; its answer may be a letter, a number or a text, and is correct as a
letter and as a text. A question without a kind is `other`, or `description` if the correct answer
is a text of more than `LONG_ANSWER_WORDS` words, which exact match cannot score. In scripts without
spaces, words are estimated from letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConversationError
from ..unicode_scripts import word_count
from .cells import is_empty
from .read import require_conversation, warn_ignored_keys
from .rows import Row, validate_row
from .sources import open_data_source
from .types import IMAGE, Conversation, Question

LONG_ANSWER_WORDS = 12
#: Kinds for which exact match is meaningless.
CAPTION_KINDS = ("caption", "description", "detail")
_KIND = ("category", "kind", "type")


def read_questions(path: Path) -> list[Question]:
    """All questions of `path`, with unique ids. Raises ConversationError, naming the row, for an
    unusable one.
    """
    seen: Counter[str] = Counter()
    unique = []
    raws: list[dict[str, Any]] = []

    def examined() -> Iterator[Row]:
        for number, raw, fault in open_data_source(path).rows():
            raws[:] = [raw]
            yield validate_row(raw, number, fault)

    for row in warn_ignored_keys(examined(), path):
        question = _question(
            row, require_conversation(row, path), raws[0], f"{path}, row {row.number}"
        )
        seen[question.id] += 1
        times = seen[question.id]
        unique.append(question if times == 1 else replace(question, id=f"{question.id}#{times}"))
    return unique


def _question(row: Row, conversation: Conversation, raw: dict[str, Any], name: str) -> Question:
    """The first exchange of a row, with every answer that the row accepts."""
    if len(conversation.images) > 1:
        raise ConversationError(
            f"{name} has several pictures",
            got=f"{len(conversation.images)}",
            wanted="at most one in a question",
            do="Training takes such rows, data.held_out and evaluate do not: leave them out there",
        )
    at = next(i for i, message in enumerate(conversation.messages) if message.role == "user")
    if row.shape == "pairs" and len(conversation.messages) > 2:
        raise ConversationError(
            f"{name} has a system text or a history",
            wanted="a question that stands by itself",
            do="Write into the question what it needs",
        )
    if not conversation.messages[at + 1].supervised:
        raise ConversationError(
            f"{name} has the weight 0 at its first answer",
            wanted="a right answer",
            do="Drop the row, or the weight",
        )
    told = row.accepted or (conversation.messages[at + 1].text,)
    text = conversation.messages[at].text.replace(IMAGE, "").strip()
    named = {str(key).strip().lower(): value for key, value in raw.items() if not is_empty(value)}
    kind = next((str(named[key]) for key in _KIND if key in named), None) or _kind(told)
    return Question(
        conversation.id,
        conversation.images[0] if conversation.images else None,
        text,
        told,
        kind,
        row.options,
    )


def _kind(answers: tuple[str, ...]) -> str:
    return "description" if min(map(word_count, answers)) > LONG_ANSWER_WORDS else "other"
