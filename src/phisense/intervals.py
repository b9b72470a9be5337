"""95 % confidence intervals of figures, as results hold them; `bootstrap.py` computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from .errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric with its 95 % interval. NaN stands for an undefined value, such as the precision of
    answers that never say yes; JSON has null there.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """`{"value", "low", "high"}`, as stored in `scores.json`."""
        return {name: _or_null(getattr(self, name)) for name in _KEYS}

    @classmethod
    def from_dict(cls, document: object, source: str = "the file") -> Interval:
        """Parse the JSON of `to_dict`. Raises ArtifactError, naming `source`, for anything else."""
        return cls(*_numbers(document, source))


@dataclass(frozen=True, slots=True)
class PairedDifference(Interval):
    """A difference of two metrics over the same units. `above_zero`: the whole interval is above
    zero.
    """

    above_zero: bool

    def to_dict(self) -> dict[str, float | None]:
        """`{"value", "low", "high", "above_zero"}`."""
        return {**Interval.to_dict(self), "above_zero": self.above_zero}

    @classmethod
    def from_dict(cls, document: object, source: str = "the file") -> PairedDifference:
        """Parse the JSON of `to_dict`. Raises ArtifactError, naming `source`, for anything else."""
        value, low, high = _numbers(document, source)
        return cls(value, low, high, low > 0)


_KEYS = ("value", "low", "high")


def _or_null(number: float) -> float | None:
    return None if math.isnan(number) else number


def _numbers(document: object, source: str) -> tuple[float, float, float]:
    """Value, low and high of a JSON object."""
    found = document if isinstance(document, Mapping) else {}
    if any(key not in found or not _is_number(found[key]) for key in _KEYS):
        raise ArtifactError(
            f"{source} has no interval where one is expected",
            got=f"{document!r}"[:80],
            wanted=f"numbers under {', '.join(_KEYS)}",
            do="Evaluate again",
        )
    numbers = (cast("float | None", found[key]) for key in _KEYS)
    value, low, high = (math.nan if number is None else float(number) for number in numbers)
    return value, low, high


def _is_number(value: object) -> bool:
    """True for null, too, which JSON has in place of NaN."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
