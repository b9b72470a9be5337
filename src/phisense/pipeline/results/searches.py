"""Results of comparing variants of a recipe, and of a hyperparameter search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...intervals import Interval
from ..records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult(Record):
    """A variant of a recipe, trained and evaluated: accuracy on held-out questions with `tokens`
    image tokens, number of trained parameters, seconds of training, and its model folder.
    """

    variant: str
    tokens: int
    accuracy: Interval
    trainable: int
    train_seconds: float
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult(Record):
    """A recipe and variants of it: one row per variant and number of image tokens that it supports,
    the file of the table, and that of its plot.
    """

    rows: tuple[VariantResult, ...]
    comparison: str
    plot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult(Record):
    """A trial of a search. `value` is the share of held-out questions answered correctly, or None
    if the trial did not finish, with the reason in `why`; `curve` holds (evaluation number, share)
    during training; `seconds` is None if the trial did not finish.
    """

    number: int
    state: str
    value: float | None
    settings: Mapping[str, str | int | float | bool | None]
    seconds: float | None
    why: str | None
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult(Record):
    """A search: its best trial, all `trials`, the recipe file of the best, and the report."""

    best: TrialResult
    trials: tuple[TrialResult, ...]
    recipe: str
    report: str
