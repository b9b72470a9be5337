"""easy-VQA (Victor Zhou, MIT): one shape on a plain ground, 64 pixels a side; its training and test
questions as conversations and as held-out questions.

Its README names no figure. The README of its authors' network (easy-VQA-keras) says 99.5 %, of a
larger network than the one it describes, trained on twice as many images.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from phisense.errors import DataError

from .questions import conversation_of, write_lines

YES_NO = "yes/no"


@dataclass(frozen=True, slots=True)
class EasyVqaData:
    """What `prepare` wrote: a conversation for each training question, and those of them that ask
    for a shape or a color; the test questions; and how many there are of each.
    """

    align: Path
    instruct: Path
    held_out: Path
    images: Path
    trained_images: int
    trained_questions: int
    held_out_questions: int


def prepare(source: Path, out: Path, *, limit: int | None = None) -> EasyVqaData:
    """Write the package's folder `data` as training conversations, test questions and images.

    `limit` takes that many training images, and half as many for testing. Raises DataError for an
    answer that answers.txt does not list.
    """
    answers = set((source / "answers.txt").read_text(encoding="utf-8").split())
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = {}
    for split, most in (("train", limit), ("test", None if limit is None else limit // 2)):
        rows[split] = _by_image(source / split / "questions.json", answers, most)
        for number in rows[split]:
            shutil.copy(
                source / split / "images" / f"{number}.png", images / _image_name(split, number)
            )
    questions = {
        split: [one for number, asked in of.items() for one in _questions(split, number, asked)]
        for split, of in rows.items()
    }
    talks, tests = [conversation_of(one) for one in questions["train"]], questions["test"]
    named = [conversation_of(one) for one in questions["train"] if one["category"] != YES_NO]
    for file, written in (("align.json", named), ("instruct.json", talks)):
        (out / file).write_text(json.dumps(written), encoding="utf-8")
    write_lines(out / "heldout.jsonl", tests)
    return EasyVqaData(
        out / "align.json",
        out / "instruct.json",
        out / "heldout.jsonl",
        images,
        len(rows["train"]),
        len(talks),
        len(tests),
    )


def _by_image(path: Path, answers: set[str], most: int | None) -> dict[int, list[tuple[str, str]]]:
    """Questions and answers by image number, of the first `most` images."""
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in json.loads(path.read_text(encoding="utf-8")):
        if answer not in answers:
            raise DataError("easy-VQA has an answer that it does not list", got=answer)
        found[number].append((question, answer))
    return {number: found[number] for number in sorted(found)[:most]}


def _image_name(split: str, number: int) -> str:
    return f"{split}-{number:04}.png"


def _questions(split: str, number: int, asked: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {
            "question_id": f"{split}-{number}-{place}",
            "image": _image_name(split, number),
            "text": question,
            "answer": answer,
            "category": _kind(answer),
        }
        for place, (question, answer) in enumerate(asked)
    ]


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return YES_NO
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"
