"""Reads questions with known answers, for the merge and the evaluation: JSON or one row a line, in any of the usual namings.

    {"question_id": 7, "image": "a.jpg", "text": "What colour is the circle?", "answer": "Red.", "category": "colour"}
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}                        POPE
    {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}]}      LLaVA: its first exchange

An answer may also be a list under `answers`. A question without a kind is `other`, or `description` where the right answer
is a text of more than `LONG` words, which no exact match can score.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import ConversationError
from .read import image_name_defects, parse_row, read_rows
from .types import IMAGE, Question

LONG = 12
_TEXT, _ANSWER, _KIND, _ID = (
    ("text", "question", "instruction"),
    ("answer", "label", "output"),
    ("category", "kind", "type"),
    ("question_id", "id"),
)


def read_questions(path: Path) -> list[Question]:
    """Every question of `path`, with ids made unique. Raises ConversationError, naming the row, for one that cannot be used."""
    questions = [_parse(row, number) for number, row in read_rows(path)]
    seen: Counter[str] = Counter()
    unique = []
    for question in questions:
        seen[question.id] += 1
        times = seen[question.id]
        unique.append(
            question if times == 1 else Question(f"{question.id}#{times}", question.image, question.text, question.answers, question.kind)
        )
    return unique


def _parse(row: Any, number: int) -> Question:
    if isinstance(row, dict) and "conversations" in row:
        return _from_conversation(row, number)
    text, answer = _first(row, _TEXT), _first(row, _ANSWER)
    answers = row.get("answers", answer) if isinstance(row, dict) else None
    accepted = (answers,) if isinstance(answers, (str, int, float)) else tuple(answers or ())
    if not isinstance(text, str) or not text.strip() or not accepted:
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ConversationError(
            f"row {number} is not a question",
            got=f"{keys}",
            wanted="a text and an answer, or LLaVA conversations",
            do="Give it both or drop the row",
        )
    defects = image_name_defects(row.get("image"))
    if defects or isinstance(row.get("image"), list):
        raise ConversationError(f"row {number}: {defects[0] if defects else 'has several pictures, wanted one'}")
    told = tuple(str(one) for one in accepted)
    text = text.replace(IMAGE, "").strip()
    return Question(str(_first(row, _ID) or number), row.get("image"), text, told, str(_first(row, _KIND) or _kind(told)))


def _from_conversation(row: dict[str, Any], number: int) -> Question:
    conversation = parse_row(row, number)
    if len(conversation.images) > 1:
        raise ConversationError(f"row {number} has several pictures", wanted="at most one in a question")
    at = next(i for i, message in enumerate(conversation.messages) if message.role == "user")
    told = (conversation.messages[at + 1].text,)
    text = conversation.messages[at].text.replace(IMAGE, "").strip()
    image = conversation.images[0] if conversation.images else None
    return Question(conversation.id, image, text, told, _kind(told))


def _kind(answers: tuple[str, ...]) -> str:
    return "description" if min(len(answer.split()) for answer in answers) > LONG else "other"


def _first(row: Any, keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if isinstance(row, dict) and row.get(key) is not None), None)
