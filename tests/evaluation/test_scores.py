"""Answer rules and figures against values worked out by hand or published by the rules' authors."""

from __future__ import annotations

import pytest

from phisense.evaluation import Prediction, is_right, normalise, score
from phisense.evaluation.answers import yes_or_no
from phisense.evaluation.scores import mcnemar, pope, rouge_l, wilson


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The Red.", "red"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("top-left", "top left"),
        ("a  cat\nand an owl!", "cat and owl"),
        ("Yes, it is.", "yes it is"),
    ],
)
def test_normalisation(answer: str, form: str) -> None:
    assert normalise(answer) == form


def test_right_and_wrong() -> None:
    assert is_right("It's red.", ["red", "it's red"])
    assert not is_right("It is red.", ["red"])


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes, there is.", "yes"), ("No.", "no"), ("There is not. Yes.", "no"), ("There isn't one", "no"), ("Nothing", "yes")],
)
def test_popes_reading(text: str, said: str) -> None:
    assert yes_or_no(text) == said


def prediction(number: int, condition: str, right: bool, answer: str = "Red.", wanted: str = "Red.", kind: str = "colour") -> Prediction:
    return Prediction(str(number), kind, "a.png", "a.png", "What?", (wanted,), condition, answer, right, 2.0, 4)


def test_pope_by_hand() -> None:
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4
    figures = pope([prediction(i, "real", a == b, a, b) for i, (a, b) in enumerate(pairs)])
    assert figures["accuracy"] == pytest.approx(0.7)
    assert figures["precision"] == pytest.approx(3 / 4)
    assert figures["recall"] == pytest.approx(3 / 5)
    assert figures["f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert figures["share_of_yes"] == pytest.approx(0.4)


def test_intervals_and_tests_by_hand() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Wilson's formula, worked out
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(3, 1) == pytest.approx((4 + 1) / 16)
    assert mcnemar(0, 0) == 1.0
    assert rouge_l("a red circle on top", ["red circle top"]) == pytest.approx(2 * 3 / (4 + 3))


def test_the_verdict_needs_the_picture_to_help() -> None:
    def run(real: int, other: int) -> str:
        members = [prediction(i, "real", i < real) for i in range(100)]
        members += [prediction(i, c, i < other) for c in ("blind", "shuffled") for i in range(100)]
        verdict: str = score(members)["looks"]["verdict"]
        return verdict

    assert run(90, 40) == "looks"
    assert run(42, 40) == "blind"
    assert run(40, 40) == "blind"


def test_long_answers_are_scored_as_texts() -> None:
    scores = score([prediction(1, "real", False, kind="description"), prediction(2, "real", True)])
    assert scores["real"]["accuracy"]["n"] == 1
    assert scores["real"]["captions"] == {"n": 1, "rouge_l": 1.0}
