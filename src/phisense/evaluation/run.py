"""The evaluation loop: runs every question with its own image, without an image and with another
question's image, and writes the report folder (report.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import artifacts, safe_replace
from ..conversations import ImageFinder, Question
from ..conversations.common_answers import AnswerTable
from ..errors import DataError, UsageError
from ..pipeline.progress import Notice, OnEvent, Progress, ignore
from .asked import AskedQuestions
from .caveats import Caveat
from .journal import Journal
from .measurement import Measurement
from .model_facts import ModelFacts, read_model_facts
from .predictors import EvalRequest, EvalResponse, Predictor
from .report import REPORT_KIND, AttentionGrid
from .report_writer import attention_maps, write_report
from .results import CONDITIONS, EvaluationReport
from .scores import Prediction
from .task import Task

if TYPE_CHECKING:
    pass


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
    training: AnswerTable | None = None,
    about: Mapping[str, object] | None = None,
    left_out: Sequence[Caveat] = (),
    on_event: OnEvent = ignore,
) -> EvaluationReport:
    """Evaluate and write the report folder `out`; returns its scores.

    Answers are stored in a journal beside `out` until the report is complete: an interrupted
    evaluation that is called again with the same arguments resumes. `model` is the folder of the
    evaluated model, `training` its training data's commonest answers if they are known, `about`
    further facts about the model and the data to record, `left_out` caveats about questions that
    are not among these. Progress counts the questions under each condition.

    Raises UsageError for an unknown condition, DataError for missing questions or images.
    """
    check_conditions(conditions)
    _check(questions, images)
    asked = AskedQuestions.prepare(
        task, questions, images, conditions, max_new_tokens, seed, training
    )
    record = {**(about or {}), **asked.record(predictor, model)}
    header = {**asked.identity(), **record, **predictor.identity}
    safe_replace.check_can_write(out, kind=REPORT_KIND, overwrite=overwrite)
    # the report needs them: what is wrong with them is said before hours of answers
    facts = ModelFacts() if model is None else read_model_facts(model)
    began = time.monotonic()
    with Journal(out, header) as journal:
        found = sum(map(len, journal.completed.values()))
        for text in _resumption(journal, header, found):
            on_event(Notice(text))
        said = _answers(asked, predictor, journal, on_event)
        seconds = round(time.monotonic() - began, 1)
        how = {**record, **_arithmetic(predictor), "seconds": seconds, "answers_kept": found}
        scores = asked.scores(said)
        scores = replace(
            scores,
            about=Measurement(how),
            folder=Path(out),
            caveats=(*left_out, *scores.caveats),
        )
        predictions = asked.predictions(said)
        seen = _attention(predictor, predictions, images, on_event)
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


def _answers(
    asked: AskedQuestions, predictor: Predictor, journal: Journal, on_event: OnEvent
) -> dict[str, list[EvalResponse]]:
    """The responses under each condition. On Ctrl-C the journal keeps those that there are."""
    predictor.prepare(list(asked.paths.values()))
    try:
        return {name: _predict(asked, name, predictor, journal, on_event) for name in asked.shown}
    except KeyboardInterrupt:
        kept = sum(map(len, journal.completed.values()))
        text = f"interrupted: {kept:,} answers are kept, and the same command goes on behind them"
        on_event(Notice(text))
        raise


def _arithmetic(predictor: Predictor) -> dict[str, object]:
    built = predictor.built
    if built is None or built.arithmetic is None:
        return {}
    return {"arithmetic": built.arithmetic.to_dict()}


def _attention(
    predictor: Predictor,
    predictions: Sequence[Prediction],
    images: ImageFinder,
    on_event: OnEvent,
) -> dict[str, AttentionGrid] | None:
    """Where the model looked, for some of the images; None if the engine cannot tell."""
    built = predictor.built
    if built is None:
        return None

    def progress(done: int, total: int) -> None:
        on_event(Progress("where it looked", done, total, "images"))

    return attention_maps(built, predictions, images, progress=progress)


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
    asked: AskedQuestions, condition: str, predictor: Predictor, journal: Journal, on_event: OnEvent
) -> list[EvalResponse]:
    """Responses in the order of the questions. They are run sorted by image, then by length, so
    that questions about one image share its encoding and batches need little padding.
    """
    put, shown = asked.put, asked.shown[condition]
    order = sorted(range(len(put)), key=lambda i: (shown[i] or "", len(put[i].text)))
    responses: dict[int, EvalResponse] = {}
    for number, start in enumerate(range(0, len(order), predictor.batch_size)):
        rows = order[start : start + predictor.batch_size]
        if (condition, number) not in journal.completed:
            requests = [
                EvalRequest(
                    put[i].id,
                    put[i].text,
                    asked.paths[name] if (name := shown[i]) is not None else None,
                    put[i].answers[0],
                )
                for i in rows
            ]
            answers = predictor.answer(requests, asked.max_new_tokens, losses=asked.task.losses)
            counted = asked.by_content(condition, rows, requests, answers, predictor)
            journal.add(condition, number, counted)
        responses.update(zip(rows, journal.completed[condition, number], strict=True))
        on_event(Progress(condition, len(responses), len(put), "questions"))
    return [responses[i] for i in range(len(put))]
