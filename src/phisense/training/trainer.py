"""HF Trainer with what it lacks here: two learning rates, batches of like length, logits only where they are needed, checkpoints
that are verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import artefact
from ..model.asking import logits_at
from ..model.trained import load_trainable, save_trainable
from ..processes import Processes
from ..prompt import IGNORED
from ..recipe import Stage
from . import checkpoints
from .batches import LikeLengths
from .data import Samples
from .guard import Guard
from .optimizer import stage_optimizer

GUARD = "guard.json"
Progress = Callable[[dict[str, Any]], None]


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
    """`rows` go through the model at once, `passes` times for each step, in every process."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warm_up,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.clip,
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
        ddp_find_unused_parameters=True,  # rows without a picture leave the projector out
        report_to=list(report_to) or "none",
        disable_tqdm=True,
        logging_nan_inf_filter=skip_bad_steps,  # or the mean over the logged steps is as bad as the one left out,
    )


class StageTrainer(Trainer):
    """One stage. `about` says what the run is made of; checkpoints of anything else are refused."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *args: Any, stage: Stage, about: dict[str, Any], guard: Guard, processes: Processes, **kwargs: Any) -> None:
        super().__init__(*args, compute_loss_func=supervised_loss, **kwargs)
        self.guard = guard
        self.add_callback(guard)
        self.stage = stage
        self.about = about
        self.processes = processes

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = stage_optimizer((model or self.model).named_parameters(), self.stage)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        assert isinstance(dataset, Samples)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.processes.count
        return LikeLengths(dataset.lengths, size, seed=self.args.data_seed or 0, fill=self.processes.count > 1)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """With the logits of supervised positions only."""
        inputs = {key: value for key, value in inputs.items() if key != "ids"}
        with logits_at(self.model, nn.functional.pad(inputs["labels"][:, 1:] != IGNORED, (0, 1))):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def loss_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of one batch as a training step computes it, per supervised token (times the processes); nothing is learned."""
        supervised = int((batch["labels"][:, 1:] != IGNORED).sum())
        model = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, self._prepare_inputs(batch), num_items_in_batch=supervised)
        return loss

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.guard.saw(loss, inputs["ids"])
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Only what training moves: the frozen base is where it was."""
        save_trainable(self.model, Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with artefact.writing(folder):
            super()._save_checkpoint(model, trial)
        self.processes.wait()  # each saves the state of its random numbers
        if self.processes.first:
            artefact.write_json(folder / GUARD, self.guard.state())
            checkpoints.finish(folder, about=self.about)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(model or self.model, Path(resume_from_checkpoint))
        self.guard.load(artefact.read_json(Path(resume_from_checkpoint) / GUARD))


def supervised_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """Loss of the logits `(N, V)` at the N supervised positions, summed, over the number of them in the whole step.

    Summed in float64, or the last digits would tell how a step was cut.
    """
    shifted = labels[:, 1:]
    losses = nn.functional.cross_entropy(outputs.logits.float(), shifted[shifted != IGNORED], reduction="none")
    return losses.double().sum() / num_items_in_batch


class Reporter(TrainerCallback):
    """Hands every log line, with step, steps in all, and seconds, to one function."""

    def __init__(self, report: Progress) -> None:
        self.report = report

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        self.report({"step": state.global_step, "steps": state.max_steps, **(logs or {})})
