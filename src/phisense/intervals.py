"""95 % intervals of figures, by the bootstrap (Efron, 1979): units drawn anew with replacement, percentiles of what comes of it.

It stands below training and evaluation, so that both mean the same by an interval and by enough questions for one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 2000
ENOUGH = 20  # units; of fewer no interval can be trusted
_AT_ONCE = 10_000_000  # numbers in memory


def drawn_together(tallies: Sequence[Array], seed: int, draws: int = DRAWS) -> list[Array]:
    """Tallies `(U, S)` of the same units, each -> `(1 + draws, S)`: its sums as they are, then those of each draw.

    All are of the same draws, so that differences are paired: unit by unit, whatever is hard for all falls out. Units that count alike in
    everything are drawn as one, by how many there are: the same chances, and of 200,000 units often a few hundred are left.
    """
    units = len(tallies[0])
    patterns, alike = np.unique(np.concatenate(tallies, axis=1), axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    sums = [alike.astype(np.float64)[None] @ patterns]
    step = max(1, _AT_ONCE // len(patterns))
    for start in range(0, draws, step):
        times = random.multinomial(units, alike / units, size=min(step, draws - start))
        sums.append(times.astype(np.float64) @ patterns)
    return np.split(np.concatenate(sums), np.cumsum([tally.shape[1] for tally in tallies])[:-1], axis=1)


def with_intervals(values: dict[str, Array], units: int) -> dict[str, dict[str, float]]:
    """Figures `(1 + draws,)` of so many units -> each with the middle 95 % of its draws."""
    return {name: _widened(interval(drawn), units) for name, drawn in values.items()}


def _widened(found: dict[str, float], units: int) -> dict[str, float]:
    """Where all units agree, drawing anew shows no spread, though with few of them there is: a share of none or all has Wilson's."""
    if found["low"] == found["high"] and found["value"] in (0.0, 1.0):
        found["low"], found["high"] = wilson(found["value"] * units, units)
    return found


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
