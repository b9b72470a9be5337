"""What Trainer does otherwise: nothing wraps a sharded model, since its own hooks gather the
weights and average the gradients; and a step without images leaves the projector alone.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distributed import ProcessGroup
from ..model.projector_use import ProjectorUse


def prepare_unwrapped(accelerator: Any) -> None:
    """Let an Accelerator put autocast around a model, but no DistributedDataParallel."""
    prepare = accelerator.prepare_model

    def unwrapped(model: Any, *_: Any, **__: Any) -> Any:
        return prepare(model, device_placement=False, evaluation_mode=True)

    accelerator.prepare_model = unwrapped


class IdleProjector(TrainerCallback):
    """Takes the gradient of zero off the projector if no batch of the step had an image, as in one
    process: AdamW would move it by its momentum.
    """

    def __init__(self, use: ProjectorUse, processes: ProcessGroup) -> None:
        self.use, self.processes = use, processes

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget what was computed between steps, by the gradient check, say."""
        self.use.used = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask all processes whether they saw an image in this step."""
        if not self.processes.all_reduce_sum(float(self.use.used)):
            for weight in self.use.weights:
                weight.grad = None
