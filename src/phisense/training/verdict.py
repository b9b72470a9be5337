"""Whether a run's model looks at its pictures, by the last look at held-out questions.

The rule is evaluation's: the 95 % intervals of real less blind and of real less shuffled, paired question by question, must both lie
above zero. Blind alone would be too kind: a model that was always shown a picture answers better with any picture than with none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ..intervals import ENOUGH, Array, drawn_together, interval

PICTURES = 2  # with fewer nothing can be shuffled
Interval = dict[str, float]


@dataclass(frozen=True, slots=True)
class Looks:
    """The verdict over `questions` that have a picture, of `pictures` different ones, with the shares that were right.

    `difference` is real less blind, `difference_shuffled` real less shuffled: {"value", "low", "high"}. The verdict is "looks", "blind" (it
    could not be shown that it looks), or "too few" (it cannot be told, and there are no differences).
    """

    verdict: Literal["looks", "blind", "too few"] = "too few"
    questions: int = 0
    pictures: int = 0
    real: float | None = None
    blind: float | None = None
    shuffled: float | None = None
    difference: Interval | None = None
    difference_shuffled: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def looks(pictures: Sequence[str], real: Sequence[bool], blind: Sequence[bool], shuffled: Sequence[bool]) -> Looks:
    """The verdict on questions about `pictures`, from what was right with the picture, without it, and with another question's."""
    found = Looks("too few", len(pictures), len(set(pictures)), _share(real), _share(blind), _share(shuffled))
    if found.questions < ENOUGH or found.pictures < PICTURES:
        return found
    tallies = [np.array([(one, 1.0) for one in right], dtype=np.float64) for right in (real, blind, shuffled)]
    drawn: list[Array] = [sums[:, 0] / sums[:, 1] for sums in drawn_together(tallies, seed=0)]
    over = [interval(drawn[0] - other) for other in drawn[1:]]
    verdict: Literal["looks", "blind"] = "looks" if all(one["low"] > 0 for one in over) else "blind"
    return replace(found, verdict=verdict, difference=over[0], difference_shuffled=over[1])


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def sentence(found: Mapping[str, Any]) -> str:
    """What `Looks.as_dict` says, in words for the one who trained."""
    if found["verdict"] == "too few":
        return (
            f"Whether it looks at its pictures cannot be told: it was asked {found['questions']} held-out questions about "
            f"{found['pictures']} pictures, and at least {ENOUGH} about {PICTURES} are needed. Name questions with short answers in "
            "data.held_out, let train.watch.questions be above 0, and run phisense features again."
        )
    opening = "It looks at its pictures" if found["verdict"] == "looks" else "It does not look at its pictures"
    said = (
        f"{opening}: of {found['questions']} held-out questions it answered {found['real']:.1%} right with the picture, "
        f"{found['blind']:.1%} without it ({_points(found['difference'])}) and {found['shuffled']:.1%} with another question's "
        f"({_points(found['difference_shuffled'])})"
    )
    if found["verdict"] == "looks":
        return f"{said}."
    return f"{said}. Both 95 % intervals, in brackets, must lie above zero, or chance explains its answers as well as its pictures do."


def _points(difference: Mapping[str, float]) -> str:
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"a difference of {value:+.1f} points [{low:+.1f}, {high:+.1f}]"
