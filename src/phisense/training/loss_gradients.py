"""Gradients of a training loss outside of training, without side effects: gradients, training modes
and RNG state are as before, the random numbers are the same each time, and dropout can be off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .finite_differences import Gradient, Weights


def gradients(
    model: Any, parts: Mapping[str, Weights], loss: Callable[[], torch.Tensor]
) -> dict[str, Gradient]:
    """Backward pass as in training, into `.grad`, which is empty before and after; zeros for
    parameters without a gradient.
    """
    model.zero_grad(set_to_none=True)
    loss().backward()
    found = {
        name: [torch.zeros_like(w) if w.grad is None else w.grad.detach().float() for w in part]
        for name, part in parts.items()
    }
    model.zero_grad(set_to_none=True)
    return found


@contextmanager
def preserved_state(
    model: Any, seed: int
) -> Iterator[Callable[[Callable[[], torch.Tensor]], torch.Tensor]]:
    """Yields a function that computes a loss in training mode with fixed random numbers; restores
    all state on exit.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    kept = [p.grad for p in weights]
    mode = {module: module.training for module in model.modules()}
    devices = [weights[0].device] if weights[0].device.type == "cuda" else []

    def loss(of: Callable[[], torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(seed)
        return of()

    with torch.random.fork_rng(devices=devices):
        model.train()
        try:
            yield loss
        finally:
            for module, training in mode.items():
                module.training = training
            for p, grad in zip(weights, kept, strict=True):
                p.grad = grad


def dropouts(model: Any) -> list[nn.Dropout]:
    """The model's dropout modules that have an effect."""
    return [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Turn dropout off within the block; each module's probability is restored on exit."""
    before = [(module, module.p) for module in dropouts(model)]
    for module, _ in before:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in before:
            module.p = p
