"""`phisense tune`: search the recipe settings that maximize accuracy on held-out questions, with
Optuna.

studies/<recipe>/study.db       all trials, in SQLite; or any storage that several workers share
                 best.yaml      the recipe of the best trial, for `phisense train`
                 report.html    the trials and the effect of each setting, as plots
runs/<recipe>-tune-<number>     the run folder of each trial that was not pruned

The unchanged recipe is the first trial, so the best is never worse. A trial that is behind the
median of the others at the same evaluation is pruned. The trial of a worker that dies is retried by
the next one; an existing study is resumed.
"""

from __future__ import annotations

import gc
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import artifacts, safe_replace
from ..errors import PhisenseError, RecipeError, TerminatedError, TrainingError, UsageError
from ..pipeline.features import encode_features
from ..pipeline.progress import (
    Event,
    Finished,
    HeldOutEval,
    Notice,
    OnEvent,
    Section,
    StepSkipped,
    TrainingStep,
    ignore,
)
from ..pipeline.results import TrialResult, TuneResult
from ..pipeline.train import train
from ..recipe import Recipe, load_recipe
from ..training.preflight import check_variant
from .ranges import UNFIT_ERRORS, Range, check_ranges, to_yaml
from .report import PAGE_START, render

MIN_TRIALS = 3  # completed trials before the median pruner starts
STUDY = "study.db"
HEARTBEAT = 60  # seconds; a worker without a heartbeat for five intervals counts as dead


@dataclass(frozen=True)
class Tuning:
    """One worker of a study over the recipe `source` with `changes`.

    ranges       the search space
    trials       total number of trials, including those of other workers and earlier calls
    hours        no trial starts after this many hours; None: no limit
    questions    number of held-out questions that score a trial
    storage      URL of a database that several workers share; None: SQLite in the study folder
    """

    source: str
    changes: tuple[str, ...]
    ranges: tuple[Range, ...]
    trials: int = 20
    hours: float | None = None
    questions: int = 200
    storage: str | None = None
    device: str = "auto"
    on_event: OnEvent = ignore

    def __call__(self) -> TuneResult:
        """Run trials until there are enough; returns all trials and the best. Raises UsageError if
        no held-out question can be scored, and the errors of a recipe that cannot be trained.
        """
        recipe = load_recipe(self.source, self.changes)
        if not recipe.data.held_out:
            raise UsageError(
                "there is nothing to tune by",
                got="no held-out question",
                do="Set data.held_out in the recipe",
            )
        unknown = [
            one.key
            for one in self.ranges
            if _recipe_value(recipe, one.key) is None and not one.contains(None)
        ]
        if unknown:
            raise UsageError(
                "--vary names no value of the recipe",
                got=", ".join(unknown),
                wanted="for example train.lora.rank",
            )
        seen = [one.key for one in self.ranges if one.key.startswith(("vision.", "features."))]
        if seen:
            raise UsageError(
                "all trials read the same features",
                got=f"--vary {seen[0]}",
                do="phisense compare walks such variants",
            )
        folder = recipe.root / "studies" / recipe.name
        if not (folder / STUDY).is_file() and self.storage is None:
            safe_replace.check_can_write(folder, kind="study", hint="Move it away")
        check_ranges(self.source, (*self.changes, *self._eval_changes), self.ranges)
        shared = load_recipe(self.source, (*self.changes, *_shared(recipe), *self._eval_changes))
        encoded = encode_features(shared, device=self.device, on_event=self.on_event)
        self.on_event(Finished(encoded))
        folder.mkdir(parents=True, exist_ok=True)
        study = self._study(recipe, folder)
        self._run(study, recipe, folder)
        return self._report(study, recipe, folder)

    @property
    def _eval_changes(self) -> tuple[str, str]:
        return (
            f"train.eval.questions={self.questions}",
            f"train.eval.final_questions={self.questions}",
        )

    def _study(self, recipe: Recipe, folder: Path) -> Any:
        optuna = _optuna()
        with warnings.catch_warnings():
            # the heartbeat options, which detect a dead worker's trial, are experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                self.storage or f"sqlite:///{folder / STUDY}",
                heartbeat_interval=HEARTBEAT,
                grace_period=5 * HEARTBEAT,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(
                    max_retry=2
                ),
            )
        # accuracy during the align stage hardly predicts the final one, so no trial is pruned there
        unpruned = recipe.train.eval.times if recipe.train.align else 0
        study = optuna.create_study(
            study_name=recipe.name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(n_startup_trials=5, multivariate=True),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=MIN_TRIALS, n_warmup_steps=unpruned
            ),
        )
        as_it_is = {one.key: _first_value(recipe, one) for one in self.ranges}
        if not study.trials and all(one.contains(as_it_is[one.key]) for one in self.ranges):
            study.enqueue_trial(as_it_is)
        return study

    def _run(self, study: Any, recipe: Recipe, folder: Path) -> None:
        optuna = _optuna()
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        if len(study.get_trials(deepcopy=False, states=ended)) >= self.trials:
            return
        study.optimize(
            lambda trial: self._trial(trial, recipe),
            timeout=self.hours * 3600 if self.hours else None,
            callbacks=[
                optuna.study.MaxTrialsCallback(self.trials, states=ended),
                lambda study, trial: self._report_trial(study, trial, recipe, folder),
                # free the trial's model before the next one is built
                lambda study, trial: gc.collect(),
            ],
        )

    def _trial(self, trial: Any, recipe: Recipe) -> float:
        optuna = _optuna()
        its = tuple(one.change(one.suggest(trial)) for one in self.ranges)
        name = f"{recipe.name}-tune-{trial.number}"
        self.on_event(Section(f"trial {trial.number}"))
        self.on_event(Notice(" ".join(its)))
        wanted = (f"name={name}", *_shared(recipe), *self._eval_changes)
        run = recipe.root / "runs" / name
        safe_replace.check_can_write(
            run, kind="run", hint="It is of an earlier study: move it away"
        )
        changes = (*self.changes, *its, *wanted)
        try:
            return self._train(trial, load_recipe(self.source, changes))
        except TerminatedError:
            raise
        except UNFIT_ERRORS as error:  # incompatible settings, or training that fails
            if not isinstance(error, (RecipeError, TrainingError)) and not self._is_unfit(changes):
                raise
            trial.set_user_attr("why", str(error))
            raise optuna.TrialPruned from error

    def _is_unfit(self, changes: tuple[str, ...]) -> bool:
        """Whether these settings cannot be trained although the unchanged recipe can. Otherwise a
        part or the data is at fault, not the settings: a study whose disk has failed must not
        record all its trials as bad.
        """
        try:
            check_variant(load_recipe(self.source, self.changes))
        except PhisenseError:
            return False
        try:
            check_variant(load_recipe(self.source, changes))
        except UNFIT_ERRORS:
            return True
        return False

    def _train(self, trial: Any, recipe: Recipe) -> float:
        """Train a trial, and prune it if it is behind the others at the same evaluation."""
        accuracies: list[float] = []

        def on_event(event: Event) -> None:
            if isinstance(event, TrainingStep | StepSkipped):
                self.on_event(event)
            if not isinstance(event, HeldOutEval):
                return
            trial.report(event.accuracy, len(accuracies))
            accuracies.append(event.accuracy)
            if trial.should_prune():
                trial.set_user_attr(
                    "why",
                    f"behind the others after {event.stage} {event.step} of {event.steps}",
                )
                raise _optuna().TrialPruned

        trained = train(recipe, device=self.device, discard_unfinished=True, on_event=on_event)
        if not accuracies:
            raise UsageError(
                "no held-out question can be judged",
                wanted="short answers about pictures in the feature store",
                do="Set data.held_out to such questions",
            )
        trial.set_user_attr("seconds", round(trained.seconds, 1))
        return accuracies[-1]

    def _report_trial(self, study: Any, trial: Any, recipe: Recipe, folder: Path) -> None:
        """Report the outcome of a trial, and write the report of the study."""
        complete = _optuna().trial.TrialState.COMPLETE
        if trial.state == complete:
            told = f"{trial.value:.1%} of {self.questions} held-out questions right"
        else:
            told = f"left out: {trial.user_attrs['why']}"
        self.on_event(Notice(f"trial {trial.number}: {told}"))
        if study.get_trials(deepcopy=False, states=(complete,)):
            self._report(study, recipe, folder)

    def _report(self, study: Any, recipe: Recipe, folder: Path) -> TuneResult:
        rows = [
            TrialResult(
                number=trial.number,
                state=trial.state.name.lower(),
                value=trial.value,
                settings=trial.params,
                seconds=trial.user_attrs.get("seconds"),
                why=trial.user_attrs.get("why"),
                curve=tuple(sorted(trial.intermediate_values.items())),
            )
            for trial in study.get_trials(deepcopy=False)
        ]
        complete = [row for row in rows if row.state == "complete"]
        if not complete:
            raise TrainingError(
                "no trial came to its end",
                got=f"{len(rows)} trials",
                do=next((row.why for row in rows if row.why), ""),
            )
        best = max(complete, key=lambda row: row.value or 0.0)
        settings = tuple(f"{key}={to_yaml(value)}" for key, value in best.settings.items())
        chosen = load_recipe(
            self.source,
            (
                *self.changes,
                *settings,
                f"name={recipe.name}-best",
                f"features.folder={_store(recipe)}",
            ),
        )
        written = _write_best(
            folder, yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False)
        )
        report = folder / "report.html"
        if report.is_file() and not report.read_bytes().startswith(
            PAGE_START.encode()
        ):  # not a page of ours
            report = safe_replace.unused_path(report)
        artifacts.write_bytes(report, render(recipe.name, rows, best, self.questions).encode())
        return TuneResult(best=best, trials=tuple(rows), recipe=str(written), report=str(report))


