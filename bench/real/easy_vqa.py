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
from typing import Any

from phisense.errors import DataError

AUTHORS_ACCURACY = 0.995  # with 8,000 training images instead of 4,000
IMAGE_LINE = "<image>\n"


@dataclass(frozen=True, slots=True)
class EasyVqaData:
    """What `prepare` wrote: one conversation for each training image, the test questions, and how
    many there are of each.
    """

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
    talks = [_conversation(number, asked) for number, asked in rows["train"].items()]
    tests = [
        {
            "question_id": f"test-{number}-{place}",
            "image": _image_name("test", number),
            "text": question,
            "answer": answer,
            "category": _kind(answer),
        }
        for number, asked in rows["test"].items()
        for place, (question, answer) in enumerate(asked)
    ]
    (out / "instruct.json").write_text(json.dumps(talks), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in tests)
    (out / "heldout.jsonl").write_text(lines, encoding="utf-8")
    return EasyVqaData(
        out / "instruct.json",
        out / "heldout.jsonl",
        images,
        len(talks),
        sum(map(len, rows["train"].values())),
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


def _conversation(number: int, asked: list[tuple[str, str]]) -> dict[str, Any]:
    turns = []
    for place, (question, answer) in enumerate(asked):
        turns += [
            {"from": "human", "value": question if place else IMAGE_LINE + question},
            {"from": "gpt", "value": answer},
        ]
    return {
        "id": f"train-{number}",
        "image": _image_name("train", number),
        "conversations": turns,
    }


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"
