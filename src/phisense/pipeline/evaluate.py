"""Evaluate a model: run questions with known answers with the image, without it, and with another
question's image; score the answers; write a report folder.

    report = evaluate("models/mine", data=["heldout.jsonl"], images=["pictures"])
    report.real.accuracy.value, report.verdict, report.folder

Also here: `score_answers` scores existing answers, `compare_reports` compares reports. Results are
typed in `evaluation/results.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import artifacts, safe_replace
from ..conversations import ImageFinder
from ..errors import UsageError
from ..evaluation.measurement import QuestionFile
from ..evaluation.results import CONDITIONS, EvaluationReport, ScoreReport
from .evaluated import EvaluatedModel
from .progress import OnEvent, Progress, ignore

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison
    from ..evaluation.report import Report

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "EvaluationReport",
    "ScoreReport",
    "compare_reports",
    "evaluate",
    "score_answers",
]

#: Default batch size in torch, if neither the caller nor the model's recipe sets it.
DEFAULT_BATCH_SIZE = 64

Files = str | Path | Sequence[str | Path]


def evaluate(
    model: str | Path | None,
    task: str = "own",
    *,
    data: Files,
    images: Files = (),
    conditions: Sequence[str] = CONDITIONS,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    engine: str = "auto",
    server: str | None = None,
    served_model: str | None = None,
    picture_tokens: int | None = None,
    quantize: bool = False,
    changes: Sequence[str] = (),
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_event: OnEvent = ignore,
) -> EvaluationReport:
    """Evaluate `model` on the questions of `data` and write the report folder `out`.

    `model` is a model folder (torch, batched), a finished run folder (as trained, unmerged; the
    `key=value` `changes` locate its parts), a folder of GGUF files (llama.cpp), or None with the
    URL of an OpenAI-compatible `server`. `task` is a benchmark, or "own" for custom questions;
    `images` are the folders of their images.

    `batch_size` and, for custom questions, `max_new_tokens` default to those recorded with the
    model's recipe; a benchmark has its own `max_new_tokens`. `limit` samples that many questions by
    their ids. `seed` is used for shuffling images and for the bootstrap.

    Beside the model's answers the report scores the commonest answer to each question (`constant`),
    by the counts of the training data that the model records, else by those of the questions.

    An interrupted evaluation that is called again with the same arguments resumes. `on_event` gets
    `Progress` in questions, one task for each condition, and `Notice`s.

    Raises UsageError for incompatible arguments and for an `out` that exists and may not be
    replaced, DataError for missing questions or images, ArtifactError if `model` is not a model.
    """
    from ..evaluation.run import check_conditions
    from ..evaluation.run import evaluate as run_evaluation
    from ..evaluation.task import left_out_caveats, limit_questions
    from ..evaluation.tasks import TASKS, image_cache_folder

    sources = [str(one) for one in _listed(data)]
    conditions = (conditions,) if isinstance(conditions, str) else conditions
    check_conditions(conditions)
    _check_positive(batch_size=batch_size, max_new_tokens=max_new_tokens, limit=limit)
    evaluated = EvaluatedModel.find(model, engine, server, served_model, tuple(changes))
    if not sources:
        raise UsageError(
            "there is nothing to ask",
            wanted="--data FILE",
            do="docs/evaluation.md says where each benchmark's files are had",
        )
    chosen_task = TASKS[task]
    questions = limit_questions(chosen_task.load(sources, image_cache_folder(task)), limit)
    own = task == chosen_task.name == "own"
    data_name = Path(sources[0]).stem if own else task
    folder = Path(out) if out is not None else Path("reports") / f"{evaluated.name}-{data_name}"
    evaluated.check_changes()
    safe_replace.check_can_write(folder, kind="report", overwrite=overwrite)
    settings = evaluated.recipe_settings()
    if max_new_tokens is None and own:
        max_new_tokens = settings.max_new_tokens
    return run_evaluation(
        chosen_task,
        questions,
        ImageFinder([*map(Path, _listed(images)), image_cache_folder(task)]),
        evaluated.open(
            batch_size or settings.batch_size or DEFAULT_BATCH_SIZE,
            device,
            picture_tokens,
            quantize,
            settings.run,
        ),
        out=folder,
        overwrite=overwrite,
        title=f"{evaluated.name} on {data_name if own else chosen_task.title}",
        conditions=conditions,
        max_new_tokens=max_new_tokens,
        seed=seed,
        model=evaluated.folder,
        training=evaluated.training_answers(),
        about={"model": evaluated.name, "limit": limit, "data": _files(sources)},
        left_out=left_out_caveats(chosen_task, sources),
        on_event=on_event,
    )


def _listed(files: Files) -> list[str | Path]:
    """Wrap a single file in a list."""
    return [files] if isinstance(files, str | Path) else list(files)


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} is too small", got=str(number), wanted="at least 1")


def _files(data: Sequence[str]) -> list[dict[str, str]]:
    """The names and digests of the question files, for the report."""
    files = (
        QuestionFile(Path(one).name, artifacts.file_sha256(Path(one)))
        if Path(one).is_file()
        else QuestionFile(one)
        for one in data
    )
    return [one.to_dict() for one in files]


def score_answers(
    task: str,
    *,
    questions: Files,
    answers: str | Path,
    allow_missing: bool = False,
    answer_column: str | None = None,
    seed: int = 0,
) -> ScoreReport:
    """Score the answers of a file to a benchmark's questions by its official rules, with 95 %
    intervals. `seed` is that of the bootstrap.

    Raises DataError for unreadable files, for answers to other questions, and for missing answers
    unless `allow_missing`.
    """
    from ..evaluation.predictions_io import score_file

    sources = [str(one) for one in _listed(questions)]
    return score_file(
        task,
        sources,
        Path(answers),
        allow_missing=allow_missing,
        column=answer_column,
        seed=seed,
    )


def compare_reports(
    folders: Sequence[str | Path], *, on_event: OnEvent = ignore
) -> tuple[list[Report], Comparison]:
    """Read report folders and compare those about the same questions, each with the first.

    Raises UsageError for a folder that is named twice, ArtifactError for an incomplete report or
    another folder.
    """
    from ..evaluation.comparison import group_reports
    from ..evaluation.report import read_report

    places = [Path(folder) for folder in folders]
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError(
            "a report is named twice", got=", ".join(map(str, places)), do="Name each once"
        )
    reports = []
    for place in places:
        reports.append(read_report(place))
        on_event(Progress("reading", len(reports), len(places), "reports"))

    return reports, group_reports(reports, on_event)
