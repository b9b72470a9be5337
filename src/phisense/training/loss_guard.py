"""Guard against bad steps: if the loss or gradient is not finite, or the loss jumps, the run stops
or skips the step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distributed import ProcessGroup
from ..errors import TrainingError
from ..model.sharding import local
from ..recipe import Train

WINDOW_STEPS = 50  # steps whose median a loss is compared to
MIN_STEPS = 10  # steps before which no loss counts as a spike
MAX_CONSECUTIVE = 10  # skipped steps in a row after which the run stops, whatever the recipe says
MAX_IDS_SHOWN = 8  # conversation ids in the error message; all are in metrics.jsonl


class LossGuard(TrainerCallback):
    """Checks every step before the optimizer takes it, from the micro-batch losses and conversation
    ids given to `record`.
    """

    def __init__(
        self, train: Train, processes: ProcessGroup, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.policy, self.spike = train.bad_step, train.spike
        self.processes, self.report = processes, report
        self.recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self.consecutive = 0
        self._losses: list[torch.Tensor] = []
        self._ids: list[str] = []

    def record(self, loss: torch.Tensor, ids: tuple[str, ...]) -> None:
        """Record a micro-batch: its loss, a scalar, and its conversation ids."""
        self._losses.append(loss)
        self._ids += ids

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, so that a resumed run makes the same decisions."""
        return {"recent": list(self.recent), "in_a_row": self.consecutive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.recent.extend(state["recent"])
        self.consecutive = state["in_a_row"]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skip a bad step, or raise TrainingError if the run must stop."""
        # Each process holds its share of the loss times the number of processes; their mean is the
        # loss that Trainer logs, and with it all processes make the same decision.
        loss = (
            self.processes.all_reduce_sum(float(torch.stack(self._losses).sum()))
            / self.processes.world_size
        )
        defect = self._defect(loss, kwargs["model"])
        ids, self._losses, self._ids = self._ids, [], []
        if defect is None:
            self.recent.append(loss)
            self.consecutive = 0
            return
        step = state.global_step + 1
        ids = sorted(set(self.processes.all_gather(ids)))
        self.consecutive += 1
        self.report(
            {
                "step": step,
                "steps": state.max_steps,
                "skipped": ids,
                "why": defect,
                "bad_loss": loss if math.isfinite(loss) else None,
            }
        )
        if self.policy == "skip" and self.consecutive < MAX_CONSECUTIVE:
            # without a gradient neither a parameter nor its momentum changes
            kwargs["optimizer"].zero_grad(set_to_none=True)
            return
        raise TrainingError(
            f"{defect} at step {step}; the weights are as they were before it",
            got=f"{loss:.3f} from the conversations {', '.join(ids[:MAX_IDS_SHOWN])}"
            + (", ..." if len(ids) > MAX_IDS_SHOWN else ""),
            wanted=f"fewer than {MAX_CONSECUTIVE} such steps in a row"
            if self.policy == "skip"
            else None,
            do=(
                "Look at them with phisense show, lower the learning rate, or go on without such"
                " steps: train --resume --accept-changes --set train.bad_step=skip"
            ),
        )

    def _defect(self, loss: float, model: Any) -> str | None:
        if not math.isfinite(loss):
            return "the loss is not finite"
        gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
        finite = (
            bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all())
            if gradients
            else True
        )
        if self.processes.all_reduce_sum(float(not finite)):
            return "the gradient is not finite"
        if (
            self.spike is not None
            and len(self.recent) >= MIN_STEPS
            and loss > statistics.median(self.recent) + self.spike
        ):
            return "the loss jumped"
        return None
