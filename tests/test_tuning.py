"""`phisense tune`, on parts with random weights: the recipe first, pruning, going on, two workers,
and a recipe that trains.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from phisense.errors import ConversationError, PartError, PhisenseError, TrainingError, UsageError
from phisense.pipeline.progress import HeldOutEval
from phisense.recipe import load_recipe
from phisense.safe_parsing import parse_yaml
from phisense.training import Training, preflight
from phisense.tuning import Tuning, default_ranges, parse_range
from phisense.tuning.ranges import Value, check_ranges, to_yaml

from .tiny import make_root

pytest.importorskip("optuna")

VARY = ("--vary", "train.instruct.learning_rate=1e-4..1e-2", "--vary", "train.lora.rank=2,4")
QUICK = ("--set", "train.eval.times=2", "--questions", "6")


def tune(root: Path, verb: Any, trials: int, *more: str) -> Any:
    return verb("tune", root / "tiny.yaml", *VARY, *QUICK, "--trials", trials, *more)


@pytest.mark.slow
@pytest.mark.usefixtures("compute")
def test_a_study_and_its_continuation(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    first = tune(tmp_path, verb, 2)
    assert first["trials"][0]["settings"] == {
        "train.instruct.learning_rate": 0.001,
        "train.lora.rank": 4,
    }, "the recipe as it is"
    assert [row["state"] for row in first["trials"]] == ["complete", "complete"]
    assert (
        first["best"]["value"]
        == max(row["value"] for row in first["trials"])
        >= first["trials"][0]["value"]
    )
    page = Path(first["report"]).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page

    assert tune(tmp_path, verb, 2)["trials"] == first["trials"], "there is nothing left to do"
    again = tune(tmp_path, verb, 3)
    assert again["trials"][:2] == first["trials"]
    assert len(again["trials"]) == 3

    best = load_recipe(again["recipe"])
    assert (
        best.train.instruct.learning_rate
        == again["best"]["settings"]["train.instruct.learning_rate"]
    )
    verb("train", again["recipe"])
    assert (tmp_path / "runs" / "tiny-best" / "manifest.json").is_file()


@pytest.mark.slow
def test_what_falls_behind_is_pruned(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three trials answer as well as they can be said to; the fourth looks worse at every look, and
    does not come to its end.
    """
    make_root(tmp_path)
    numbers = iter([0.9] * 12 + [0.1] * 4)
    call = Training.__call__

    def looked(self: Training) -> dict[str, Any]:
        on_event = self.on_event
        self.on_event = lambda event: on_event(
            replace(event, accuracy=next(numbers)) if isinstance(event, HeldOutEval) else event
        )
        return call(self)

    monkeypatch.setattr(Training, "__call__", looked)
    found = tune(tmp_path, verb, 4)
    assert [row["state"] for row in found["trials"]] == ["complete"] * 3 + ["pruned"]
    assert found["trials"][3]["why"].startswith("behind the others after instruct")
    told = "".join(capsys.readouterr())
    assert "trial 0: 90.0% of 6 held-out questions right" in told
    assert "trial 3: left out: behind the others after instruct" in told
    assert not (tmp_path / "runs" / "tiny-tune-3").exists()
    assert (tmp_path / "runs" / "tiny-tune-0").exists()


