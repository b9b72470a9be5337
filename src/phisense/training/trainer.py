"""HF Trainer with two learning rates, length-grouped batches, logits at supervised positions only,
and verified checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from .. import artifacts
from ..distributed import ProcessGroup
from ..model.batch_generate import logits_at
from ..model.projector_use import ProjectorUse
from ..model.trainable import load_trainable, save_trainable
from ..recipe import Stage
from . import checkpoints
from .data import Samples
from .loss_guard import LossGuard
from .objectives import Objective
from .objectives.base import count_supervised, supervised_positions
from .optimizer import stage_optimizer
from .optimizer_state import STATE_FILE, load_moments, save_moments
from .sampler import LengthGroupedSampler
from .sharded_steps import IdleProjector, prepare_unwrapped

GUARD_FILE, SCHEDULER_FILE = "guard.json", "scheduler.pt"
LogRow = Callable[[dict[str, Any]], None]


def arguments(
    stage: Stage,
    folder: Path,
    *,
    seed: int,
    rows: int,
    passes: int,
    log_every: int,
    save_every: int,
    bf16: bool,
    cpu: bool,
    checkpointing: bool,
    report_to: tuple[str, ...],
    skip_bad_steps: bool,
) -> TrainingArguments:
    """TrainingArguments of a stage: micro-batches of `rows`, `passes` of them per step in every
    process.
    """
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warmup_ratio,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        bf16=bf16,
        use_cpu=cpu,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        logging_steps=log_every,
        save_strategy="steps",
        save_steps=save_every,
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=True,  # the last layers of a trained vision tower
        report_to=list(report_to) or "none",
        disable_tqdm=True,
        # otherwise one skipped step makes the logged mean loss NaN
        logging_nan_inf_filter=skip_bad_steps,
    )


class StageTrainer(Trainer):
    """Trainer of one stage by its `objective`. `about` describes what the run is made of;
    checkpoints made of anything else are rejected. A model that is `sharded`, trained by
    several processes, or of which the projector alone is trained, comes with its `projector_use`.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        stage: Stage,
        objective: Objective,
        about: dict[str, Any],
        guard: LossGuard,
        processes: ProcessGroup,
        keep_checkpoints: int,
        projector_use: ProjectorUse | None = None,
        sharded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, compute_loss_func=self._objective_loss, **kwargs)
        if sharded:
            prepare_unwrapped(self.accelerator)
        if projector_use is not None:
            self.add_callback(IdleProjector(projector_use, processes))
        self.sharded = sharded
        self.objective = objective
        self._batch: dict[str, Any] = {}  # whose loss is being computed
        self.guard = guard
        self.add_callback(guard)
        self.stage = stage
        self.about = about
        self.processes = processes
        self.keep_checkpoints = keep_checkpoints

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The stage's optimizer, created once."""
        if self.optimizer is None:
            self.optimizer = stage_optimizer((model or self.model).named_parameters(), self.stage)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        assert isinstance(dataset, Samples)
        size = (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.processes.world_size
        )
        return LengthGroupedSampler(
            dataset.lengths,
            size,
            seed=self.args.data_seed or 0,
            fill_last=self.processes.world_size > 1,
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the objective's loss from the logits of supervised positions only."""
        # Trainer takes `labels` out before the model
        given = {k: v for k, v in inputs.items() if k not in ("ids", *self.objective.targets)}
        self._batch = inputs
        try:
            with logits_at(self.model, supervised_positions(inputs["labels"])):
                return super().compute_loss(model, given, *args, **kwargs)
        finally:
            self._batch = {}

    def _objective_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
    ) -> torch.Tensor:
        return self.objective.loss(outputs, self._batch, num_items_in_batch)

    def loss_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of one batch as a training step computes it, per supervised token (times the
        number of processes), without a backward pass.
        """
        model = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(
                model,
                self._prepare_inputs(batch),
                num_items_in_batch=count_supervised(batch["labels"]),
            )
        return loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch; returns its loss, which the guard records."""
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.guard.record(loss, inputs["ids"])
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save only the trainable weights: the frozen base does not change."""
        folder = Path(output_dir or self.args.output_dir)
        save_trainable(self.model, folder, write=self.processes.is_main)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder = Path(output_dir)
        save_moments(
            self.optimizer, self.model, folder / STATE_FILE if self.processes.is_main else None
        )
        if self.processes.is_main:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore both, whether the checkpoint is that of a sharded model or not."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if not self.sharded and not (folder / STATE_FILE).is_file():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_moments(self.optimizer, self.model, folder)
        schedule = torch.load(folder / SCHEDULER_FILE, weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)
        assert self.optimizer is not None
        for group, rate in zip(
            self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = rate  # which Trainer's file has, and moments alone have not

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state; that of the first process if another number of processes wrote
        the checkpoint.
        """
        world = self.processes.world_size
        if checkpoint is not None and len(list(Path(checkpoint).glob("rng_state*.pth"))) != world:
            restore_random_state(Path(checkpoint))
            return
        super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with artifacts.translate_disk_errors(folder):
            super()._save_checkpoint(model, trial)
        self.processes.barrier()  # every process saves its own RNG state
        if self.processes.is_main:
            artifacts.write_json(folder / GUARD_FILE, self.guard.state_dict())
            checkpoints.finish_checkpoint(folder, about=self.about, keep=self.keep_checkpoints)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(model or self.model, Path(resume_from_checkpoint))
        self.guard.load_state_dict(artifacts.read_json(Path(resume_from_checkpoint) / GUARD_FILE))


def restore_random_state(checkpoint: Path) -> None:
    """Restore torch's random state on the CPU as the first process saved it, with which the next
    stage begins its adapter. Dropout's masks depend on the number of processes in any case.
    """
    for name in ("rng_state.pth", "rng_state_0.pth"):
        if (checkpoint / name).is_file():
            with safe_globals():
                state = torch.load(checkpoint / name, weights_only=True)
            torch.random.set_rng_state(state["cpu"])


class Reporter(TrainerCallback):
    """Passes every log row, with step and number of steps, to one function."""

    def __init__(self, report: LogRow) -> None:
        self.report = report

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Report step, steps and logs."""
        self.report({"step": state.global_step, "steps": state.max_steps, **(logs or {})})
