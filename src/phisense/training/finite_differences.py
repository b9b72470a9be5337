"""A gradient measured by finite differences of the loss, at several step lengths.

(L(w + e u) - L(w - e u)) / 2e along the gradient itself, which detects a wrong length, and along
random directions, which detect missing parts: see gradient_check.py.

Of sharded weights each process moves and measures its rows; lengths and products are those of the
whole weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..model.sharding import local, local_rows, rows_like, sum_over_shards

Gradient = list[torch.Tensor]
# ratio along the gradient, and estimated error relative to its norm
NumericResult = tuple[float | None, float]
Weights = list[nn.Parameter]
# change of the loss by a difference, relative to max(loss, 1): above float32's rounding, and small
# enough for curvature not to matter
LOSS_CHANGE = 1e-4
STEP_FACTORS = (1.0, 0.2, 5.0)  # times LOSS_CHANGE; the others are tried if the first does not fit
# relative difference up to which two steps' errors agree, so that the gradient itself is wrong
AGREE_WITHIN = 0.25
MAX_DEVIATION = 0.02  # maximum deviation along the gradient itself, twin against numeric
MAX_ERROR = 0.05  # maximum error of the twin's gradient, relative to its norm
MAX_UNEXPLAINED = 1e-5  # of the loss: maximum change by weights that have no gradient


def fits(found: NumericResult) -> bool:
    """Whether a gradient agrees with the differences."""
    along, error = found
    return error <= MAX_ERROR and (along is None or abs(along - 1) <= MAX_DEVIATION)


def agree(one: NumericResult, other: NumericResult) -> bool:
    """Whether two step lengths found the same error, along the gradient or overall."""
    if one[0] is None or other[0] is None:
        return one[1] == other[1] == math.inf
    off, other_off = one[0] - 1, other[0] - 1
    along = min(abs(off), abs(other_off)) > MAX_DEVIATION and abs(
        off - other_off
    ) <= AGREE_WITHIN * max(abs(off), abs(other_off))
    missing = min(one[1], other[1]) > MAX_ERROR and abs(one[1] - other[1]) <= AGREE_WITHIN * max(
        one[1], other[1]
    )
    return along or missing


class Differences:
    """Compares a float32 gradient with finite differences of the loss.

    Measures the ratio along the gradient, None if it is zero, and the error relative to its norm,
    estimated with `directions` random directions.
    """

    def __init__(self, loss: Callable[[], torch.Tensor], directions: int) -> None:
        self.loss, self.directions = loss, directions
        with torch.no_grad():
            # at least 1: the rounding of float32 logits does not shrink with the loss
            self.scale = max(abs(float(loss())), 1.0)

    def measure(self, weights: Weights, gradient: Gradient, seed: int) -> list[NumericResult]:
        """Measure with one step length and, until one fits, with others."""
        found: list[NumericResult] = []
        for factor in STEP_FACTORS:
            found.append(
                self._measure_at(weights, gradient, seed, factor * LOSS_CHANGE * self.scale)
            )
            if fits(found[-1]):
                break
        return found

    def _measure_at(
        self, weights: Weights, gradient: Gradient, seed: int, change: float
    ) -> NumericResult:
        """Measure with steps that change the loss by about `change`."""
        count, norm = sum(w.numel() for w in weights), norm_of(gradient)
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        randoms = [_random_like(weights, generator) for _ in range(self.directions)]
        if norm == 0:  # then the loss must not depend on these weights
            length = 0.01 * max(norm_of(weights), count**0.5 * 1e-3)
            moved = max(2 * length * abs(_numeric(weights, u, length, self.loss)) for u in randoms)
            return None, 0.0 if moved <= MAX_UNEXPLAINED * self.scale else math.inf
        unit = [g / norm for g in gradient]
        along = _numeric(weights, unit, change / (2 * norm), self.loss) / norm
        wrong = [
            _numeric(weights, u, change * count**0.5 / (2 * norm), self.loss) - dot(gradient, u)
            for u in randoms
        ]
        return along, math.sqrt(count * sum(one**2 for one in wrong) / len(wrong)) / norm


@torch.no_grad()
def _numeric(
    weights: Weights,
    direction: Sequence[torch.Tensor],
    length: float,
    loss: Callable[[], torch.Tensor],
) -> float:
    """Central difference of the loss along a unit direction; the weights are restored exactly."""
    before = [local(w).detach().clone() for w in weights]
    sides = []
    try:
        for sign in (1.0, -1.0):
            for w, old, d in zip(weights, before, direction, strict=True):
                local(w).copy_(old + sign * length * local(d))
            sides.append(float(loss()))
    finally:
        for w, old in zip(weights, before, strict=True):
            local(w).copy_(old)
    return (sides[0] - sides[1]) / (2 * length)


def _random_like(weights: Weights, generator: torch.Generator) -> Gradient:
    """A direction of length 1, uniformly distributed."""
    # of a sharded weight, whole and cut to the own rows, so that each row has numbers of its own
    drawn = [
        rows_like(
            w,
            torch.randn(w.shape, generator=generator, device=w.device)[local_rows(w)].clone()
            if w.ndim
            else torch.randn((), generator=generator, device=w.device),
        )
        for w in weights
    ]
    length = norm_of(drawn)
    return [one / length for one in drawn]


def norm_of(tensors: Sequence[torch.Tensor]) -> float:
    """The norm of all tensors together, in float64."""
    own = sum(float(local(t).detach().double().square().sum()) for t in tensors)
    return math.sqrt(sum_over_shards(own, tensors))


def dot(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The inner product of two gradients, in float64."""
    own = sum(
        float((local(a).double() * local(b).double()).sum())
        for a, b in zip(some, others, strict=True)
    )
    return sum_over_shards(own, some)
