"""Search space of `tune`: a numeric range or a list of choices for each recipe key, and a check
that trials can start with their values.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import yaml

from .. import safe_parsing
from ..errors import (
    ConversationError,
    PartError,
    PhisenseError,
    RecipeError,
    TrainingError,
    UsageError,
)
from ..model.projectors.base import PROJECTORS
from ..recipe import Recipe, load_recipe
from ..training.preflight import RowCounts, check_variant

Value = str | int | float | bool | None
#: Number of combinations with values of other ranges that are tried for a value that is invalid
#: with the unchanged recipe.
MAX_COMBINATIONS = 16
#: Raised before a trial starts if its settings are incompatible.
UNFIT_ERRORS = (RecipeError, TrainingError, ConversationError, PartError)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, sampled on a log scale if they span a factor of ten or more; or
    one of `choices`.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()

    def suggest(self, trial: Any) -> Value:
        found: Value
        if self.choices:
            found = trial.suggest_categorical(self.key, list(self.choices))
        else:
            found = trial.suggest_float(
                self.key, self.low, self.high, log=0 < 10 * self.low <= self.high
            )
        return found

    @property
    def values(self) -> tuple[tuple[Value, ...], ...]:
        """Representative values, each as a tuple of alternatives: the choices, or a value inside
        the range, which is not an integer, and both ends. The alternative of an end, which a recipe
        may exclude, is just inside: a rate range from 0 is sampled above 0.
        """
        if self.choices:
            return tuple((choice,) for choice in self.choices)
        span = self.high - self.low
        return (
            (self.low + 0.381966 * span,),
            (self.low, self.low + span / 1e6),
            (self.high, self.high - span / 1e6),
        )

    def change(self, value: Value) -> str:
        """The `--set` change for a value, in YAML rather than Python notation."""
        return f"{self.key}={to_yaml(value)}"

    def contains(self, value: Value) -> bool:
        return (
            value in self.choices
            if self.choices
            else isinstance(value, (int, float)) and self.low <= value <= self.high
        )


def to_yaml(value: Value) -> str:
    """A value as YAML, without the newline and document end marker."""
    return (
        yaml.safe_dump(value, width=sys.maxsize, allow_unicode=True)
        .removesuffix("\n")
        .removesuffix("\n...")
    )


def parse_range(text: str) -> Range:
    """Parse `key=low..high` or `key=one,two,three`. Raises UsageError."""
    key, equals, values = text.partition("=")
    if key and equals and ".." in values:
        try:
            low, high = (float(value) for value in values.split(".."))
        except ValueError:
            low, high = 0.0, 0.0
        if low < high and math.isfinite(high - low):
            return Range(key, low, high)
    elif key and equals and len(values.split(",")) > 1:
        return Range(
            key,
            choices=tuple(
                safe_parsing.parse_yaml(one, f"a value of --vary {key}", UsageError)
                for one in values.split(",")
            ),
        )
    raise UsageError(
        "--vary takes a range",
        got=repr(text),
        wanted="key=low..high or key=one,two, e.g. train.lora.rank=16,32,64",
    )


def default_ranges(recipe: Recipe) -> list[Range]:
    """Ranges around the recipe's values: learning rates, LoRA rank and alpha, warm-up, and pooling
    of image tokens if the projector supports it.
    """
    stage, lora = recipe.train.instruct, recipe.train.lora
    rates = {
        "learning_rate": stage.learning_rate,
        "projector_learning_rate": stage.projector_learning_rate or stage.learning_rate,
    }
    ranges = [Range(f"train.instruct.{key}", rate / 5, rate * 5) for key, rate in rates.items()]
    ranges.append(Range("train.instruct.warmup_ratio", 0.0, max(0.1, stage.warmup_ratio)))
    for key, value in {"rank": lora.rank, "alpha": lora.alpha}.items() if lora else ():
        ranges.append(
            Range(
                f"train.lora.{key}", choices=tuple(sorted({max(1, value // 2), value, 2 * value}))
            )
        )
    kind, nested = PROJECTORS[recipe.projector.kind], recipe.projector.nested
    if all(kind.refusal(pool, nested) is None for pool in (1, 2)):
        ranges.append(Range("projector.pool", choices=tuple(sorted({1, 2, recipe.projector.pool}))))
    return ranges


def check_ranges(source: str, changes: Sequence[str], ranges: Sequence[Range]) -> None:
    """Check that trials can start.

    Raises the error of the unchanged recipe, or UsageError for a value with which no trial could
    start, whatever the values of the other ranges. A value is tried with the unchanged recipe, then
    with some values of the others: a max_length of 300 tokens may be too short for an image of 576
    tokens, but not for one of 144. Data that renders to the same tokens is read once.
    """
    known: RowCounts = {}
    check_variant(load_recipe(source, tuple(changes)), cache=known)
    for one in ranges:
        others = [other for other in ranges if other is not one]
        for values in one.values:
            first: PhisenseError | None = None
            for its, value in product(islice(_combinations(others), MAX_COMBINATIONS), values):
                try:
                    check_variant(
                        load_recipe(source, (*changes, *its, one.change(value))), cache=known
                    )
                except UNFIT_ERRORS as error:
                    first = first or error
                else:
                    break
            else:
                raise UsageError(
                    f"no trial could begin with {one.change(values[0])}",
                    got=str(first).rstrip("."),
                    do="Change its --vary",
                )


def _combinations(ranges: Sequence[Range]) -> Iterator[tuple[str, ...]]:
    yield ()
    for values in product(*(one.values for one in ranges)):
        yield tuple(one.change(its[-1]) for one, its in zip(ranges, values, strict=True))


__all__ = [
    "UNFIT_ERRORS",
    "Range",
    "Value",
    "check_ranges",
    "default_ranges",
    "parse_range",
    "to_yaml",
]
