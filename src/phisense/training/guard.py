"""A step whose loss or gradient is not finite, or whose loss jumps, is not taken: the run stops there, or leaves the step out."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError
from ..processes import Processes
from ..recipe import Train

RECENT = 50  # steps, to whose median a loss is compared
FEWEST = 10  # before that many nothing is a spike
IN_A_ROW = 10  # so many steps left out, and the run stops whatever the recipe says
NAMED = 8  # conversations in the message; all are in metrics.jsonl


class Guard(TrainerCallback):
    """`saw` is told the loss of every micro-batch, a part of its step's, and its conversations; the step is judged before it is taken."""

    def __init__(self, train: Train, processes: Processes, report: Callable[[dict[str, Any]], None]) -> None:
        self.policy, self.spike = train.bad_step, train.spike
        self.processes, self.report = processes, report
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.in_a_row = 0
        self._losses: list[torch.Tensor] = []
        self._ids: list[str] = []

    def saw(self, loss: torch.Tensor, ids: tuple[str, ...]) -> None:
        self._losses.append(loss)
        self._ids += ids

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run judges alike."""
        return {"recent": list(self.recent), "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        self.recent.extend(state["recent"])
        self.in_a_row = state["in_a_row"]

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raises TrainingError if the run is to stop."""
        # Each process holds its own part times their number, whose mean Trainer logs; all come to the same judgement.
        loss = self.processes.total(float(torch.stack(self._losses).sum())) / self.processes.count
        defect = self._defect(loss, kwargs["model"])
        ids, self._losses, self._ids = self._ids, [], []
        if defect is None:
            self.recent.append(loss)
            self.in_a_row = 0
            return
        step = state.global_step + 1
        ids = sorted(set(self.processes.gather(ids)))
        self.in_a_row += 1
        self.report(
            {"step": step, "steps": state.max_steps, "skipped": ids, "why": defect, "bad_loss": loss if math.isfinite(loss) else None}
        )
        if self.policy == "skip" and self.in_a_row < IN_A_ROW:
            kwargs["optimizer"].zero_grad(set_to_none=True)  # without a gradient a parameter stays as it is, and so does its momentum
            return
        raise TrainingError(
            f"{defect} at step {step}; the weights are as they were before it",
            got=f"{loss:.3f} from the conversations {', '.join(ids[:NAMED])}" + (", ..." if len(ids) > NAMED else ""),
            wanted=f"fewer than {IN_A_ROW} such steps in a row" if self.policy == "skip" else None,
            do="Look at them with phisense show, lower the learning rate, or go on without such steps: "
            "train --resume --accept-changes --set train.bad_step=skip",
        )

    def _defect(self, loss: float, model: Any) -> str | None:
        if not math.isfinite(loss):
            return "the loss is not finite"
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        finite = bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()) if gradients else True
        if self.processes.total(float(not finite)):
            return "the gradient is not finite"
        if self.spike is not None and len(self.recent) >= FEWEST and loss > statistics.median(self.recent) + self.spike:
            return "the loss jumped"
        return None
