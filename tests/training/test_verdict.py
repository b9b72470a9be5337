"""The verdict whether a model looks, on counts made by hand, and the words for it."""

from __future__ import annotations

import json

import pytest

from phisense.bootstrap import MIN_UNITS
from phisense.pipeline.results import TrainingVerdict
from phisense.training.verdict import describe_verdict, judge_looking


def verdict(
    real: int, blind: int, shuffled: int, of: int = 100, pictures: int = 10
) -> TrainingVerdict:
    """The first `real` questions of `of` are right with the picture, and so on: what is right blind
    is right with the picture, too.
    """
    counts = [[i < right for i in range(of)] for right in (real, blind, shuffled)]
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
    ("real", "blind", "shuffled"),
    [
        (100, 100, 100),  # always right: the questions give their answers away
        (0, 0, 0),  # never
        (50, 50, 50),  # half of the time, whatever it is shown
        (90, 35, 90),  # any picture will do: the features may be another picture's
        (35, 90, 30),  # worse with the picture
        (51, 50, 50),  # better by one question
    ],
)
def test_else_it_is_blind(real: int, blind: int, shuffled: int) -> None:
    found = verdict(real, blind, shuffled)
    assert found.verdict == "blind"
    assert found.difference is not None
    assert found.difference_shuffled is not None
    assert min(found.difference.low, found.difference_shuffled.low) <= 0


def test_the_difference_is_paired() -> None:
    """Half right each, but never the same half: unpaired shares would hide that the spread is twice
    as large.
    """
    real = [i % 2 == 0 for i in range(100)]
    other = [not one for one in real]
    found = judge_looking(["a", "b"] * 50, real, other, other)
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
    blind = describe_verdict(verdict(50, 50, 48))
    assert blind.startswith(
        "It does not look at its pictures: of 100 held-out questions it answered 50.0% right with"
        " the picture, 50.0%"
    )
    assert "(a difference of +0.0 points [+0.0, +0.0]) and 48.0% with another question's" in blind
    none = describe_verdict(TrainingVerdict())
    assert (
        "cannot be told: it was asked 0 held-out questions about 0 pictures, and at least 20 about"
        " 2 are needed" in none
    )
