"""95 % intervals of figures, by the bootstrap (Efron, 1979): units drawn anew with replacement, percentiles of what comes of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .task import Array

DRAWS = 2000
_AT_ONCE = 50_000_000  # numbers in memory


class Bootstrap:
    """The same draws for every condition, so that differences are paired: unit by unit, whatever is hard for all falls out."""

    def __init__(self, units: int, seed: int, draws: int = DRAWS) -> None:
        """Over `units` independent units."""
        self.units, self.seed, self.draws = units, seed, draws

    def sums(self, tally: Array) -> Array:
        """`(U, S)` -> `(1 + draws, S)`: the sums as they are, then those of each draw."""
        random = np.random.default_rng(self.seed)
        found = [tally.sum(0)[None]]
        step = max(1, _AT_ONCE // max(1, self.units))
        chances = np.full(self.units, 1 / self.units)
        for start in range(0, self.draws, step):
            times = random.multinomial(self.units, chances, size=min(step, self.draws - start))
            found.append(times.astype(np.float64) @ tally)
        return np.concatenate(found)


def with_intervals(values: dict[str, Array]) -> dict[str, dict[str, float]]:
    """Figures `(1 + draws,)` -> each with the middle 95 % of its draws."""
    return {name: interval(drawn) for name, drawn in values.items()}


def interval(drawn: Array) -> dict[str, float]:
    low, high = np.nanpercentile(drawn[1:], [2.5, 97.5])
    return {"value": float(drawn[0]), "low": float(low), "high": float(high)}


def above(ours: Array, theirs: Array) -> dict[str, Any]:
    """The paired difference of one figure under two conditions, and whether its whole interval is above zero."""
    found = interval(ours - theirs)
    return {**found, "above_zero": found["low"] > 0}


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927): also of few, and of none or all, where drawing anew shows no spread."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