def _write_best(folder: Path, text: str) -> Path:
    """Write the best recipe in place of the previous one. A file that was edited by hand is kept,
    and this one gets a numbered name.
    """
    path = folder / "best.yaml"
    if path.is_file():
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        if first != _signed(rest):
            path = safe_replace.unused_path(path)
    artifacts.write_bytes(path, f"{_signed(text)}\n{text}".encode())
    return path


def _signed(text: str) -> str:
    return (
        f"# phisense tune, sha256 {hashlib.sha256(text.encode()).hexdigest()}: a better trial"
        " replaces this unless it was changed"
    )


def _recipe_value(recipe: Recipe, key: str) -> Any:
    """The recipe's value at a dotted key; None if the key does not exist."""
    at: Any = recipe
    for name in key.split("."):
        at = getattr(at, name, None)
    if at is None and key == "train.instruct.projector_learning_rate":
        return recipe.train.instruct.learning_rate
    return at


def _first_value(recipe: Recipe, one: Range) -> Any:
    """The recipe's value for the key of a range; if the range does not contain it, the value that
    takes effect in its place.
    """
    at: Any = recipe
    for name in one.key.split("."):
        at = getattr(at, name, None)
    return at if one.contains(at) else _recipe_value(recipe, one.key)


def _shared(recipe: Recipe) -> tuple[str, ...]:
    return (f"features.folder={_store(recipe)}",)


def _store(recipe: Recipe) -> Path:
    """Feature store folder, shared by all trials."""
    return recipe.features.folder or Path("features") / recipe.name


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("tuning needs Optuna", do="pip install 'phisense[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