@pytest.mark.slow
def test_settings_that_break_training_are_left(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the first; and if all of them break, it says why."""
    make_root(tmp_path)
    call = Training.__call__
    broken = {0, 1}

    def breaks(self: Training) -> dict[str, Any]:
        if int(self.recipe.name.rpartition("-")[2]) in broken:
            raise TrainingError("the loss jumped at step 7")
        return call(self)

    monkeypatch.setattr(Training, "__call__", breaks)
    with pytest.raises(
        TrainingError, match=r"no trial came to its end; got 2 trials\. .*the loss jumped"
    ):
        tune(tmp_path, verb, 2)
    found = tune(tmp_path, verb, 3)
    assert [row["state"] for row in found["trials"]] == ["pruned", "pruned", "complete"]
    assert "the loss jumped" in found["trials"][1]["why"]


@pytest.mark.slow
def test_a_study_on_a_storage_of_ones_own(tmp_path: Path, verb: Any) -> None:
    """What another worker did in the same storage counts."""
    make_root(tmp_path)
    shared = ("--storage", f"sqlite:///{tmp_path / 'shared.db'}")
    tune(tmp_path, verb, 1, *shared)
    assert not (tmp_path / "studies" / "tiny" / "study.db").exists()
    assert len(tune(tmp_path, verb, 2, *shared)["trials"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "train.lora.rank",
        "train.lora.rank=4",
        "=1,2",
        "train.lora.rank=9..3",
        "train.lora.rank=a..b",
    ],
)
def test_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="--vary takes a range"):
        parse_range(text)


def test_what_cannot_be_tuned(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    with pytest.raises(UsageError, match="names no value of the recipe; got train.lora.rnk"):
        verb("tune", tmp_path / "tiny.yaml", "--vary", "train.lora.rnk=2,4")
    with pytest.raises(
        UsageError, match=r"all trials read the same features; got --vary vision.layer"
    ):
        verb("tune", tmp_path / "tiny.yaml", "--vary", "vision.layer=-2,-1")
    with pytest.raises(UsageError, match="there is nothing to tune by"):
        verb("tune", tmp_path / "tiny.yaml", "--set", "data.held_out=[]")
    assert not (tmp_path / "runs").exists()


def test_the_usual_ranges_hold_what_a_recipe_says(tmp_path: Path) -> None:
    for name in ("practice", "phi3.5-clip-l336"):
        recipe = load_recipe(name)
        ranges = {one.key: one for one in default_ranges(recipe)}
        assert ranges["train.lora.rank"].contains(recipe.train.lora.rank)
        assert ranges["train.instruct.learning_rate"].contains(recipe.train.instruct.learning_rate)
        assert not ranges["train.instruct.learning_rate"].contains(1.0)
        changed = yaml.safe_load("projector: {nested: [1, 2]}")
        assert "projector.pool" in ranges
        nested = recipe.model_copy(
            update={"projector": type(recipe.projector).model_validate(changed["projector"])}
        )
        assert "projector.pool" not in {one.key for one in default_ranges(nested)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (
            "train.instruct.max_length=16,256",
            (
                "no trial could begin with train.instruct.max_length=16; got conversation .* is too"
                " long"
            ),
        ),
        ("projector.pool=1,3", "no trial could begin with projector.pool=3; got 3x3 pooling"),
        (
            "train.lora.rank=2..8",
            r"no trial could begin with train.lora.rank=4\.\d+; got .*train.lora.rank is wrong",
        ),
        ("train.lora.rank=2,many", "no trial could begin with train.lora.rank=many"),
        (
            "train.lora.target_modules=null,.*wqkv",
            "no trial could begin with train.lora.target_modules=.*wqkv; got the LoRA pattern",
        ),
    ],
)
def test_a_value_with_which_no_trial_could_begin(
    tmp_path: Path, verb: Any, vary: str, said: str
) -> None:
    make_root(tmp_path)
    with pytest.raises(UsageError, match=said):
        verb("tune", tmp_path / "tiny.yaml", "--vary", vary, *QUICK, "--trials", 2)
    for made in ("runs", "features", "studies"):
        assert not (tmp_path / made).exists()


def test_a_value_that_goes_with_another_of_another_range(tmp_path: Path) -> None:
    """pixel_shuffle needs a pool that the recipe as it is has not."""
    make_root(tmp_path)
    check_ranges(
        str(tmp_path / "tiny.yaml"),
        (),
        [parse_range("projector.kind=mlp,pixel_shuffle"), parse_range("projector.pool=1,2")],
    )
    # the control
    with pytest.raises(UsageError, match="no trial could begin with projector.kind=pixel_shuffle"):
        check_ranges(
            str(tmp_path / "tiny.yaml"), (), [parse_range("projector.kind=mlp,pixel_shuffle")]
        )


RATE = "train.instruct.learning_rate"


@pytest.mark.parametrize(
    "vary", [f"{RATE}=0..0.001", f"{RATE}=0..0.5", "train.instruct.warmup_ratio=0..0.999"]
)
def test_an_end_that_is_excluded_is_no_fault_of_the_range(tmp_path: Path, vary: str) -> None:
    make_root(tmp_path)
    check_ranges(
        str(tmp_path / "tiny.yaml"),
        (),
        [parse_range(vary), parse_range("train.lora.dropout=0..0.2")],
    )


@pytest.mark.parametrize(
    ("vary", "end"),
    [
        (f"{RATE}=-0.25..0.75", "-0.25"),
        ("train.instruct.warmup_ratio=0.0..1.5", "1.5"),
        (f"{RATE}=0,0.001", "0"),
    ],
)
def test_what_lies_behind_an_end_is(tmp_path: Path, vary: str, end: str) -> None:
    """The control; an excluded value that is a choice is drawn, too."""
    make_root(tmp_path)
    with pytest.raises(
        UsageError, match=f"no trial could begin with {vary.partition('=')[0]}={end}; got"
    ):
        check_ranges(str(tmp_path / "tiny.yaml"), (), [parse_range(vary)])


VALUES: list[Value] = [
    None,
    True,
    False,
    0,
    16,
    1e-5,
    1e22,
    0.001,
    "mlp",
    "null",
    "yes",
    "1e-5",
    "0.0",
    ".*proj",
    "a: b",
    "",
    "é",
    "x" * 300,
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_as_it_was(value: Value) -> None:
    found = parse_yaml(to_yaml(value), "a value")
    assert (found, type(found)) == (value, type(value))


def test_written_as_python_does_some_would_not() -> None:
    """The control."""
    assert any(parse_yaml(f"{value}", "a value") != value for value in (None, "null", "yes"))


@pytest.mark.slow
@pytest.mark.usefixtures("compute")
def test_no_value_is_a_value(tmp_path: Path, verb: Any) -> None:
    """The recipe as it is has no rate of the projector's own, and goes first as it is."""
    make_root(tmp_path)
    found = verb(
        "tune",
        tmp_path / "tiny.yaml",
        "--vary",
        "train.instruct.projector_learning_rate=null,0.002",
        *QUICK,
        "--trials",
        1,
    )
    assert found["trials"][0]["settings"] == {"train.instruct.projector_learning_rate": None}
    assert load_recipe(found["recipe"]).train.instruct.projector_learning_rate is None


@pytest.mark.slow
def test_the_usual_ranges_render_data_once_for_each_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_root(tmp_path)
    built: list[int] = []
    init = preflight.Samples.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        built.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(preflight.Samples, "__init__", counted)
    check_ranges(
        str(tmp_path / "tiny.yaml"), (), default_ranges(load_recipe(tmp_path / "tiny.yaml"))
    )
    assert len(built) == 2 * 2, "two stages, with pools of 1 and 2"


@pytest.mark.slow
def test_a_disk_that_goes_ends_the_study(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prunes no trial, since no settings are at fault."""
    make_root(tmp_path)

    def gone(*_: Any) -> Any:
        raise PartError("the language part is not there")

    monkeypatch.setattr(Training, "__call__", gone)
    monkeypatch.setattr("phisense.tuning.study.check_variant", gone)
    with pytest.raises(PartError, match="the language part is not there"):
        tune(tmp_path, verb, 3)


@pytest.mark.slow
def test_whether_settings_are_at_fault(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A combination that was not among those tried may be one that does not go: it is pruned. What
    comes of nothing in it is raised.
    """
    root = make_root(tmp_path)["root"]
    call, said = Training.__call__, ConversationError("conversation red-0 is too long")

    def breaks(self: Training) -> dict[str, Any]:
        if self.recipe.name.endswith("-0"):
            raise said
        return call(self)

    monkeypatch.setattr(Training, "__call__", breaks)
    with pytest.raises(ConversationError):
        tune(tmp_path, verb, 2)
    monkeypatch.setattr(Tuning, "_is_unfit", lambda self, changes: True)
    (tmp_path / "studies").rename(tmp_path / "earlier")
    assert [row["state"] for row in tune(tmp_path, verb, 2)["trials"]] == ["pruned", "complete"]
    monkeypatch.undo()
    one = Tuning(f"{root}/tiny.yaml", (), (), 1, None, 6, None, "cpu")
    assert one._is_unfit(("train.instruct.max_length=16",))
    assert not one._is_unfit(("train.instruct.max_length=200",))
    (tmp_path / "parts").rename(tmp_path / "away")
    assert not one._is_unfit(("train.instruct.max_length=16",))


@pytest.mark.slow
def test_a_recipe_that_cannot_be_trained_is_told_before_a_study_begins(
    tmp_path: Path, verb: Any
) -> None:
    make_root(tmp_path)
    with pytest.raises(PhisenseError, match="lost.json"):
        tune(tmp_path, verb, 1, "--set", "data.instruct=[lost.json]")
    assert not (tmp_path / "studies").exists()
