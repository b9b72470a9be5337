"""The photographs' conversations: 200 images kept apart from training by the hash of their names,
and the questions of their conversations as held-out questions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phisense.errors import DataError

from .questions import IMAGE_LINE, conversation_of, write_lines

APART = 200  # images
CAPTION = "Describe the picture in one sentence."
#: Kind of a question by how it begins, as in the held-out questions' file.
KINDS = {"Is there": "yes/no", "Where is": "place", "What is the main": "subject"}


@dataclass(frozen=True, slots=True)
class PhotographsData:
    """What `prepare` wrote: training conversations, held-out questions, and questions about the
    images that were kept apart.
    """

    align: Path
    instruct: Path
    held_out: Path
    apart: Path
    images: Path
    trained_images: int
    held_out_questions: int
    apart_questions: int


def kept_apart(names: set[str], count: int = APART) -> set[str]:
    """`count` of the image names, the same ones whenever and wherever it is called."""
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def prepare(
    source: Path, out: Path, *, apart: int = APART, limit: int | None = None
) -> PhotographsData:
    """Write captions and questions to train on, and questions about `apart` further images, into
    `out`.

    `source` holds align.json, instruct.json, heldout.jsonl and images/. `limit` takes that many of
    the images and of the held-out questions. Raises DataError if a file is missing, or an image of
    the held-out questions is trained on.
    """
    for name in ("align.json", "instruct.json", "heldout.jsonl", "images"):
        if not (source / name).exists():
            raise DataError(
                f"{source} is not the folder of photographs",
                got=f"no {name}",
                wanted="align.json, instruct.json, heldout.jsonl and images/ in LLaVA's schema",
            )
    talks = json.loads((source / "instruct.json").read_text(encoding="utf-8"))
    held_out = _lines(source / "heldout.jsonl")
    names = sorted({row["image"] for row in talks})
    if both := {row["image"] for row in held_out} & set(names):
        raise DataError("held-out questions are about images that are trained on", got=min(both))
    if limit is not None:
        names, held_out = names[:limit], held_out[:limit]
    away = kept_apart(set(names), apart)
    trained = set(names) - away
    out.mkdir(parents=True, exist_ok=True)
    captions = json.loads((source / "align.json").read_text(encoding="utf-8"))
    kept = {
        "align.json": [row for row in captions if row["image"] in trained],
        "instruct.json": [
            conversation_of(one)
            for row in talks
            if row["image"] in trained
            for one in questions_of(row)
        ],
    }
    for name, rows in kept.items():
        (out / name).write_text(json.dumps(rows), encoding="utf-8")
    questions = [one for row in talks if row["image"] in away for one in questions_of(row)]
    write_lines(out / "apart.jsonl", questions)
    write_lines(out / "heldout.jsonl", held_out)
    return PhotographsData(
        out / "align.json",
        out / "instruct.json",
        out / "heldout.jsonl",
        out / "apart.jsonl",
        source / "images",
        len(trained),
        len(held_out),
        len(questions),
    )


def questions_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """The questions of a conversation that have one right answer, each by itself."""
    turns = [turn["value"].removeprefix(IMAGE_LINE) for turn in row["conversations"]]
    found = []
    for number, (question, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        if question == CAPTION:
            continue
        kind = next((kind for start, kind in KINDS.items() if question.startswith(start)), None)
        if kind is None:
            raise DataError("a conversation asks what the held-out questions do not", got=question)
        found.append(
            {
                "question_id": f"{row['id']}-{number}",
                "image": row["image"],
                "text": question,
                "answer": answer,
                "category": kind,
            }
        )
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
