"""The training stages of a recipe: parts -> model -> freeze -> data -> align -> instruct, and
further stages -> run folder.

runs/<name>/recipe.yaml     the resolved recipe
            parts.json      a digest of each part's content: see model/provenance.py
            metrics.jsonl   one line per log step
            loss.png        the loss curves
            common_answers.json    the commonest training answers, with which a model is compared
            train.json      trainable parameters, projector change, whether the model uses its
                            images, tokens and seconds
            adapter/        LoRA and projector, in PEFT's format; after full fine-tuning weights/
            stages/         each finished stage's weights; its checkpoints while it runs
            manifest.json   written last: a run without it never finished
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import set_seed

from .. import artifacts
from ..conversations import common_answers
from ..distributed import ProcessGroup, current_process_group
from ..errors import TrainingError
from ..model import Phi3WithProjector, trainable
from ..model.arithmetic import choose_arithmetic
from ..model.provenance import (
    PartDigests,
    check_parts_unchanged,
    digest_parts,
    pin_revisions,
    write_digests,
)
from ..pipeline.progress import OnEvent, Progress, ignore
from ..pipeline.results import StageResult, TrainingVerdict, TrainResult
from ..recipe import Recipe, load_recorded_recipe
from . import checkpoints, run_folder
from .eval_callback import IsCorrect, eval_questions
from .plot import plot_losses
from .preflight import check_pictures, preflight
from .run_context import (
    FrozenWeights,
    RunContext,
    build_model,
    calibrate_projector,
    count_answers,
    open_store,
    shard_if_asked,
    unfreeze_language,
    use_of_projector,
)
from .stage_plan import StagePlan, is_made, plan_stage
from .stage_run import StageOutcome, train_stage


@dataclass
class Training:
    """One run of `train`.

    `on_event` receives a TrainingStep for every logged row, a StepSkipped for every skipped step, a
    HeldOutEval after every evaluation on held-out questions, scored by `is_correct`, and a Notice
    about questions that cannot be evaluated.
    """

    recipe: Recipe
    on_event: OnEvent = ignore
    resume: bool = False
    overwrite: bool = False
    accept_changes: bool = False
    is_correct: IsCorrect | None = None
    device: str = "auto"
    processes: ProcessGroup = field(default_factory=current_process_group)
    began: bool = field(init=False, default=False)  # whether this training owns the run's folder

    def __call__(self) -> TrainResult:
        """Train, write the run folder, and return the content of `train.json`.

        Raises TrainingError if another process trains in the folder, PartError if a part changed
        since a resumed run began, TerminatedError on SIGTERM, after writing a checkpoint.
        """
        if self.processes.is_main:
            run_folder.check_run_folder(
                self.recipe.run, resume=self.resume, overwrite=self.overwrite
            )
        started = time.monotonic()
        parts = self._find_parts()
        recipe = self.recipe
        arithmetic = choose_arithmetic("train", self.device, compute_dtype=recipe.compute_dtype)
        with self._phase("reading the data"):
            ahead = preflight(recipe, processes=self.processes.world_size)
        run = RunContext(
            recipe,
            parts,
            arithmetic,
            open_store(recipe, arithmetic),
            self.processes,
            self.on_event,
            self.is_correct,
        )
        # a run whose stages have all finished evaluates no questions
        done = self.resume and all(is_made(recipe, name) for name in ahead)
        asks = self.is_correct is not None and not done
        check_pictures(recipe, ahead, run.store, eval_questions(recipe) if asks else ())
        set_seed(recipe.seed)
        phase = self._phase
        if not (done and run_folder.is_finished(recipe.run)):
            with phase("counting answers"):
                run = replace(run, answers=count_answers(recipe))
        with phase("loading the model"):
            built = build_model(run)
        frozen = FrozenWeights.of(built, lora=recipe.train.lora is not None)
        plans = [
            plan_stage(
                run,
                name,
                ahead.pop(name),
                frozen,
                resume=self.resume,
                accept_changes=self.accept_changes,
            )
            for name in list(ahead)
        ]
        if done and run_folder.is_finished(recipe.run):
            return TrainResult.load(recipe.run)
        return self._in_folder(run, built, frozen, plans, started)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A part of the work that is not counted: its progress is 0 of 1, then 1 of 1."""
        tell = self.on_event if self.processes.is_main else ignore
        tell(Progress(name, 0, 1))
        yield
        tell(Progress(name, 1, 1))

    def _find_parts(self) -> PartDigests:
        """Pin the recipe's Hub ids, and check the parts before anything is loaded or written."""
        folder = self.recipe.run
        before = folder / "recipe.yaml"
        self.recipe = pin_revisions(
            self.recipe,
            earlier=load_recorded_recipe(before) if self.resume and before.is_file() else None,
        )
        if not self.resume or self.accept_changes:
            return digest_parts(self.recipe)
        again = (
            "Put it back as it was, begin anew with --overwrite, or go on with the other by"
            " --accept-changes"
        )
        return check_parts_unchanged(folder, self.recipe, do=again)

    def _in_folder(
        self,
        run: RunContext,
        built: Phi3WithProjector,
        frozen: FrozenWeights,
        plans: list[StagePlan],
        started: float,
    ) -> TrainResult:
        """Train in the run's folder, locked for this process, unless another has trained there."""
        folder = run.recipe.run
        seen = run_folder.manifest_times(folder)
        self.processes.barrier()  # until all processes have read the folder's state
        with run_folder.lock_run(folder) if self.processes.is_main else nullcontext():
            if self.processes.is_main:
                run_folder.check_run_folder(
                    folder, resume=self.resume, overwrite=self.overwrite, mine=True
                )
                if self.resume and run_folder.manifest_times(folder) != seen:
                    raise TrainingError(
                        f"another process has trained in {folder} meanwhile",
                        do="Resume once more",
                    )
                run_folder.begin_run(run.recipe, resume=self.resume)
                self.began = True
                write_digests(folder, run.parts)
            self.processes.barrier()
            return self._train(run, built, frozen, plans, started)

    def _train(
        self,
        run: RunContext,
        built: Phi3WithProjector,
        frozen: FrozenWeights,
        plans: list[StagePlan],
        started: float,
    ) -> TrainResult:
        recipe = run.recipe
        trainable.freeze_all_but_projector(built)
        with self._phase("calibrating the projector"):
            calibration = calibrate_projector(run, built)
        before = trainable.snapshot(built.projector)
        stages: dict[str, StageResult] = {}
        if recipe.train.align is not None:
            shard_if_asked(run, built, built.model)
            aligned = run_stage(run, plans.pop(0), built, built.model, frozen).result
            change = trainable.relative_change(before, built.projector)
            stages["align"] = replace(aligned, projector_change=change)
        model = unfreeze_language(run, built)
        counted = trainable.count_trainable(model, recipe)
        verdict = None
        while plans:
            plan = plans.pop(0)  # which lets go of the data of the one before
            outcome = run_stage(run, plan, built, model, frozen)
            stages[plan.name], verdict = outcome.result, outcome.verdict
        change = trainable.relative_change(before, trainable.get_projector(model))
        _check_moved(change)
        result = TrainResult(
            folder=recipe.run,
            arithmetic=run.arithmetic.to_dict(),
            four_bit_codes=frozen.codes,
            plain_weights=frozen.plain,
            calibration=calibration,
            stages=stages,
            trainable=counted.trainable,
            trainable_expected=counted.trainable_expected,
            modules=tuple(counted.modules),
            verdict=TrainingVerdict() if verdict is None else verdict,
            projector_change=change,
            seconds=time.monotonic() - started,
        )
        with artifacts.translate_disk_errors(recipe.run):
            trainable.save_trained(model, recipe.run, write=self.processes.is_main)
        if self.processes.is_main:
            self._finish(run, result)
        self.processes.barrier()
        return result

    def _finish(self, run: RunContext, result: TrainResult) -> None:
        folder = result.folder
        with artifacts.translate_disk_errors(folder):
            plot_losses(folder / "metrics.jsonl", folder / "loss.png")
        if run.answers is not None:
            artifacts.write_json(folder / common_answers.FILE, run.answers.to_dict())
        artifacts.write_json(folder / TrainResult.FILE, result.to_dict())
        run_folder.finish_run(
            folder,
            {"recipe": self.recipe.name, "base": "nf4" if self.recipe.train.quantize else "full"},
        )


def run_stage(
    run: RunContext, plan: StagePlan, built: Phi3WithProjector, model: Any, frozen: FrozenWeights
) -> StageOutcome:
    """Train one stage, or load its weights if a resumed run had finished it. Raises TrainingError
    if the frozen weights changed.
    """
    if plan.finished is not None:
        outcome = StageOutcome.from_dict(plan.finished, f"{plan.folder}: facts")
        checkpoints.load_stage(model, plan.folder)
        return outcome
    with use_of_projector(run, model) as use:
        outcome = train_stage(run, plan, built, model, use)
    frozen.check(plan.name, built)
    about = {"facts": outcome.to_dict(), "about": plan.about}
    checkpoints.finish_stage(model, plan.folder, about=about, write=run.processes.is_main)
    return outcome


def _check_moved(change: float) -> None:
    """Raises TrainingError unless training changed the projector."""
    if change > 0:
        return
    raise TrainingError(
        "training did not move the projector",
        got="a change of 0",
        wanted="more",
        do=(
            "In a warm-up the first step's rate is 0: take more steps, or warmup_ratio: 0. Else it"
            " is a fault of phisense"
        ),
    )
