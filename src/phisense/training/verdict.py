"""Verdict whether a run's model uses its images, from the last evaluation on held-out questions.

The rule is that of `evaluate`: the 95 % intervals of real minus blind, real minus shuffled and real
minus constant, paired question by question, must all lie above zero. Blind alone would be too
lenient: a model trained only with images answers better with any image than with none, and one that
falls out of the answer's form without an image would look as if it had lost what it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ..bootstrap import MIN_UNITS, Array, paired_bootstrap, percentile_interval
from ..intervals import Interval
from ..pipeline.results import TrainingVerdict

MIN_IMAGES = 2  # images; fewer cannot be shuffled


def judge_looking(
    pictures: Sequence[str],
    real: Sequence[bool],
    blind: Sequence[bool],
    shuffled: Sequence[bool],
    constant: Sequence[bool],
) -> TrainingVerdict:
    """The verdict on questions about `pictures`, from which answers were right with the image,
    without it, with another question's image, and by always giving the commonest.
    """
    found = TrainingVerdict(
        questions=len(pictures),
        pictures=len(set(pictures)),
        real=_accuracy(real),
        blind=_accuracy(blind),
        shuffled=_accuracy(shuffled),
        constant=_accuracy(constant),
    )
    if found.questions < MIN_UNITS or found.pictures < MIN_IMAGES:
        return found
    tallies = [
        np.array([(one, 1.0) for one in right], dtype=np.float64)
        for right in (real, blind, shuffled, constant)
    ]
    drawn: list[Array] = [sums[:, 0] / sums[:, 1] for sums in paired_bootstrap(tallies, seed=0)]
    over = [percentile_interval(drawn[0] - other) for other in drawn[1:]]
    verdict: Literal["looks", "blind"] = "looks" if all(one.low > 0 for one in over) else "blind"
    return replace(
        found,
        verdict=verdict,
        difference=over[0],
        difference_shuffled=over[1],
        difference_constant=over[2],
    )


def _accuracy(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def describe_verdict(found: TrainingVerdict) -> str:
    """The verdict as a sentence, with its figures."""
    if found.verdict == "too few":
        return (
            f"Whether it looks at its pictures cannot be told: it was asked {found.questions}"
            f" held-out questions about {found.pictures} pictures, and at least {MIN_UNITS} about"
            f" {MIN_IMAGES} are needed. Name questions with short answers in data.held_out, let"
            " train.eval.questions be above 0, and run phisense features again."
        )
    opening = (
        "It looks at its pictures"
        if found.verdict == "looks"
        else "It is not shown to look at its pictures"
        if found.hardest == "constant"
        else "It does not look at its pictures"
    )
    said = (
        f"{opening}: of {found.questions} held-out questions it answered {found.real:.1%}"
        f" right with the picture, {found.blind:.1%} without it ({_points(found.difference)})"
        f"{',' if found.constant is not None else ' and'} {found.shuffled:.1%} with another"
        f" question's ({_points(found.difference_shuffled)})"
    )
    if found.constant is not None:
        said += (
            f", and {found.constant:.1%} are right by giving each question its commonest answer"
            f" ({_points(found.difference_constant)})"
        )
    assert found.hardest is not None
    said += (
        f". The largest of these is {_NAMES[found.hardest]}, {_above(found.over[found.hardest])}."
    )
    if found.by_content:
        said += (
            f" {found.by_content} answers without their own picture fell out of the answer's form;"
            " the likeliest of the question's answers counts in their place."
        )
    if found.verdict == "looks":
        return said
    return (
        f"{said} All 95 % intervals, in brackets, must lie above zero, or its answers are explained"
        " without its pictures."
    )


_NAMES = {
    "blind": "its accuracy without the picture",
    "shuffled": "its accuracy with another's picture",
    "constant": "the commonest answer's accuracy",
}


def _above(difference: Interval) -> str:
    points = 100 * difference.value
    return f"{abs(points):.1f} points {'below' if points > 0 else 'above'} that with it"


def _points(difference: Interval | None) -> str:
    assert difference is not None  # it is None only with too few questions
    value, low, high = (100 * one for one in (difference.value, difference.low, difference.high))
    return f"a difference of {value:+.1f} points [{low:+.1f}, {high:+.1f}]"
