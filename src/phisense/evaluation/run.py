"""Asks every question with the real picture, with none, and with another question's, and writes what came of it.

What is in the report folder: see report.py.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from .. import artefact, console
from ..conversations import Pictures, Question
from ..errors import DataError, UsageError
from ..parts import fingerprint
from .answerers import Answerer, Put, Said
from .facts import facts_of
from .journal import Journal
from .report import KIND, gazes, write
from .scores import CONDITIONS, Prediction, score
from .task import Task

Progress = Callable[[str, int, int], None]

_VERSIONS = ("phisense", "torch", "transformers")


def evaluate(
    task: Task,
    questions: Sequence[Question],
    images: Pictures,
    answerer: Answerer,
    *,
    out: Path,
    title: str,
    conditions: Sequence[str] = CONDITIONS,
    max_new_tokens: int | None = None,
    seed: int = 0,
    model: Path | None = None,
    about: dict[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Writes the report folder `out` and returns its scores. Answers are kept beside it until it is whole: an evaluation that was
    interrupted and is called again in the same way goes on where it was. `model` is the folder of the one who answers, `about` what
    else the record says of it and of the data. Raises DataError for missing questions or pictures.
    """
    unknown = sorted(set(conditions) - set(CONDITIONS))
    if unknown:
        raise UsageError("unknown picture condition", got=", ".join(unknown), wanted=", ".join(CONDITIONS))
    _check(questions, images)
    most = max_new_tokens or task.max_new_tokens
    put = [replace(question, text=task.put(question)) for question in questions]
    shown = {condition: shown_pictures(questions, condition, seed) for condition in conditions}
    record = {
        **(about or {}), **answerer.about, "fingerprint": None if model is None else fingerprint(model), "batch": answerer.batch,
        "max_new_tokens": most, "seed": seed, "prompt": put[0].text, **{name: version(name) for name in _VERSIONS},
    }  # fmt: skip
    paths = {name: images.path(name) for name in sorted({name for names in shown.values() for name in names if name is not None})}
    header = {
        "task": task.name, "questions": _digest([[asdict(one) for one in put], list(conditions)]), "pictures": _looks(paths),
        **record, **answerer.whom,
    }  # fmt: skip
    artefact.refuse_to_replace(out, kind=KIND)
    began = time.monotonic()
    with Journal(out, header) as journal:
        found = sum(map(len, journal.done.values()))
        _tell_of(journal, header, found)
        answerer.expect(list(paths.values()))
        try:
            said = {name: _ask(put, name, shown[name], paths, answerer, journal, most, task.losses, progress) for name in conditions}
        except KeyboardInterrupt:
            kept = sum(map(len, journal.done.values()))
            console.err.print(f"interrupted: {kept:,} answers are kept, and the same command goes on behind them")
            raise
        scores = score(task, questions, {name: [one.text for one in said[name]] for name in conditions}, seed)
        for name in conditions:
            scores[name]["loss"] = _loss(said[name])
        built = getattr(answerer, "built", None)  # torch alone tells what it computed in, and where it looked
        how = {} if built is None or built.arithmetic is None else {"arithmetic": built.arithmetic.as_dict()}
        scores["about"] = {**record, **how, "seconds": round(time.monotonic() - began, 1), "answers_kept": found}
        predictions = [one for name in conditions for one in _predictions(task, name, questions, put, shown[name], said[name])]
        seen = gazes(built, predictions, images, progress=lambda done, total: progress("where it looked", done, total)) if built else None
        facts = {} if model is None else facts_of(model)
        with artefact.staged(out, kind=KIND, about={"title": title}) as folder:
            write(folder, title=title, scores=scores, predictions=predictions, facts=facts, images=images, gaze=seen, questions=questions)
        journal.remove()
    return scores


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()


def _looks(paths: Mapping[str, Path]) -> str:
    """A digest of the pictures as they are now: sizes and times of their files, for content would have to be read."""
    states = [(name, path.stat()) for name, path in paths.items()]
    return _digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])


def _tell_of(journal: Journal, header: dict[str, Any], found: int) -> None:
    if found:
        console.err.print(f"{found:,} answers of an interrupted evaluation are kept")
        return
    for what in journal.others(header):
        console.err.print(f"an interrupted evaluation was another ({what}), so this one begins anew; called like that one it would go on")


def _predictions(
    task: Task, condition: str, questions: Sequence[Question], put: Sequence[Question], shown: Sequence[str | None], said: Sequence[Said]
) -> list[Prediction]:
    return [
        Prediction(
            id=q.id, kind=q.kind, image=q.image, shown=seen, question=asked.text, answers=q.answers, condition=condition,
            answer=one.text, credit=task.credit(q, one.text), loss=one.loss, tokens=one.tokens,
        )
        for q, asked, seen, one in zip(questions, put, shown, said, strict=True)
    ]  # fmt: skip


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


def _ask(
    put: Sequence[Question],
    condition: str,
    shown: Sequence[str | None],
    paths: Mapping[str, Path],
    answerer: Answerer,
    journal: Journal,
    max_new_tokens: int,
    losses: bool,
    progress: Progress,
) -> list[Said]:
    """Answers in the order of the questions, which are asked sorted: those about one picture together, then by length."""
    order = sorted(range(len(put)), key=lambda i: (shown[i] or "", len(put[i].text)))
    said: dict[int, Said] = {}
    for number, start in enumerate(range(0, len(order), answerer.batch)):
        rows = order[start : start + answerer.batch]
        if (condition, number) not in journal.done:
            asked = [Put(put[i].id, put[i].text, paths[name] if (name := shown[i]) is not None else None, put[i].answers[0]) for i in rows]
            journal.add(condition, number, answerer.answer(asked, max_new_tokens, losses=losses))
        said.update(zip(rows, journal.done[condition, number], strict=True))
        progress(condition, len(said), len(put))
    return [said[i] for i in range(len(put))]


def _loss(said: Sequence[Said]) -> float | None:
    """Of the right answers, per token."""
    if any(one.loss is None for one in said):
        return None
    return sum(one.loss or 0.0 for one in said) / max(1, sum(one.tokens or 0 for one in said))
