"""Pictures to begin with, each with questions that are ready to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..conversations import read_questions


@dataclass(frozen=True, slots=True)
class Example:
    picture: Path
    questions: tuple[str, ...]


def find_examples(questions: Path, images: Path, pictures: int = 6, each: int = 3) -> list[Example]:
    """The first `pictures` pictures that have at least `each` questions in a file of questions."""
    by_picture: dict[str, list[str]] = {}
    for question in read_questions(questions):
        if question.image is not None and question.text not in by_picture.setdefault(question.image, []):
            by_picture[question.image].append(question.text)
    chosen = [(name, texts) for name, texts in by_picture.items() if len(texts) >= each and (images / name).is_file()]
    return [Example(images / name, tuple(texts[:each])) for name, texts in chosen[:pictures]]
