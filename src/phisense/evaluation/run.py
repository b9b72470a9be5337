"""The evaluation loop: runs every question with its own image, without an image and with another
question's image, and writes the report folder (report.py).
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from .. import artifacts, safe_replace
from ..conversations import ImageFinder, Question
from ..errors import DataError, UsageError
from ..parts import fingerprint
from ..pipeline.progress import Notice, OnEvent, Progress, ignore
from .journal import Journal
from .measurement import Measurement
from .model_facts import ModelFacts, read_model_facts
from .predictors import EvalRequest, EvalResponse, Predictor
from .report import REPORT_KIND
from .report_writer import attention_maps, write_report
from .results import CONDITIONS, EvaluationReport
from .scores import Prediction, score_predictions
from .task import Task, score_answer

_VERSIONS = ("phisense", "torch", "transformers")


def evaluate(
    task: Task,
    questions: Sequence[Question],
    images: ImageFinder,
    predictor: Predictor,
    *,
    out: Path,
    overwrite: bool = False,
    title: str,
    conditions: Sequence[str] = CONDITIONS,
    max_new_tokens: int | None = None,
    seed: int = 0,
    model: Path | None = None,
    about: Mapping[str, object] | None = None,
    on_event: OnEvent = ignore,
) -> EvaluationReport:
    """Evaluate and write the report folder `out`; returns its scores.

    Answers are stored in a journal beside `out` until the report is complete: an interrupted
    evaluation that is called again with the same arguments resumes. `model` is the folder of the
    evaluated model, `about` further facts about the model and the data to record. Progress counts
    the questions under each condition.

    Raises UsageError for an unknown condition, DataError for missing questions or images.
    """
    check_conditions(conditions)
    _check(questions, images)
    most = max_new_tokens or task.max_new_tokens
    put = [replace(question, text=task.prompt(question)) for question in questions]
    shown = {
        condition: pictures_for_condition(questions, condition, seed) for condition in conditions
    }
    record = {
        **(about or {}),
        **predictor.about,
        "fingerprint": None if model is None else fingerprint(model),
        "batch": predictor.batch_size,
        "max_new_tokens": most,
        "seed": seed,
        "prompt": put[0].text,
        **{name: version(name) for name in _VERSIONS},
    }
    paths = {
        name: images.path(name)
        for name in sorted({name for names in shown.values() for name in names if name is not None})
    }
    header = {
        "task": task.name,
        "questions": _digest([[asdict(one) for one in put], list(conditions)]),
        "pictures": _pictures_digest(paths),
        **record,
        **predictor.identity,
    }
    safe_replace.check_can_write(out, kind=REPORT_KIND, overwrite=overwrite)
    # the report needs them: what is wrong with them is said before hours of answers
    facts = ModelFacts() if model is None else read_model_facts(model)
    began = time.monotonic()
    with Journal(out, header) as journal:
        found = sum(map(len, journal.completed.values()))
        for text in _resumption(journal, header, found):
            on_event(Notice(text))
        predictor.prepare(list(paths.values()))
        try:
            said = {
                name: _predict(
                    put, name, shown[name], paths, predictor, journal, most, task.losses, on_event
                )
                for name in conditions
            }
        except KeyboardInterrupt:
            kept = sum(map(len, journal.completed.values()))
            text = (
                f"interrupted: {kept:,} answers are kept, and the same command goes on behind them"
            )
            on_event(Notice(text))
            raise
        scores = score_predictions(
            task, questions, {name: [one.text for one in said[name]] for name in conditions}, seed
        )
        measured = {
            name: replace(one, loss=_mean_loss(said[name]))
            for name, one in scores.conditions.items()
        }
        # only the torch predictor has arithmetic and attention maps to record
        built = getattr(predictor, "built", None)
        how = (
            {}
            if built is None or built.arithmetic is None
            else {"arithmetic": built.arithmetic.as_dict()}
        )
        seconds = round(time.monotonic() - began, 1)
        full_record = {**record, **how, "seconds": seconds, "answers_kept": found}
        scores = replace(
            scores, conditions=measured, about=Measurement(full_record), folder=Path(out)
        )
        predictions = [
            one
            for name in conditions
            for one in _predictions(task, name, questions, put, shown[name], said[name])
        ]
        seen = (
            attention_maps(
                built,
                predictions,
                images,
                progress=lambda done, total: on_event(
                    Progress("where it looked", done, total, "images")
                ),
            )
            if built
            else None
        )
        with artifacts.staged_artifact(
            out, kind=REPORT_KIND, about={"title": title}, overwrite=overwrite
        ) as folder:
            write_report(
                folder,
                title=title,
                scores=scores,
                predictions=predictions,
                facts=facts,
                images=images,
                attention=seen,
            )
        journal.remove()
    return scores


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()


def _pictures_digest(paths: Mapping[str, Path]) -> str:
    """A digest of the sizes and modification times of the image files; hashing their content would
    mean reading all of them.
    """
    states = [(name, path.stat()) for name, path in paths.items()]
    return _digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])


def _resumption(journal: Journal, header: dict[str, Any], found: int) -> Iterator[str]:
    """Messages about interrupted evaluations of the same report."""
    if found:
        yield f"{found:,} answers of an interrupted evaluation are kept"
        return
    for what in journal.others(header):
        yield (
            f"an interrupted evaluation was another ({what}), so this one begins anew; called like"
            " that one it would go on"
        )


def check_conditions(conditions: Sequence[str]) -> None:
    """Raise UsageError if `conditions` is empty or contains an unknown one."""
    unknown = sorted(set(conditions) - set(CONDITIONS))
    if unknown or not conditions:
        raise UsageError(
            "unknown picture condition" if unknown else "there is no condition to evaluate under",
            got=", ".join(unknown) or None,
            wanted=", ".join(CONDITIONS),
        )


def _predictions(
    task: Task,
    condition: str,
    questions: Sequence[Question],
    put: Sequence[Question],
    shown: Sequence[str | None],
    said: Sequence[EvalResponse],
) -> list[Prediction]:
    return [
        Prediction(
            id=q.id,
            kind=q.kind,
            image=q.image,
            shown=seen,
            question=asked.text,
            answers=q.answers,
            condition=condition,
            answer=one.text,
            credit=score_answer(task, q, one.text).score,
            loss=one.loss,
            tokens=one.tokens,
            choices=q.choices,
            group=q.group,
        )
        for q, asked, seen, one in zip(questions, put, shown, said, strict=True)
    ]


def pictures_for_condition(
    questions: Sequence[Question], condition: str, seed: int
) -> list[str | None]:
    """The image of each question under a condition: its own, none, or a fixed other one (a
    derangement of the images).
    """
    if condition == "real":
        return [question.image for question in questions]
    if condition == "blind":
        return [None] * len(questions)
    names = sorted({question.image for question in questions if question.image is not None})
    if len(names) < 2:
        raise DataError(
            "shuffling needs at least two different pictures",
            got=f"{len(names)}",
            do="Evaluate with --condition real",
        )
    order = names[:]
    random.Random(seed).shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle, so no fixed points
    return [None if question.image is None else after[question.image] for question in questions]


def _check(questions: Sequence[Question], images: ImageFinder) -> None:
    if not questions:
        raise DataError(
            "there are no questions to evaluate", do="Name a file with at least one question"
        )
    missing = sorted(
        {q.image for q in questions if q.image is not None and images.find(q.image) is None}
    )
    if missing:
        raise DataError(
            f"pictures are missing in {', '.join(map(str, images.folders))}",
            got=f"{len(missing)}, the first {missing[0]}",
            do="Check --images",
        )


def _predict(
    prompted: Sequence[Question],
    condition: str,
    shown: Sequence[str | None],
    paths: Mapping[str, Path],
    predictor: Predictor,
    journal: Journal,
    max_new_tokens: int,
    losses: bool,
    on_event: OnEvent,
) -> list[EvalResponse]:
    """Responses in the order of the questions. They are run sorted by image, then by length, so
    that questions about one image share its encoding and batches need little padding.
    """
    order = sorted(range(len(prompted)), key=lambda i: (shown[i] or "", len(prompted[i].text)))
    responses: dict[int, EvalResponse] = {}
    for number, start in enumerate(range(0, len(order), predictor.batch_size)):
        rows = order[start : start + predictor.batch_size]
        if (condition, number) not in journal.completed:
            asked = [
                EvalRequest(
                    prompted[i].id,
                    prompted[i].text,
                    paths[name] if (name := shown[i]) is not None else None,
                    prompted[i].answers[0],
                )
                for i in rows
            ]
            journal.add(condition, number, predictor.answer(asked, max_new_tokens, losses=losses))
        responses.update(zip(rows, journal.completed[condition, number], strict=True))
        on_event(Progress(condition, len(responses), len(prompted), "questions"))
    return [responses[i] for i in range(len(prompted))]


def _mean_loss(said: Sequence[EvalResponse]) -> float | None:
    """The mean loss of the references in nats per token; None if the predictor does not compute
    it.
    """
    if any(one.loss is None for one in said):
        return None
    return sum(one.loss or 0.0 for one in said) / max(1, sum(one.tokens or 0 for one in said))
