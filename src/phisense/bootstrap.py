"""95 % confidence intervals by the percentile bootstrap (Efron, 1979): units are resampled with
replacement.

It is below training and evaluation in the layers, so that both use the same interval and the same
minimum number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .intervals import Interval, PairedDifference

Array = NDArray[np.float64]

RESAMPLES = 2000
MIN_UNITS = 20  # units; with fewer no interval can be trusted
_MAX_NUMBERS_IN_MEMORY = 10_000_000  # numbers in memory at a time


def paired_bootstrap(
    tallies: Sequence[Array], seed: int, resamples: int = RESAMPLES
) -> list[Array]:
    """Tallies `(U, S)` over the same U units, each -> `(1 + resamples, S)`: the sums over the
    sample, then over each resample.

    All tallies share the resamples, so differences are paired: what makes a unit hard in all of
    them cancels out. Units with equal rows in every tally are drawn together, by their number (a
    multinomial), which has the same distribution: of 200,000 units often only a few hundred
    distinct ones remain.
    """
    units = len(tallies[0])
    patterns, alike = np.unique(np.concatenate(tallies, axis=1), axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    sums = [alike.astype(np.float64)[None] @ patterns]
    step = max(1, _MAX_NUMBERS_IN_MEMORY // len(patterns))
    for start in range(0, resamples, step):
        times = random.multinomial(units, alike / units, size=min(step, resamples - start))
        sums.append(times.astype(np.float64) @ patterns)
    return np.split(
        np.concatenate(sums), np.cumsum([tally.shape[1] for tally in tallies])[:-1], axis=1
    )


def confidence_intervals(values: dict[str, Array], units: int) -> dict[str, Interval]:
    """Metrics `(1 + resamples,)` over `units` units -> each with its 95 % percentile interval."""
    return {
        name: _wilson_if_degenerate(percentile_interval(drawn), units)
        for name, drawn in values.items()
    }


def _wilson_if_degenerate(found: Interval, units: int) -> Interval:
    """If all units agree, resampling shows no spread, although with few units there is uncertainty:
    a share of 0 or 1 gets Wilson's interval.
    """
    if found.low == found.high and found.value in (0.0, 1.0):
        return Interval(found.value, *wilson_interval(found.value * units, units))
    return found


def percentile_interval(drawn: Array) -> Interval:
    """A metric `(1 + resamples,)`, its value first -> the value with the middle 95 % of its
    resamples.
    """
    low, high = np.nanpercentile(drawn[1:], [2.5, 97.5])
    return Interval(float(drawn[0]), float(low), float(high))


def paired_difference(ours: Array, theirs: Array) -> PairedDifference:
    """The paired difference of one metric under two conditions, and whether the whole interval is
    above zero.
    """
    found = percentile_interval(ours - theirs)
    return PairedDifference(found.value, found.low, found.high, found.low > 0)


def wilson_interval(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, 1927): valid for small n and for proportions
    of 0 and 1, where the bootstrap shows no spread.
    """
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
