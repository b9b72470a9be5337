"""`phisense tune`, on parts with random weights: the recipe first, pruning, going on, two workers, and a recipe that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from phisense.errors import TrainingError, UsageError
from phisense.recipe import load_recipe
from phisense.training import Training
from phisense.tuning import parse_range, usual_ranges

from .tiny import make_root

pytest.importorskip("optuna")

VARY = ("--vary", "train.instruct.learning_rate=1e-4..1e-2", "--vary", "train.lora.rank=2,4")
QUICK = ("--set", "train.watch.times=2", "--questions", "6")


def tune(root: Path, verb: Any, trials: int, *more: str) -> Any:
    return verb("tune", root / "tiny.yaml", *VARY, *QUICK, "--trials", trials, *more)


@pytest.mark.usefixtures("compute")
def test_a_study_and_its_continuation(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    first = tune(tmp_path, verb, 2)
    assert first["trials"][0]["settings"] == {"train.instruct.learning_rate": 0.001, "train.lora.rank": 4}, "the recipe as it is"
    assert [row["state"] for row in first["trials"]] == ["complete", "complete"]
    assert first["best"]["value"] == max(row["value"] for row in first["trials"]) >= first["trials"][0]["value"]
    page = Path(first["report"]).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page

    assert tune(tmp_path, verb, 2)["trials"] == first["trials"], "there is nothing left to do"
    again = tune(tmp_path, verb, 3)
    assert again["trials"][:2] == first["trials"]
    assert len(again["trials"]) == 3

    best = load_recipe(again["recipe"])
    assert best.train.instruct.learning_rate == again["best"]["settings"]["train.instruct.learning_rate"]
    verb("train", again["recipe"])
    assert (tmp_path / "runs" / "tiny-best" / "manifest.json").is_file()


def test_what_falls_behind_is_pruned(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three trials answer as well as they can be said to; the fourth looks worse at every look, and does not come to its end."""
    make_root(tmp_path)
    numbers = iter([0.9] * 12 + [0.1] * 4)
    call = Training.__call__

    def looked(self: Training) -> dict[str, Any]:
        report = self.report
        self.report = lambda row: report({**row, "held_out": next(numbers)} if "held_out" in row else row)
        return call(self)

    monkeypatch.setattr(Training, "__call__", looked)
    found = tune(tmp_path, verb, 4)
    assert [row["state"] for row in found["trials"]] == ["complete"] * 3 + ["pruned"]
    assert found["trials"][3]["why"].startswith("behind the others after instruct")
    told = capsys.readouterr().out
    assert "trial 0: 90.0% of 6 held-out questions right" in told
    assert "trial 3: left out: behind the others after instruct" in told
    assert not (tmp_path / "runs" / "tiny-tune-3").exists()
    assert (tmp_path / "runs" / "tiny-tune-0").exists()


def test_settings_that_break_training_are_left(tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the first; and if all of them break, it says why."""
    make_root(tmp_path)
    call = Training.__call__
    broken = {0, 1}

    def breaks(self: Training) -> dict[str, Any]:
        if int(self.recipe.name.rpartition("-")[2]) in broken:
            raise TrainingError("the loss jumped at step 7")
        return call(self)

    monkeypatch.setattr(Training, "__call__", breaks)
    with pytest.raises(TrainingError, match=r"no trial came to its end; got 2 trials\. .*the loss jumped"):
        tune(tmp_path, verb, 2)
    found = tune(tmp_path, verb, 3)
    assert [row["state"] for row in found["trials"]] == ["pruned", "pruned", "complete"]
    assert "the loss jumped" in found["trials"][1]["why"]


def test_a_study_on_a_storage_of_ones_own(tmp_path: Path, verb: Any) -> None:
    """What another worker did in the same storage counts."""
    make_root(tmp_path)
    shared = ("--storage", f"sqlite:///{tmp_path / 'shared.db'}")
    tune(tmp_path, verb, 1, *shared)
    assert not (tmp_path / "studies" / "tiny" / "study.db").exists()
    assert len(tune(tmp_path, verb, 2, *shared)["trials"]) == 2


@pytest.mark.parametrize("text", ["train.lora.rank", "train.lora.rank=4", "=1,2", "train.lora.rank=9..3", "train.lora.rank=a..b"])
def test_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="--vary takes a range"):
        parse_range(text)


def test_what_cannot_be_tuned(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    with pytest.raises(UsageError, match="names no value of the recipe; got train.lora.rnk"):
        verb("tune", tmp_path / "tiny.yaml", "--vary", "train.lora.rnk=2,4")
    with pytest.raises(UsageError, match=r"all trials read the same features; got --vary vision.layer"):
        verb("tune", tmp_path / "tiny.yaml", "--vary", "vision.layer=-2,-1")
    with pytest.raises(UsageError, match="there is nothing to tune by"):
        verb("tune", tmp_path / "tiny.yaml", "--set", "data.held_out=[]")
    assert not (tmp_path / "runs").exists()


def test_the_usual_ranges_hold_what_a_recipe_says(tmp_path: Path) -> None:
    for name in ("practice", "phi3.5-clip-l336"):
        recipe = load_recipe(name)
        ranges = {one.key: one for one in usual_ranges(recipe)}
        assert ranges["train.lora.rank"].holds(recipe.train.lora.rank)
        assert ranges["train.instruct.learning_rate"].holds(recipe.train.instruct.learning_rate)
        assert not ranges["train.instruct.learning_rate"].holds(1.0)
        changed = yaml.safe_load("projector: {nested: [1, 2]}")
        assert "projector.pool" in ranges
        nested = recipe.model_copy(update={"projector": type(recipe.projector).model_validate(changed["projector"])})
        assert "projector.pool" not in {one.key for one in usual_ranges(nested)}
