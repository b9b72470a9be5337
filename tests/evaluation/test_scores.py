"""Figures of your own questions, intervals and the verdict, against values worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from phisense.bootstrap import (
    MIN_UNITS,
    paired_bootstrap,
    paired_difference,
    percentile_interval,
    wilson_interval,
)
from phisense.conversations import Question
from phisense.errors import UsageError
from phisense.evaluation.results import EvaluationReport
from phisense.evaluation.scores import score_predictions
from phisense.evaluation.task import limit_questions
from phisense.evaluation.tasks import TASKS
from phisense.intervals import Interval

OWN = TASKS["own"]


def question(number: int, answer: str = "Red.", kind: str = "colour") -> Question:
    return Question(str(number), "a.png", "What?", (answer,), kind)


def scored(pairs: list[tuple[str, str]], kind: str = "colour") -> EvaluationReport:
    questions = [question(i, right, kind) for i, (_, right) in enumerate(pairs)]
    return score_predictions(OWN, questions, {"real": [said for said, _ in pairs]})


def test_yes_and_no_by_hand() -> None:
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4
    figures = {name: one.value for name, one in scored(pairs).real.metrics.items()}
    assert figures == pytest.approx({
        "accuracy": 0.7, "yes_no_accuracy": 0.7, "yes_no_precision": 3 / 4, "yes_no_recall": 3 / 5,
        "yes_no_f1": 2 * 0.75 * 0.6 / 1.35, "yes_no_yes_share": 0.4,
    })  # fmt: skip


def test_long_answers_are_scored_as_texts() -> None:
    questions = [question(0, kind="description"), question(1)]
    scores = score_predictions(OWN, questions, {"real": ["Red.", "Red."]})
    low, high = wilson_interval(2, 2)  # of two units that agree drawing anew would show no spread
    assert scores.real.accuracy == Interval(1.0, low, high)
    assert scores.real.rouge_l.value == 1.0
    assert set(scores.real.kinds) == {"colour"}
    alone = score_predictions(OWN, questions[:1], {"real": ["Red."]})
    assert alone.headline == "rouge_l"


def test_wilsons_interval_by_hand() -> None:
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Wilson's formula, worked out
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_bootstrap_finds_the_spread_that_theory_says() -> None:
    tally = np.column_stack([np.arange(400) < 300, np.ones(400)]).astype(float)
    (sums,) = paired_bootstrap([tally], seed=1, resamples=4000)
    found = percentile_interval(sums[:, 0] / sums[:, 1])
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (sums[:, 1] == 400).all()
    assert found.value == 0.75
    assert found.low == pytest.approx(0.75 - half, abs=0.006)
    assert found.high == pytest.approx(0.75 + half, abs=0.006)
    assert (paired_bootstrap([tally], seed=1, resamples=4000)[0] == sums).all()


@pytest.mark.slow
def test_units_alike_drawn_as_one_are_spread_as_units_drawn_one_by_one() -> None:
    """Against the bootstrap written out, on a mean of values that seldom repeat, and on one of two
    values only.
    """
    random = np.random.default_rng(0)
    for tally in (random.normal(size=(150, 1)), random.integers(0, 2, (150, 1)).astype(float)):
        ours = paired_bootstrap([tally], seed=3, resamples=20_000)[0][1:, 0]
        plain = np.array([tally[random.integers(0, 150, 150), 0].sum() for _ in range(20_000)])
        assert ours.std() == pytest.approx(plain.std(), rel=0.03)
        assert np.percentile(ours, [2.5, 97.5]) == pytest.approx(
            np.percentile(plain, [2.5, 97.5]), abs=0.1 * plain.std()
        )


def test_differences_are_paired() -> None:
    """Two models that differ in few of many hard questions: unpaired their intervals overlap,
    paired the difference is sure.
    """
    ours, theirs = np.zeros((1000, 1)), np.zeros((1000, 1))
    ours[:520], theirs[:500] = 1, 1
    a, b = (sums[:, 0] / 1000 for sums in paired_bootstrap([ours, theirs], seed=0))
    assert percentile_interval(a).low < percentile_interval(b).high
    assert paired_difference(a, b).above_zero
    assert not paired_difference(b, a).above_zero
    assert not paired_difference(a, a).above_zero


def test_the_verdict_needs_the_picture_to_help() -> None:
    def run(real: int, other: int) -> str:
        questions = [question(i) for i in range(100)]

        def said(right: int) -> list[str]:
            return ["Red."] * right + ["Blue."] * (100 - right)

        scores = score_predictions(
            OWN, questions, {"real": said(real), "blind": said(other), "shuffled": said(other)}
        )
        return str(scores.verdict)

    assert run(90, 40) == "looks"
    assert run(42, 40) == "blind"
    assert run(40, 40) == "blind"
    assert run(30, 40) == "blind"


def test_of_few_questions_nothing_is_said() -> None:
    for number, verdict in ((1, "too few"), (5, "too few"), (MIN_UNITS, "looks")):
        questions = [question(i) for i in range(number)]
        said = {
            "real": ["Red."] * number,
            "blind": ["Blue."] * number,
            "shuffled": ["Blue."] * number,
        }
        scores = score_predictions(OWN, questions, said)
        assert scores.verdict == verdict
        assert scores.real.accuracy.low < 1


def test_some_of_many_are_not_every_second() -> None:
    """POPE's answers are yes and no by turns; pairs that belong together stay so."""
    by_turns = [question(i, "yes" if i % 2 else "no") for i in range(3000)]
    for limit in (50, 100, 300, 500, 1500, 2999):
        some = limit_questions(by_turns, limit)
        assert len(some) == limit
        assert sum(one.answers == ("yes",) for one in some) / limit == pytest.approx(0.5, abs=0.12)
        assert some == limit_questions(by_turns, limit)
        assert [int(one.id) for one in some] == sorted(int(one.id) for one in some)
    pairs = [replace(question(i), group=str(i // 2)) for i in range(100)]
    assert {
        Counter(one.group for one in limit_questions(pairs, 31))[name]
        for name in {one.group for one in limit_questions(pairs, 31)}
    } == {2}
    assert limit_questions(pairs, None) == pairs


def test_an_unknown_task_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="unknown task; got nothing; wanted .*own"):
        TASKS["nothing"]
