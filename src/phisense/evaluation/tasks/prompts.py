"""Prompts of LLaVA-1.5's published evaluations (github.com/haotian-liu/LLaVA,
docs/Evaluation.md), and for benchmarks that are not among these, of lmms-eval.
"""

from __future__ import annotations

from ...conversations import Question
from ..answer_metrics import OPTION_LETTERS

SHORT_ANSWER = "Answer the question using a single word or phrase."
SINGLE_WORD = "Answer the question with a single word."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def short_answer_prompt(question: Question) -> str:
    return f"{question.text}\n{SHORT_ANSWER}"


def multiple_choice_prompt(question: Question) -> str:
    options = "\n".join(
        f"{OPTION_LETTERS[i]}. {choice}" for i, choice in enumerate(question.choices)
    )
    return f"{question.text}\n{options}\n{OPTION_LETTER}"
