"""Asks every question with the real picture, with none, and with another sample's, and writes what came of it.

predictions.jsonl   one line for each question and condition
scores.json         the figures
report.html         the figures and a gallery, in one file
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from .. import artefact
from ..conversations import Pictures, Question
from ..errors import DataError, UsageError
from ..model import Phi3WithProjector
from ..model.asking import about, ask
from ..vision.pictures import open_picture
from .answers import is_right
from .report import render
from .scores import CONDITIONS, Prediction, score

KIND = "report"
Progress = Callable[[str, int, int], None]


def evaluate(
    built: Phi3WithProjector,
    questions: Sequence[Question],
    images: Pictures,
    *,
    out: Path,
    conditions: Sequence[str] = CONDITIONS,
    batch: int = 32,
    max_new_tokens: int = 64,
    seed: int = 0,
    title: str = "Evaluation",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Writes the report folder `out` and returns its scores. Raises DataError for missing questions or pictures."""
    unknown = sorted(set(conditions) - set(CONDITIONS))
    if unknown:
        raise UsageError("unknown picture condition", got=", ".join(unknown), wanted=", ".join(CONDITIONS))
    _check(questions, images)
    seen = _look(built, questions, images, lambda done, total: progress("pictures", done, total))
    predictions: list[Prediction] = []
    for condition in conditions:
        shown = shown_pictures(questions, condition, seed)
        predictions += _ask(built, questions, condition, shown, seen, batch, max_new_tokens, progress)
    scores = {**score(predictions), "questions": len(questions), "seed": seed}
    with artefact.staged(out, kind=KIND, about={"title": title}) as folder:
        artefact.write_bytes(folder / "predictions.jsonl", b"".join(orjson.dumps(p.as_dict()) + b"\n" for p in predictions))
        artefact.write_json(folder / "scores.json", scores)
        artefact.write_bytes(folder / "report.html", render(title, scores, predictions, images).encode())
    return scores


def shown_pictures(questions: Sequence[Question], condition: str, seed: int) -> list[str | None]:
    """The picture that goes with each question: its own, none, or that of a fixed other one (a derangement of the pictures)."""
    if condition == "real":
        return [question.image for question in questions]
    if condition == "blind":
        return [None] * len(questions)
    names = sorted({question.image for question in questions if question.image is not None})
    if len(names) < 2:
        raise DataError("shuffling needs at least two different pictures", got=f"{len(names)}", do="Evaluate with --image real")
    order = names[:]
    random.Random(seed).shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle: nobody keeps its own
    return [None if question.image is None else after[question.image] for question in questions]


def _check(questions: Sequence[Question], images: Pictures) -> None:
    if not questions:
        raise DataError("there are no questions to evaluate", do="Name a file with at least one question")
    missing = sorted({q.image for q in questions if q.image is not None and images.find(q.image) is None})
    if missing:
        raise DataError(
            f"pictures are missing in {', '.join(map(str, images.folders))}",
            got=f"{len(missing)}, the first {missing[0]}",
            do="Check --images",
        )


@torch.inference_mode()
def _look(
    built: Phi3WithProjector, questions: Sequence[Question], images: Pictures, progress: Callable[[int, int], None]
) -> dict[str, torch.Tensor]:
    """Every picture's slots `(P', H)`, encoded once for all conditions."""
    names = sorted({question.image for question in questions if question.image is not None})
    seen: dict[str, torch.Tensor] = {}
    for start in range(0, len(names), 32):
        some = names[start : start + 32]
        slots = built.project([open_picture(images.path(name), name=name) for name in some])
        seen.update((name, vectors.cpu()) for name, vectors in zip(some, slots, strict=True))
        progress(len(seen), len(names))
    return seen


@torch.inference_mode()
def _ask(
    built: Phi3WithProjector,
    questions: Sequence[Question],
    condition: str,
    shown: Sequence[str | None],
    seen: dict[str, torch.Tensor],
    size: int,
    max_new_tokens: int,
    progress: Progress,
) -> list[Prediction]:
    """Questions about one picture together; predictions in the order of the questions."""
    order = sorted(range(len(questions)), key=lambda i: (shown[i] or "", len(questions[i].text)))
    made: dict[int, Prediction] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        asked = [about(questions[i], seen[str(shown[i])] if shown[i] else None) for i in rows]
        for i, answered in zip(rows, ask(built, asked, max_new_tokens=max_new_tokens), strict=True):
            q = questions[i]
            right = is_right(answered.text, q.answers)
            made[i] = Prediction(
                q.id, q.kind, q.image, shown[i], q.text, q.answers, condition, answered.text, right, answered.loss, answered.tokens
            )
        progress(condition, len(made), len(questions))
    return [made[i] for i in range(len(questions))]
