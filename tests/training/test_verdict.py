"""The verdict whether a model looks, on counts made by hand, and the words for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from phisense.bootstrap import MIN_UNITS
from phisense.pipeline.results import TrainingVerdict
from phisense.training.verdict import describe_verdict, judge_looking


def verdict(
    real: int, blind: int, shuffled: int, constant: int = 0, of: int = 100, pictures: int = 10
) -> TrainingVerdict:
    """The first `real` questions of `of` are right with the picture, and so on: what is right blind
    is right with the picture, too.
    """
    counts = [[i < right for i in range(of)] for right in (real, blind, shuffled, constant)]
    return judge_looking([f"{i % pictures}.png" for i in range(of)], *counts)


def test_it_looks_if_it_is_better_than_without_and_than_with_another() -> None:
    found = verdict(90, 35, 40)
    assert (found.verdict, found.questions, found.pictures) == ("looks", 100, 10)
    assert (found.real, found.blind, found.shuffled) == (0.9, 0.35, 0.4)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.55)
    # 55 of 100 questions differ: a share, whose standard error is 0.0497
    assert found.difference.low == pytest.approx(0.55 - 1.96 * 0.0497, abs=0.012)
    assert found.difference.high == pytest.approx(0.55 + 1.96 * 0.0497, abs=0.012)
    assert TrainingVerdict.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("real", "blind", "shuffled", "constant", "hardest"),
    [
        (100, 100, 100, 0, "blind"),  # always right: the questions give their answers away
        (0, 0, 0, 0, "blind"),  # never
        (50, 50, 50, 40, "blind"),  # half of the time, whatever it is shown
        (90, 35, 90, 40, "shuffled"),  # any picture will do: the features may be another picture's
        (35, 90, 30, 0, "blind"),  # worse with the picture
        (51, 50, 50, 0, "blind"),  # better by one question
        (60, 0, 48, 62, "constant"),  # without its picture it lost the form, and nothing else
        (62, 0, 0, 60, "constant"),
    ],
)
def test_else_it_is_blind(
    real: int, blind: int, shuffled: int, constant: int, hardest: str
) -> None:
    found = verdict(real, blind, shuffled, constant)
    assert found.verdict == "blind"
    assert found.hardest == hardest
    assert found.over[hardest].low <= 0
    assert f"The largest of these is {NAMES[hardest]}, " in describe_verdict(found)


NAMES = {
    "blind": "its accuracy without the picture",
    "shuffled": "its accuracy with another's picture",
    "constant": "the commonest answer's accuracy",
}


def test_a_run_of_an_earlier_version_has_no_constant() -> None:
    whole = verdict(90, 35, 40, 50).to_dict()
    old = {
        key: value for key, value in whole.items() if "constant" not in key and key != "by_content"
    }
    found = TrainingVerdict.from_dict(json.loads(json.dumps(old)))
    assert (found.verdict, found.constant, set(found.over)) == (
        "looks",
        None,
        {"blind", "shuffled"},
    )
    assert "commonest" not in describe_verdict(found)


def test_the_difference_is_paired() -> None:
    """Half right each, but never the same half: unpaired shares would hide that the spread is twice
    as large.
    """
    real = [i % 2 == 0 for i in range(100)]
    other = [not one for one in real]
    found = judge_looking(["a", "b"] * 50, real, other, other, other)
    assert found.difference is not None
    assert found.difference.value == 0.0
    assert found.difference.high == pytest.approx(0.196, abs=0.02)
    assert found.verdict == "blind"


@pytest.mark.parametrize(
    ("of", "pictures", "expected"),
    [
        (0, 1, "too few"),
        (1, 1, "too few"),
        (MIN_UNITS - 1, 5, "too few"),
        (MIN_UNITS, 5, "looks"),
        (100, 1, "too few"),
    ],
)
def test_of_few_questions_or_of_one_picture_nothing_can_be_told(
    of: int, pictures: int, expected: str
) -> None:
    found = verdict(of, 0, 0, of=of, pictures=pictures)
    assert found.verdict == expected
    assert (found.difference is None) == (expected == "too few")
    assert found.real == (1.0 if of else None)


def test_the_words_hold_the_figures() -> None:
    good = describe_verdict(verdict(90, 35, 40))
    assert good.startswith(
        "It looks at its pictures: of 100 held-out questions it answered 90.0% right with the"
        " picture, 35.0% without it"
    )
    assert "(a difference of +55.0 points [+" in good
    assert "The largest of these is its accuracy with another's picture, 50.0 points below" in good
    blind = describe_verdict(verdict(50, 50, 48, 45))
    assert blind.startswith(
        "It does not look at its pictures: of 100 held-out questions it answered 50.0% right with"
        " the picture, 50.0%"
    )
    assert "(a difference of +0.0 points [+0.0, +0.0]), 48.0% with another question's" in blind
    assert "45.0% are right by giving each question its commonest answer" in blind
    assert describe_verdict(verdict(50, 0, 10, 50)).startswith("It is not shown to look at its")
    by_content = describe_verdict(replace(verdict(90, 35, 40), by_content=7))
    assert "7 answers without their own picture fell out of the answer's form" in by_content
    none = describe_verdict(TrainingVerdict())
    assert (
        "cannot be told: it was asked 0 held-out questions about 0 pictures, and at least 20 about"
        " 2 are needed" in none
    )
