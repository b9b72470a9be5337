"""Example images with suggested questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..conversations import read_questions


@dataclass(frozen=True, slots=True)
class Example:
    """An example image, and the questions about it that the page suggests."""

    image: Path
    questions: tuple[str, ...]


def find_examples(
    questions: Path, images: Path, max_examples: int = 6, questions_each: int = 3
) -> list[Example]:
    """Return the first `max_examples` images that have at least `questions_each` distinct questions
    in the file `questions`.
    """
    by_picture: dict[str, list[str]] = {}
    for question in read_questions(questions):
        if question.image is not None and question.text not in by_picture.setdefault(
            question.image, []
        ):
            by_picture[question.image].append(question.text)
    chosen = [
        (name, texts)
        for name, texts in by_picture.items()
        if len(texts) >= questions_each and (images / name).is_file()
    ]
    return [
        Example(images / name, tuple(texts[:questions_each]))
        for name, texts in chosen[:max_examples]
    ]
