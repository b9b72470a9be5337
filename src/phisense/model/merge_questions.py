"""The held-out questions that a merge compares on: what is checked before training is what the
merge will read.
"""

from __future__ import annotations

from ..conversations import Question, read_questions
from ..errors import MergeError
from ..recipe import Recipe


def merge_questions(recipe: Recipe) -> list[Question]:
    """The questions of `data.held_out`, in the order of the files. Raises MergeError if there are
    none, ConversationError for a file that cannot be read.
    """
    questions = [
        question for file in recipe.data.held_out for question in read_questions(recipe.path(file))
    ]
    if not questions:
        raise MergeError(
            "there is nothing to compare on",
            got="no held-out question",
            wanted="some",
            do="Set data.held_out in the recipe",
        )
    return questions
