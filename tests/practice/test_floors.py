"""What the demo promises: a summary that misses any one floor is told apart from one that meets all, by name and by both numbers."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import DemoError, PhisenseError
from phisense.practice.floors import FLOORS, SCENES, Floor, hold, judged

GOOD: dict[str, Any] = {
    "scenes": SCENES,
    "accuracy": {"real": 0.90, "unseen_combinations": 0.78, "digits": 0.83, "blind": 0.50},
    "looks": "looks",
    "train": {"looks": "looks"},
    "merge": {"delta_loss": 0.002, "same_answers": 0.995, "projector_change": 0.0},
}
BESIDE: dict[str, Any] = {  # each just on the wrong side of its floor
    "accuracy.real": 0.8991, "accuracy.unseen_combinations": 0.7799, "accuracy.digits": 0.8275, "accuracy.blind": 0.5008,
    "looks": "blind", "train.looks": "too few", "merge.delta_loss": 0.0021, "merge.same_answers": 0.9949,
    "merge.projector_change": 1e-9,
}  # fmt: skip


def changed(figure: str, value: Any, **more: Any) -> dict[str, Any]:
    """GOOD with one figure changed, or left out where the value is ...."""
    summary = copy.deepcopy(GOOD) | more
    *sections, last = figure.split(".")
    at = summary
    for section in sections:
        at = at[section]
    at.pop(last) if value is ... else at.update({last: value})
    return summary


def missed(summary: dict[str, Any]) -> list[str]:
    return [figure for figure, floor in judged(summary).items() if floor["met"] is False]


def test_the_promises() -> None:
    wanted = {floor.figure: f"{floor.sign} {floor.wanted}" for floor in FLOORS}
    assert wanted == {
        "accuracy.real": "≥ 0.9", "accuracy.unseen_combinations": "≥ 0.78", "accuracy.digits": "≥ 0.83", "accuracy.blind": "≤ 0.5",
        "train.looks": "= looks", "looks": "= looks",
        "merge.delta_loss": "≤ 0.002", "merge.same_answers": "≥ 0.995", "merge.projector_change": "= 0.0",
    }  # fmt: skip
    assert BESIDE.keys() == wanted.keys()


def test_what_meets_every_floor_passes(tmp_path: Path) -> None:
    floors = judged(GOOD)
    assert all(floor["met"] is True for floor in floors.values())
    assert floors["accuracy.real"] == {"got": 0.9, "wanted": "≥ 0.9", "met": True}
    hold(floors, tmp_path, SCENES)


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: floor.figure)
def test_each_floor_trips_alone(floor: Floor, tmp_path: Path) -> None:
    summary = changed(floor.figure, BESIDE[floor.figure])
    assert missed(summary) == [floor.figure]
    with pytest.raises(DemoError) as error:
        hold(judged(summary), tmp_path, SCENES)
    said = str(error.value)
    for word in (floor.figure, floor.name, str(BESIDE[floor.figure]), str(floor.wanted), floor.look.split(", ")[0], str(tmp_path)):
        assert word in said
    assert isinstance(error.value, PhisenseError)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: floor.figure)
@pytest.mark.parametrize("value", [..., None, math.nan, "0.95", True], ids=["missing", "none", "nan", "text", "true"])
def test_what_is_no_figure_trips(floor: Floor, value: Any, tmp_path: Path) -> None:
    summary = changed(floor.figure, value)
    assert missed(summary) == [floor.figure]
    with pytest.raises(DemoError, match=floor.figure):
        hold(judged(summary), tmp_path, SCENES)


def test_a_section_that_is_missing_trips_all_its_floors() -> None:
    assert missed({"scenes": SCENES}) == [floor.figure for floor in FLOORS]


def test_several_are_named_together(tmp_path: Path) -> None:
    summary = changed("accuracy.real", 0.87)
    summary["accuracy"]["digits"] = 0.5
    with pytest.raises(DemoError) as error:
        hold(judged(summary), tmp_path, SCENES)
    assert str(error.value) == (
        "the demo walked the whole road and did not arrive: accuracy on held-out scenes (accuracy.real) and accuracy on unseen handwriting "
        "(accuracy.digits); got 0.87 and 0.5; wanted at least 0.9 and at least 0.83. Look at reports/heldout/report.html, "
        f"runs/practice/loss.png, runs/practice/train.json and reports/digits/report.html in {tmp_path}."
    )


def test_with_fewer_scenes_accuracies_are_not_judged_and_looking_is(tmp_path: Path) -> None:
    few = changed("accuracy.real", 0.4, scenes=SCENES - 1)
    floors = judged(few)
    assert floors["accuracy.real"] == {"got": 0.4, "wanted": "≥ 0.9", "met": None}
    assert {figure for figure, floor in floors.items() if floor["met"] is None} == {
        "accuracy.real", "accuracy.unseen_combinations", "accuracy.digits", "accuracy.blind",
    }  # fmt: skip
    hold(floors, tmp_path, SCENES - 1)
    assert missed(changed("accuracy.real", 0.4, scenes=SCENES + 1)) == ["accuracy.real"]
    with pytest.raises(DemoError, match=f"train.looks.*got blind.*wanted exactly looks.*{SCENES - 1} scenes are few"):
        hold(judged(changed("train.looks", "blind", scenes=SCENES - 1)), tmp_path, SCENES - 1)
