"""`phisense tune`: Optuna looks for the settings of a recipe with which most held-out questions are answered right.

studies/<recipe>/study.db       every trial, in SQLite; or in any storage that many workers can reach
                 best.yaml      the recipe of the best trial, for `phisense train`
                 report.html    the trials, and what each setting did, as plots
runs/<recipe>-tune-<number>     what `train` wrote for each trial that was not pruned

The recipe as it is goes first, so the best is never worse. A trial that is behind the others at the same held-out questions is pruned. A
worker that dies leaves its trial to the next one; a study that is there already is gone on with.
"""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import artefact, console
from ..errors import RecipeError, TerminatedError, TrainingError, UsageError
from ..evaluation.answers import is_right
from ..recipe import Recipe, load_recipe
from .report import render

FIRST_UNPRUNED = 3  # trials to whose median the later ones are compared
HEARTBEAT = 60  # seconds; after five of them without one a worker counts as dead
Verb = Callable[..., Any]
Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, by their logarithm if they span a factor of ten or more; or one of `choices`."""

    key: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()

    def suggest(self, trial: Any) -> Value:
        found: Value
        if self.choices:
            found = trial.suggest_categorical(self.key, list(self.choices))
        else:
            found = trial.suggest_float(self.key, self.low, self.high, log=0 < 10 * self.low <= self.high)
        return found

    def holds(self, value: Value) -> bool:
        return value in self.choices if self.choices else isinstance(value, (int, float)) and self.low <= value <= self.high


def parse_range(text: str) -> Range:
    """`key=low..high` or `key=one,two,three`. Raises UsageError."""
    key, equals, values = text.partition("=")
    if key and equals and ".." in values:
        try:
            low, high = (float(value) for value in values.split(".."))
        except ValueError:
            low, high = 0.0, 0.0
        if low < high:
            return Range(key, low, high)
    elif key and equals and len(values.split(",")) > 1:
        return Range(key, choices=tuple(yaml.safe_load(value) for value in values.split(",")))
    raise UsageError("--vary takes a range", got=repr(text), wanted="key=low..high or key=one,two, e.g. train.lora.rank=16,32,64")


def usual_ranges(recipe: Recipe) -> list[Range]:
    """Around what the recipe says: rates, rank and its scale, warm-up, and tokens per picture where averaging them is possible."""
    stage, lora = recipe.train.instruct, recipe.train.lora
    rates = {"learning_rate": stage.learning_rate, "projector_learning_rate": stage.projector_learning_rate or stage.learning_rate}
    ranges = [Range(f"train.instruct.{key}", rate / 5, rate * 5) for key, rate in rates.items()]
    ranges.append(Range("train.instruct.warm_up", 0.0, max(0.1, stage.warm_up)))
    for key, value in {"rank": lora.rank, "alpha": lora.alpha}.items() if lora else ():
        ranges.append(Range(f"train.lora.{key}", choices=tuple(sorted({max(1, value // 2), value, 2 * value}))))
    if recipe.projector.kind == "mlp" and not recipe.projector.nested:
        ranges.append(Range("projector.pool", choices=tuple(sorted({1, 2, recipe.projector.pool}))))
    return ranges


@dataclass(frozen=True)
class Tuning:
    """One worker of a study. `questions` held-out ones judge a trial; `trials` are those of all workers together."""

    source: str
    changes: tuple[str, ...]
    ranges: tuple[Range, ...]
    trials: int
    hours: float | None
    questions: int
    storage: str | None
    device: str
    verb: Verb

    def __call__(self) -> dict[str, Any]:
        """Returns the best trial's settings and score, and the paths of what was written. Raises UsageError if nothing can be judged."""
        recipe = load_recipe(self.source, self.changes)
        if not recipe.data.held_out:
            raise UsageError("there is nothing to tune by", got="no held-out question", do="Set data.held_out in the recipe")
        unknown = [one.key for one in self.ranges if _at(recipe, one.key) is None]
        if unknown:
            raise UsageError("--vary names no value of the recipe", got=", ".join(unknown), wanted="for example train.lora.rank")
        seen = [one.key for one in self.ranges if one.key.startswith(("vision.", "features."))]
        if seen:
            raise UsageError("all trials read the same features", got=f"--vary {seen[0]}", do="phisense compare walks such variants")
        folder = recipe.root / "studies" / recipe.name
        folder.mkdir(parents=True, exist_ok=True)
        self.verb("features", self.source, *_sets((*self.changes, *_shared(recipe), *self._asked)), "--device", self.device)
        study = self._study(recipe, folder)
        self._run(study, recipe, folder)
        return self._report(study, recipe, folder)

    @property
    def _asked(self) -> tuple[str, str]:
        return f"train.watch.questions={self.questions}", f"train.watch.final_questions={self.questions}"

    def _study(self, recipe: Recipe, folder: Path) -> Any:
        optuna = _optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # they are what a dead worker's trial is found by
            storage = optuna.storages.RDBStorage(
                self.storage or f"sqlite:///{folder / 'study.db'}",
                heartbeat_interval=HEARTBEAT,
                grace_period=5 * HEARTBEAT,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
            )
        unpruned = recipe.train.watch.times if recipe.train.align else 0  # align's looks say little of how it will end
        study = optuna.create_study(
            study_name=recipe.name, storage=storage, direction="maximize", load_if_exists=True,
            sampler=optuna.samplers.TPESampler(n_startup_trials=5, multivariate=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_UNPRUNED, n_warmup_steps=unpruned),
        )  # fmt: skip
        as_it_is = {one.key: _at(recipe, one.key) for one in self.ranges}
        if not study.trials and all(one.holds(as_it_is[one.key]) for one in self.ranges):
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
                lambda study, trial: self._so_far(study, trial, recipe, folder),
                lambda study, trial: gc.collect(),  # the model of the trial, before the next one's is built
            ],
        )

    def _trial(self, trial: Any, recipe: Recipe) -> float:
        optuna = _optuna()
        its = tuple(f"{one.key}={one.suggest(trial)}" for one in self.ranges)
        name = f"{recipe.name}-tune-{trial.number}"
        console.out.rule(f"trial {trial.number}", align="left")
        console.out.print(" ".join(its), markup=False, soft_wrap=True)
        wanted = (f"name={name}", *_shared(recipe), *self._asked)
        changed: Recipe | None = None
        try:
            changed = load_recipe(self.source, (*self.changes, *its, *wanted))
            return self._train(trial, changed)
        except TerminatedError:
            raise
        except (RecipeError, TrainingError) as error:  # settings that do not go together, or with which training breaks
            trial.set_user_attr("why", str(error))
            raise optuna.TrialPruned from error
        finally:
            if changed is not None and not (changed.run / artefact.MANIFEST).is_file():
                shutil.rmtree(changed.run, ignore_errors=True)

    def _train(self, trial: Any, recipe: Recipe) -> float:
        from ..training import Training

        reported = 0
        last: float | None = None

        def watch(row: dict[str, Any]) -> None:
            nonlocal reported, last
            if "held_out" not in row:
                bar(row["stage"], row["step"], row["steps"])
                return
            last = float(row["held_out"])
            trial.report(last, reported)
            reported += 1
            if trial.should_prune():
                trial.set_user_attr("why", f"behind the others after {row['stage']} {row['step']} of {row['steps']}")
                raise _optuna().TrialPruned

        with console.bars() as bar:
            facts = Training(recipe, watch, device=self.device, judge=is_right)()
        if last is None:
            raise UsageError(
                "no held-out question can be judged", wanted="short answers about pictures in the feature store",
                do="Set data.held_out to such questions",
            )  # fmt: skip
        trial.set_user_attr("seconds", round(facts["seconds"], 1))
        return last

    def _so_far(self, study: Any, trial: Any, recipe: Recipe, folder: Path) -> None:
        """What a trial came to, on a line; and the report."""
        complete = _optuna().trial.TrialState.COMPLETE
        if trial.state == complete:
            told = f"{trial.value:.1%} of {self.questions} held-out questions right"
        else:
            told = f"left out: {trial.user_attrs['why']}"
        console.out.print(f"trial {trial.number}: {told}", markup=False, soft_wrap=True)
        if study.get_trials(deepcopy=False, states=(complete,)):
            self._report(study, recipe, folder)

    def _report(self, study: Any, recipe: Recipe, folder: Path) -> dict[str, Any]:
        rows = [
            {
                "number": trial.number, "state": trial.state.name.lower(), "value": trial.value, "settings": trial.params,
                "seconds": trial.user_attrs.get("seconds"), "why": trial.user_attrs.get("why"),
                "curve": sorted(trial.intermediate_values.items()),
            }
            for trial in study.get_trials(deepcopy=False)
        ]  # fmt: skip
        complete = [row for row in rows if row["state"] == "complete"]
        if not complete:
            raise TrainingError(
                "no trial came to its end", got=f"{len(rows)} trials", do=str(next((r["why"] for r in rows if r["why"]), ""))
            )
        best = max(complete, key=lambda row: row["value"])
        settings = tuple(f"{key}={value}" for key, value in best["settings"].items())
        chosen = load_recipe(self.source, (*self.changes, *settings, f"name={recipe.name}-best", f"features.folder={_store(recipe)}"))
        artefact.write_bytes(folder / "best.yaml", yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False).encode())
        artefact.write_bytes(folder / "report.html", render(recipe.name, rows, best, self.questions).encode())
        return {
            "best": best, "trials": rows, "recipe": str(folder / "best.yaml"), "report": str(folder / "report.html"),
        }  # fmt: skip


def _at(recipe: Recipe, key: str) -> Any:
    """What the recipe says at a dotted key; None if there is no such."""
    at: Any = recipe
    for name in key.split("."):
        at = getattr(at, name, None)
    if at is None and key == "train.instruct.projector_learning_rate":
        return recipe.train.instruct.learning_rate
    return at


def _shared(recipe: Recipe) -> tuple[str, ...]:
    return (f"features.folder={_store(recipe)}",)


def _store(recipe: Recipe) -> Path:
    """All trials read the same pictures."""
    return recipe.features.folder or Path("features") / recipe.name


def _sets(changes: Sequence[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("tuning needs Optuna", do="pip install 'phisense[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
