"""How LLaVA-1.5's published evaluations put their questions (github.com/haotian-liu/LLaVA, docs/Evaluation.md)."""

from __future__ import annotations

from ...conversations import Question
from ..answers import LETTERS

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def short(question: Question) -> str:
    return f"{question.text}\n{SHORT}"


def multiple_choice(question: Question) -> str:
    options = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(question.choices))
    return f"{question.text}\n{options}\n{LETTER}"
