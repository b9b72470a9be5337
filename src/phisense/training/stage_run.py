"""Train one stage: the Trainer with its callbacks, from the plan to the stage's result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback

from ..model import Phi3WithProjector
from ..model.projector_use import ProjectorUse
from ..pipeline.progress import ignore
from ..pipeline.results import StageResult, TrainingVerdict
from . import checkpoints
from .data import Collator, Samples
from .eval_callback import EvalCallback
from .gradient_check import GradientCheck
from .heap_callback import HeapCallback
from .loss_guard import LossGuard
from .metrics_log import MetricsLog
from .objectives import OBJECTIVES, BatchLayout
from .preemption import PreemptionCallback
from .run_context import RunContext
from .stage_plan import StagePlan
from .trainer import Reporter, StageTrainer


@dataclass(frozen=True)
class StageOutcome:
    """A trained stage; after the run's last, with the verdict whether the model uses its images."""

    result: StageResult
    verdict: TrainingVerdict | None

    def to_dict(self) -> dict[str, object]:
        """The JSON object that the stage's manifest holds."""
        looks = {} if self.verdict is None else {"looks": self.verdict.to_dict()}
        return {**self.result.to_dict(), **looks}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], source: str) -> Self:
        """Read `to_dict`'s JSON. Raises ArtifactError for anything else."""
        looks = document.get("looks")
        rest = {key: value for key, value in document.items() if key != "looks"}
        verdict = None if looks is None else TrainingVerdict.from_dict(looks, source)
        return cls(StageResult.from_dict(rest, source), verdict)


def train_stage(
    run: RunContext,
    plan: StagePlan,
    built: Phi3WithProjector,
    model: Any,
    use: ProjectorUse | None,
) -> StageOutcome:
    """Train `model`, which is `built.model` with or without LoRA, by the plan of a stage. `use` is
    that of its projector, where batches without images need one.
    """
    recipe, samples, checkpoint = run.recipe, plan.ahead.samples, plan.checkpoint
    resumed_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    collate = _collator(run, plan, built)
    log = MetricsLog(recipe.run / "metrics.jsonl", plan.name, collate, run.on_event, run.processes)
    if run.processes.is_main:
        log.truncate_after(resumed_step)
    preemption = PreemptionCallback(run.processes)
    tell = run.on_event if run.processes.is_main else ignore
    evaluation = EvalCallback(
        built,
        run.store,
        recipe,
        run.is_correct,
        log,
        stage=plan.name,
        training=run.answers,
        on_event=tell,
    )
    trainer = StageTrainer(
        model=model,
        args=plan.args,
        train_dataset=samples,
        data_collator=collate,
        callbacks=[Reporter(log), evaluation, preemption, HeapCallback(tell)],
        stage=plan.stage,
        objective=collate.objective,
        about=plan.about,
        guard=LossGuard(recipe.train, run.processes, log),
        processes=run.processes,
        keep_checkpoints=recipe.train.keep_checkpoints,
        projector_use=use,
        sharded=run.shards,
    )
    check = GradientCheck(
        samples,
        collate,
        trainer.loss_of,
        run.arithmetic.dtype,
        run.processes,
        lambda: evaluation.held_out_accuracy is not None,
        recipe.seed,
        # half of what a micro-batch may have: the twin computes in twice the bytes
        plan.args.per_device_train_batch_size * max(samples.lengths) // 2,
    )
    trainer.add_callback(check)  # after EvalCallback, whose result it reads
    trainer.remove_callback(PrinterCallback)  # rows are reported by `MetricsLog`
    log({"step": 0, "steps": count_trainer_steps(trainer, samples)})
    started = time.monotonic()
    # autocast undoes PEFT's cast to float32 at once, and keeps the copy for the backward pass
    with preemption, disable_input_dtype_casting(model):
        trained = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    evaluation.finish(model, trained.global_step)
    # no step was left, so Trainer did not restore the random state
    if checkpoint and resumed_step == trained.global_step:
        trainer._load_rng_state(str(checkpoint))
    seconds = time.monotonic() - started - sum(one.seconds for one in check.results)
    tokens = int(run.processes.all_reduce_sum(collate.tokens))
    result = StageResult(
        samples=samples.conversations,
        data=tuple(samples.sets),
        rows=len(samples),
        shortened=samples.num_shortened,
        steps=trained.global_step,
        loss=trained.training_loss,
        last_loss=log.last_loss,
        held_out_accuracy=evaluation.held_out_accuracy,
        blind_accuracy=evaluation.blind_accuracy,
        not_asked=tuple(evaluation.unasked),
        gradient_checks=tuple(check.results),
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        seconds=seconds,
    )
    return StageOutcome(result, evaluation.verdict)


def _collator(run: RunContext, plan: StagePlan, built: Phi3WithProjector) -> Collator:
    how = run.arithmetic
    return Collator(
        run.store.pixels if run.recipe.tunes_vision else run.store.batch,
        OBJECTIVES[plan.stage.objective],
        BatchLayout(built.prompt.end_of_text_id, how.attention, how.token_multiple),
    )


def count_trainer_steps(trainer: StageTrainer, samples: Samples) -> int:
    """Number of optimizer steps that a trainer will take."""
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    per_step = (
        trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.processes.world_size
    )
    per_epoch = max(1, -(-len(samples) // per_step))
    return int(per_epoch * trainer.args.num_train_epochs)
