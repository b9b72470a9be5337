"""What a stage trains its parameters with: AdamW, and Muon for the projector's matrices where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..recipe import Stage


def stage_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage) -> torch.optim.Optimizer:
    """AdamW, with a learning rate of the projector's own; if the stage says so, Muon with that rate for the projector's matrices.

    AdamW's first steps all go where the features vary most, and what varies little is learned late; Muon's do not.
    """
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    projector = [p for name, p in trained if "multi_modal_projector" in name]
    others = [p for name, p in trained if "multi_modal_projector" not in name]
    rate = stage.projector_learning_rate or stage.learning_rate
    if stage.projector_optimizer == "adamw":
        return _adamw(stage, (projector, rate), (others, stage.learning_rate))
    matrices, biases = [p for p in projector if p.ndim == 2], [p for p in projector if p.ndim != 2]
    muon = Muon(matrices, rate, stage.weight_decay)
    return Together(muon, _adamw(stage, (biases, stage.learning_rate), (others, stage.learning_rate)))


def _adamw(stage: Stage, *groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
    return torch.optim.AdamW([{"params": some, "lr": rate} for some, rate in groups if some], weight_decay=stage.weight_decay)


class Muon(torch.optim.Optimizer):
    """Momentum whose every step of a matrix is equally long in all its directions (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    The step's root mean square is 0.2 times the rate, as AdamW's usually is (Liu et al. 2025, arXiv:2502.16982). As
    `torch.optim.Muon`, but in float32: that one computes in bfloat16, which a CPU without such instructions takes thirty times as long for.
    """

    MOMENTUM = 0.95

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - self.MOMENTUM)
                step = orthogonal(p.grad.lerp(momentum, self.MOMENTUM))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
        return loss


def orthogonal(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """`matrix` with its singular values brought near 1 (to within 0.7 and 1.2), by Jordan's Newton-Schulz iteration."""
    x: torch.Tensor = matrix.float().T if matrix.shape[0] > matrix.shape[1] else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Together(torch.optim.Optimizer):
    """Steps each of `parts`. Its groups are theirs, so that a schedule moves every rate."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


__all__ = ["Muon", "Together", "stage_optimizer"]
