"""Optimizer of a stage: AdamW, with Muon for the projector's matrices if the recipe says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..model.sharding import local, local_rows, rows_like, whole
from ..recipe import Stage


def stage_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage
) -> torch.optim.Optimizer:
    """AdamW with a separate learning rate for the projector, or Muon at that rate for the
    projector's matrices.

    AdamW's first steps all follow the directions in which the features vary most, and learn the
    others late; Muon's do not.
    """
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    projector = [p for name, p in trained if "multi_modal_projector" in name]
    others = [p for name, p in trained if "multi_modal_projector" not in name]
    rate = stage.projector_learning_rate or stage.learning_rate
    if stage.projector_optimizer == "adamw":
        return _adamw(stage, (projector, rate), (others, stage.learning_rate))
    matrices, biases = [p for p in projector if p.ndim == 2], [p for p in projector if p.ndim != 2]
    muon = Muon(matrices, rate, stage.weight_decay)
    return CombinedOptimizer(
        muon, _adamw(stage, (biases, stage.learning_rate), (others, stage.learning_rate))
    )


def _adamw(stage: Stage, *groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": some, "lr": rate} for some, rate in groups if some],
        weight_decay=stage.weight_decay,
    )


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update of a matrix is orthogonalized (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).

    The update's root mean square is 0.2 times the learning rate, as AdamW's usually is (Liu et al.
    2025, arXiv:2502.16982). As `torch.optim.Muon`, but in float32: that one computes in bfloat16,
    which takes thirty times as long on a CPU without bfloat16 instructions. A sharded matrix is
    gathered for it.
    """

    MOMENTUM = 0.95

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take one step; `closure` is evaluated before it, as torch prescribes."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                gradient, weight = local(p.grad), local(p)
                local(momentum).lerp_(gradient, 1 - self.MOMENTUM)
                mixed = gradient.lerp(local(momentum), self.MOMENTUM)
                # the whole matrix has the singular values, not some rows of it
                step = orthogonalize(whole(rows_like(p, mixed)))[local_rows(p)]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
        return loss


def orthogonalize(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Bring the singular values of `matrix` near 1 (0.7 to 1.2), by Jordan's Newton-Schulz
    iteration.
    """
    x: torch.Tensor = matrix.float().T if matrix.shape[0] > matrix.shape[1] else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class CombinedOptimizer(torch.optim.Optimizer):
    """Steps each of `optimizers`. It shares their parameter groups, so that a scheduler sets every
    learning rate.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        super().__init__(
            [p for part in optimizers for group in part.param_groups for p in group["params"]], {}
        )
        self.optimizers = optimizers
        self.param_groups = [group for part in optimizers for group in part.param_groups]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take one step with each optimizer."""
        loss = closure() if closure is not None else None
        for part in self.optimizers:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """States of all optimizers."""
        return {"parts": [part.state_dict() for part in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of all optimizers."""
        for part, state in zip(self.optimizers, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.optimizers for group in part.param_groups]


__all__ = ["CombinedOptimizer", "Muon", "stage_optimizer"]
