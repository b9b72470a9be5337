"""Evaluate a model: run questions with known answers with the image, without it, and with another
question's image; score the answers; write a report folder.

    report = evaluate("models/mine", data=["heldout.jsonl"], images=["pictures"])
    report.real.accuracy.value, report.verdict, report.folder

Also here: `score_answers` scores existing answers, `compare_reports` compares reports. Results are
typed in `evaluation/results.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import artifacts, safe_replace
from ..conversations import ImageFinder
from ..errors import ArtifactError, UsageError
from ..evaluation.measurement import QuestionFile
from ..evaluation.results import CONDITIONS, EvaluationReport, ScoreReport
from ..recipe import Recipe
from .json_fields import as_object, optional
from .progress import OnEvent, Progress, ignore

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison
    from ..evaluation.predictors import Predictor
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

    An interrupted evaluation that is called again with the same arguments resumes. `on_event` gets
    `Progress` in questions, one task for each condition, and `Notice`s.

    Raises UsageError for incompatible arguments and for an `out` that exists and may not be
    replaced, DataError for missing questions or images, ArtifactError if `model` is not a model.
    """
    from ..evaluation.run import check_conditions
    from ..evaluation.run import evaluate as run_evaluation
    from ..evaluation.task import limit_questions
    from ..evaluation.tasks import TASKS, image_cache_folder

    sources = [str(one) for one in _listed(data)]
    conditions = (conditions,) if isinstance(conditions, str) else conditions
    check_conditions(conditions)
    _check_positive(batch_size=batch_size, max_new_tokens=max_new_tokens, limit=limit)
    evaluated = _Evaluated.find(model, engine, server, served_model, tuple(changes))
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
        about={"model": evaluated.name, "limit": limit, "data": _files(sources)},
        on_event=on_event,
    )


def _listed(files: Files) -> list[str | Path]:
    """Wrap a single file in a list."""
    return [files] if isinstance(files, str | Path) else list(files)


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} is too small", got=str(number), wanted="at least 1")


@dataclass(frozen=True, slots=True)
class _RecipeSettings:
    """The evaluation settings of the recipe that made a model; None where not recorded."""

    batch_size: int | None = None
    max_new_tokens: int | None = None
    run: Recipe | None = None  # the whole recipe, where a run is evaluated


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """The evaluated model: a folder or a server, and the engine that runs it."""

    folder: Path | None
    kind: str  # "run", or the name of an engine
    server: str | None
    served_model: str | None
    changes: tuple[str, ...]

    @classmethod
    def find(
        cls,
        model: str | Path | None,
        engine: str,
        server: str | None,
        served_model: str | None,
        changes: tuple[str, ...],
    ) -> _Evaluated:
        """Choose the engine without loading anything. Raises UsageError for incompatible arguments,
        ArtifactError for a folder without a model.
        """
        from ..chat.open_engine import choose_engine

        folder = None if model is None else Path(model)
        in_torch = server is None and engine in ("auto", "torch")
        if in_torch and folder is not None and _is_run(folder):
            return cls(folder, "run", None, None, changes)
        kind = choose_engine(folder, engine, server)
        return cls(folder, kind, server, served_model, changes)

    @property
    def name(self) -> str:
        """The name of the model in the report and in the report folder's name."""
        named = self.folder.resolve().name if self.folder else self.served_model or "server"
        return named.replace("/", "-") + ("-unmerged" if self.kind == "run" else "")

    def check_changes(self) -> None:
        """Raise UsageError for recipe changes if the model has no recipe to change."""
        if self.changes and self.kind != "run":
            raise UsageError(
                "only a run has a recipe to change",
                got=f"--set {self.changes[0]}",
                wanted="a run folder",
                do="Leave it out",
            )

    def recipe_settings(self) -> _RecipeSettings:
        """The settings of the run's recipe, or of the one that the model folder records in
        training.json.
        """
        if self.folder is None:
            return _RecipeSettings()
        if self.kind == "run":
            from ..model.unmerged import load_run_recipe

            recipe = load_run_recipe(self.folder, self.changes)
            settings = recipe.evaluate
            return _RecipeSettings(settings.batch_size, settings.max_new_tokens, recipe)
        path = self.folder / "training.json"
        if not path.is_file():
            return _RecipeSettings()
        source = str(path)
        document = as_object(artifacts.read_json(path), source)
        recorded = optional(document, "recipe", dict, source) or {}
        recorded = optional(recorded, "evaluate", dict, source) or {}
        sizes = (optional(recorded, key, int, source) for key in ("batch_size", "batch"))
        found = _RecipeSettings(
            next((size for size in sizes if size is not None), None),
            optional(recorded, "max_new_tokens", int, source),
        )
        for number in (found.batch_size, found.max_new_tokens):
            if number is not None and number < 1:
                raise ArtifactError(f"{source} is wrong", got=str(number), wanted="at least 1")
        return found

    def open(
        self,
        batch_size: int,
        device: str,
        picture_tokens: int | None,
        quantize: bool,
        recipe: Recipe | None,
    ) -> Predictor:
        """Load the model, a run with its `recipe`, or connect to the server."""
        if self.kind in ("run", "torch"):
            assert self.folder is not None
            return self._in_batches(batch_size, device, picture_tokens, quantize, recipe)
        from ..chat.open_engine import open_engine
        from ..evaluation.predictors import EnginePredictor

        made = open_engine(
            self.folder,
            engine=self.kind,
            device=device,
            picture_tokens=picture_tokens,
            quantize=quantize,
            server=self.server,
            served_model=self.served_model,
        )
        return EnginePredictor(made)

    def _in_batches(
        self,
        batch_size: int,
        device: str,
        picture_tokens: int | None,
        quantize: bool,
        recipe: Recipe | None,
    ) -> Predictor:
        from ..evaluation.predictors import BatchPredictor
        from ..model import load_model

        assert self.folder is not None
        if self.kind == "torch":
            built = load_model(
                self.folder,
                device,
                image_tokens=picture_tokens,
                quantize=quantize,
                step="evaluate",
            )
            return BatchPredictor(built, batch_size)
        from ..model.unmerged import load_run

        if quantize:
            raise UsageError(
                "a run is asked as it was trained",
                got="--quantize",
                do="Leave it out, or merge the run",
            )
        assert recipe is not None
        built = load_run(self.folder, recipe, device, picture_tokens)
        return BatchPredictor(built, batch_size)


def _is_run(folder: Path) -> bool:
    manifest = folder / artifacts.MANIFEST
    told = artifacts.read_json(manifest) if manifest.is_file() else None
    return isinstance(told, dict) and told.get("kind") == "run"


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
