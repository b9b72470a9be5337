"""Figures of your own questions, intervals and the verdict, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from phisense.conversations import Question
from phisense.errors import UsageError
from phisense.evaluation.intervals import Bootstrap, above, interval, wilson
from phisense.evaluation.scores import score
from phisense.evaluation.tasks import TASKS, find_task
from phisense.evaluation.texts import rouge_l

OWN = TASKS["own"]


def question(number: int, answer: str = "Red.", kind: str = "colour") -> Question:
    return Question(str(number), "a.png", "What?", (answer,), kind)


def scored(pairs: list[tuple[str, str]], kind: str = "colour") -> dict[str, Any]:
    questions = [question(i, right, kind) for i, (_, right) in enumerate(pairs)]
    return score(OWN, questions, {"real": [said for said, _ in pairs]})


def test_yes_and_no_by_hand() -> None:
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4
    figures = {name: one["value"] for name, one in scored(pairs)["real"]["figures"].items()}
    assert figures == pytest.approx({
        "accuracy": 0.7, "yes_no_accuracy": 0.7, "yes_no_precision": 3 / 4, "yes_no_recall": 3 / 5,
        "yes_no_f1": 2 * 0.75 * 0.6 / 1.35, "yes_no_yes_share": 0.4,
    })  # fmt: skip


def test_long_answers_are_scored_as_texts() -> None:
    questions = [question(0, kind="description"), question(1)]
    scores = score(OWN, questions, {"real": ["Red.", "Red."]})
    assert scores["real"]["figures"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert scores["real"]["figures"]["rouge_l"]["value"] == 1.0
    assert set(scores["real"]["kinds"]) == {"colour"}
    alone = score(OWN, questions[:1], {"real": ["Red."]})
    assert alone["headline"] == "rouge_l"


def test_wilsons_interval_by_hand() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Wilson's formula, worked out
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_finds_the_spread_that_theory_says() -> None:
    tally = np.column_stack([np.arange(400) < 300, np.ones(400)]).astype(float)
    sums = Bootstrap(400, seed=1, draws=4000).sums(tally)
    found = interval(sums[:, 0] / sums[:, 1])
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found["value"] == 0.75
    assert found["low"] == pytest.approx(0.75 - half, abs=0.006)
    assert found["high"] == pytest.approx(0.75 + half, abs=0.006)
    assert (Bootstrap(400, seed=1, draws=9).sums(tally) == Bootstrap(400, seed=1, draws=9).sums(tally)).all()


def test_differences_are_paired() -> None:
    """Two models that differ in few of many hard questions: unpaired their intervals overlap, paired the difference is sure."""
    ours, theirs = np.zeros((1000, 1)), np.zeros((1000, 1))
    ours[:520], theirs[:500] = 1, 1
    draws = Bootstrap(1000, seed=0)
    a, b = draws.sums(ours)[:, 0] / 1000, draws.sums(theirs)[:, 0] / 1000
    assert interval(a)["low"] < interval(b)["high"]
    assert above(a, b)["above_zero"]
    assert not above(b, a)["above_zero"]
    assert not above(a, a)["above_zero"]


def test_the_verdict_needs_the_picture_to_help() -> None:
    def run(real: int, other: int) -> str:
        questions = [question(i) for i in range(100)]

        def said(right: int) -> list[str]:
            return ["Red."] * right + ["Blue."] * (100 - right)

        verdict: str = score(OWN, questions, {"real": said(real), "blind": said(other), "shuffled": said(other)})["looks"]["verdict"]
        return verdict

    assert run(90, 40) == "looks"
    assert run(42, 40) == "blind"
    assert run(40, 40) == "blind"
    assert run(30, 40) == "blind"


def test_rouge_l_by_hand() -> None:
    assert rouge_l("a red circle on top", ["red circle top"]) == pytest.approx(2 * 3 / (4 + 3))


def test_an_unknown_task_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="unknown task; got nothing; wanted own"):
        find_task("nothing")
