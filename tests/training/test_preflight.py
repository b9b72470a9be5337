"""What is wrong with any stage is told before the first one makes a step, and before anything is
written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from phisense.errors import (
    ArtifactError,
    ConversationError,
    ImageError,
    PartError,
    PhisenseError,
    TrainingError,
    UsageError,
)
from phisense.model import Phi3WithProjector, save_model
from phisense.recipe import load_recipe
from phisense.training import Training, preflight, trainer
from phisense.training import stages as training_run

from ..conftest import LONG
from ..tiny import make_root

STAGES = ("align", "instruct", "deeper", "last")
Change = Callable[[Path, dict[str, Any], str], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of four stages, each with a data set of its own, its features encoded."""
    from phisense.cli import run_verb

    root = tmp_path_factory.mktemp("stages")
    recipe = make_root(root)
    stage = recipe["train"]["align"]
    rows = (root / "rows.json").read_text()
    for name in STAGES:
        (root / f"{name}.json").write_text(rows)
    recipe["data"] |= {"align": ["align.json"], "instruct": ["instruct.json"]}
    recipe["train"]["further"] = {name: {**stage, "data": [f"{name}.json"]} for name in STAGES[2:]}
    recipe["features"] = {"folder": "features/shared"}
    (root / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    run_verb("features", root / "tiny.yaml")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Of its own but for parts and features."""
    for name in ("parts", "features", "images"):
        (tmp_path / name).symlink_to(made / name)
    for path in (*made.glob("*.json"), made / "tiny.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    recipe = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**recipe, "root": str(tmp_path)}))
    return tmp_path


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages of the steps that were made."""
    seen: list[str] = []
    step = trainer.StageTrainer.training_step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(Path(self.args.output_dir).name)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.StageTrainer, "training_step", noted)
    return seen


def rows_of(root: Path, stage: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / f"{stage}.json").read_text())
    return found


def settings(recipe: dict[str, Any], stage: str) -> dict[str, Any]:
    train: dict[str, Any] = recipe["train"]
    found: dict[str, Any] = train[stage] if stage in train else train["further"][stage]
    return found


def no_file(root: Path, recipe: dict[str, Any], stage: str) -> None:
    (root / f"{stage}.json").unlink()


def no_json(root: Path, recipe: dict[str, Any], stage: str) -> None:
    (root / f"{stage}.json").write_text('[{"id": 1,')


def nothing(root: Path, recipe: dict[str, Any], stage: str) -> None:
    (root / f"{stage}.json").write_text("[]")


def with_row(row: dict[str, Any]) -> Change:
    def change(root: Path, recipe: dict[str, Any], stage: str) -> None:
        (root / f"{stage}.json").write_text(json.dumps([*rows_of(root, stage), row]))

    return change


def too_short(root: Path, recipe: dict[str, Any], stage: str) -> None:
    settings(recipe, stage)["max_length"] = 16


def too_long(root: Path, recipe: dict[str, Any], stage: str) -> None:
    with_row({"id": "long", "image": "red.png", "conversations": talk("What? " * 400, "Red.")})(
        root, recipe, stage
    )


def not_encoded(root: Path, recipe: dict[str, Any], stage: str) -> None:
    (root / "images").unlink()
    (root / "images").mkdir()
    for name in ("red", "green", "blue", "white", "new"):
        Image.new("RGB", (60, 40), name if name != "new" else (1, 2, 3)).save(
            root / "images" / f"{name}.png"
        )
    with_row({"id": "new", "image": "new.png", "conversations": talk("What?", "New.")})(
        root, recipe, stage
    )


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


FAULTS: dict[str, tuple[Change, type[PhisenseError], str]] = {
    "no file": (no_file, PhisenseError, r"{stage}\.json"),
    "no JSON": (no_json, ConversationError, r"{stage}\.json"),
    "no row": (nothing, ConversationError, r"{stage}\.json"),
    "no answer": (
        with_row({"id": "bad", "conversations": [{"from": "human", "value": "What?"}]}),
        ConversationError,
        r"{stage}\.json, row 13",
    ),
    "no turns": (
        with_row({"id": "bad", "image": "red.png"}),
        ConversationError,
        r"{stage}\.json, row 13",
    ),
    "markers": (
        with_row({"id": "bad", "image": "red.png", "conversations": talk("<image> What?", "Red.")}),
        ConversationError,
        "bad",
    ),
    "too short": (too_short, ConversationError, "is too long; got .* wanted at most 16"),
    "too long": (too_long, ConversationError, "conversation long is too long"),
    "not encoded": (
        not_encoded,
        ArtifactError,
        "lacks pictures of stage {stage}; got 1, the first new.png",
    ),
}


def write(root: Path, recipe: dict[str, Any]) -> Path:
    (root / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return root / "tiny.yaml"


def read(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / "tiny.yaml").read_text())
    return found


#: The stages are looked at alike, so each fault is put into one of them, in turn.
CASES = [
    (fault, stage)
    for number, fault in enumerate(FAULTS)
    for at, stage in enumerate(STAGES)
    if LONG or at == number % len(STAGES)
]


@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_the_data_of_every_stage(
    root: Path, verb: Any, steps: list[str], stage: str, fault: str
) -> None:
    change, kind, said = FAULTS[fault]
    recipe = read(root)
    change(root, recipe, stage)
    with pytest.raises(kind, match=said.format(stage=stage)):
        verb("train", write(root, recipe))
    assert steps == []
    assert not (root / "runs").exists(), "a resume finds nothing that it could mistake for a run"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["too long", "too short"])
def test_data_that_is_read_late_is_told_late(
    root: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The control: with the early look at the other stages off, the same faults are met when three
    stages were trained.
    """
    change, kind, said = FAULTS[fault]
    recipe = read(root)
    good = load_recipe(write(root, recipe))
    change(root, recipe, "last")
    bad = load_recipe(write(root, recipe))
    whole = preflight.preflight

    def late(run: Any, plan: Any, *args: Any, _train: Any = training_run.train_stage) -> Any:
        if plan.name == "last":
            whole(bad)
        return _train(run, plan, *args)

    (root / "last.json").write_text((root / "deeper.json").read_text())
    ahead = whole(good)
    change(root, recipe, "last")
    monkeypatch.setattr(training_run, "preflight", lambda recipe, processes: ahead)
    monkeypatch.setattr(training_run, "train_stage", late)
    with pytest.raises(kind, match=said.format(stage="last")):
        Training(bad, lambda row: None, device="cpu")()
    assert set(steps) == {"align", "instruct", "deeper"}


def of_train(**changes: Any) -> Change:
    def change(root: Path, recipe: dict[str, Any], stage: str) -> None:
        recipe["train"] |= changes

    return change


def held_out(text: str) -> Change:
    def change(root: Path, recipe: dict[str, Any], stage: str) -> None:
        (root / "held.json").write_text(text)
        recipe["data"]["held_out"] = ["held.json"]

    return change


def one_step_each(root: Path, recipe: dict[str, Any], stage: str) -> None:
    for name in STAGES:
        settings(recipe, name).update({"max_steps": 1, "warmup_ratio": 0.5})


def layer(root: Path, recipe: dict[str, Any], stage: str) -> None:
    recipe["vision"]["layer"] = -9


def pool(root: Path, recipe: dict[str, Any], stage: str) -> None:
    recipe["projector"] = {"pool": 3}


SETTINGS: dict[str, tuple[Change, type[PhisenseError], str]] = {
    "LoRA on nothing": (
        of_train(lora={"rank": 4, "target_modules": r".*\.wqkv"}),
        TrainingError,
        "the LoRA pattern matches the wrong modules; got 0",
    ),
    "LoRA on more": (
        of_train(lora={"rank": 4, "target_modules": ".*proj"}),
        TrainingError,
        "the LoRA pattern matches the wrong modules",
    ),
    "report_to": (
        of_train(report_to=["neptune"]),
        TrainingError,
        "train.report_to names what is not installed, neptune",
    ),
    "optimizer": (
        of_train(instruct={"projector_optimizer": "lion"}),
        UsageError,
        "train.instruct.projector_optimizer is wrong",
    ),
    "rate 0": (
        one_step_each,
        TrainingError,
        "training would not move the projector; got 1 step in align",
    ),
    "held-out row": (
        held_out('[{"id": 1, "image": "red.png"}]'),
        ConversationError,
        "held.json, row 1",
    ),
    "held-out file": (held_out("{"), ConversationError, "held.json"),
    "layer": (
        layer,
        PartError,
        r"the vision part has no such layer; got vision.layer -9; wanted -4 to -1, for 3 layers",
    ),
    "pool": (pool, PartError, "3x3 pooling needs a number of patches a side that 3 divides; got 4"),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_settings(root: Path, verb: Any, steps: list[str], fault: str) -> None:
    change, kind, said = SETTINGS[fault]
    recipe = read(root)
    change(root, recipe, "")
    with pytest.raises(kind, match=said):
        verb("train", write(root, recipe))
    assert steps == []
    assert not (root / "runs").exists()


@pytest.fixture
def started(root: Path) -> dict[str, Any]:
    """A recipe that starts from a model folder made of the parts of the one in `root`, its pictures
    encoded.
    """
    save_model(Phi3WithProjector.from_recipe(load_recipe(root / "tiny.yaml")), root / "whole")
    recipe = {
        **read(root),
        "start": "./whole",
        "vision": {"encoder": "clip"},
        "features": {"folder": "started"},
    }
    del recipe["language"]
    return recipe


@pytest.mark.slow
def test_a_start_that_fits(
    root: Path, verb: Any, started: dict[str, Any], steps: list[str]
) -> None:
    """A start is no fault: what is ahead of the run is what is ahead of one without, and the run
    trains.
    """
    plain = preflight.preflight(load_recipe(root / "tiny.yaml"))
    recipe = load_recipe(write(root, started))
    ahead = preflight.preflight(recipe)
    assert [(name, one.steps, one.rows) for name, one in ahead.items()] == [
        (name, one.steps, one.rows) for name, one in plain.items()
    ]
    preflight.check_variant(recipe)
    verb("features", root / "tiny.yaml")
    verb("train", root / "tiny.yaml")
    assert set(steps) == set(STAGES)


@pytest.mark.parametrize("projector", [{"kind": "linear"}, {"pool": 2}], ids=["kind", "pool"])
def test_a_start_that_does_not(
    root: Path, verb: Any, started: dict[str, Any], steps: list[str], projector: dict[str, Any]
) -> None:
    """The control: another projector than the folder's is refused, before a step."""
    with pytest.raises(
        PartError, match=r"the recipe does not fit the projector of .*whole; got \S+ \S+; wanted"
    ):
        verb("train", write(root, {**started, "projector": projector}))
    assert steps == []
    assert not (root / "runs").exists()


@pytest.mark.slow
def test_a_finished_run_is_resumed_without_its_held_out_pictures(
    root: Path, verb: Any, steps: list[str]
) -> None:
    """Nothing is asked about them any more. With a stage yet to be trained they are, and a changed
    one is told before it begins.
    """
    (root / "held").mkdir()
    Image.new("RGB", (60, 40), (1, 2, 3)).save(root / "held" / "held.png")
    (root / "held.json").write_text(
        json.dumps([{"id": "held", "image": "held.png", "conversations": talk("What?", "Grey.")}])
    )
    recipe = read(root)
    recipe["data"] |= {"images": ["images", "held"], "held_out": ["held.json"]}
    path = write(root, {**recipe, "features": {"folder": "own"}})
    verb("features", path)
    facts = verb("train", path)
    steps.clear()
    Image.new("RGB", (60, 40), (200, 100, 3)).save(root / "held" / "held.png")
    assert verb("train", path, "--resume")["run"] == facts["run"]
    (root / "runs" / "tiny" / "manifest.json").unlink()
    (root / "runs" / "tiny" / "stages" / "last" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"held\.png"):
        verb("train", path, "--resume")
    assert steps == []


@pytest.mark.slow
def test_a_rate_of_0_is_otherwise_told_at_the_end(
    root: Path, verb: Any, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    recipe = read(root)
    one_step_each(root, recipe, "")
    monkeypatch.setattr(preflight, "_check_enough_steps", lambda *_: None)
    with pytest.raises(TrainingError, match="training did not move the projector"):
        verb("train", write(root, recipe))
    assert set(steps) == set(STAGES)


@pytest.mark.slow
def test_a_fault_leaves_a_run_that_would_be_replaced(
    root: Path, verb: Any, steps: list[str]
) -> None:
    """The finished run stays where it is, and is no NAME~ of one that never began."""
    verb("train", root / "tiny.yaml")
    before = {path: path.stat().st_mtime_ns for path in (root / "runs").rglob("*")}
    steps.clear()
    recipe = read(root)
    settings(recipe, "last")["max_length"] = 16
    with pytest.raises(ConversationError, match="is too long"):
        verb("train", write(root, recipe), "--overwrite")
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in (root / "runs").rglob("*")} == before


@pytest.mark.parametrize("stage", STAGES)
def test_processes_that_cannot_share_a_batch(root: Path, stage: str) -> None:
    recipe = read(root)
    settings(recipe, stage)["batch_size"] = 5
    recipe["train"]["share_pictures"] = False
    wrong = load_recipe(write(root, recipe))
    with pytest.raises(
        TrainingError,
        match="the processes cannot share a batch; got 5 conversations in 5 rows, 2 processes",
    ):
        preflight.preflight(wrong, processes=2)


@pytest.mark.slow
def test_what_is_built_ahead_is_what_is_trained_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is rendered twice."""
    built: list[int] = []
    init = preflight.Samples.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        built.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(preflight.Samples, "__init__", counted)
    Training(load_recipe(root / "tiny.yaml"), lambda row: None, device="cpu")()
    assert len(built) == len(STAGES)


def test_a_variant_without_its_pictures_or_questions(root: Path) -> None:
    for name, said, kind in (
        ("images", "there is no picture", ImageError),
        ("rows.json", "rows.json", PhisenseError),
    ):
        whole = root / name
        whole.rename(root / "elsewhere")
        with pytest.raises(kind, match=said):
            preflight.check_variant(load_recipe(root / "tiny.yaml"))
        (root / "elsewhere").rename(whole)
    preflight.check_variant(load_recipe(root / "tiny.yaml"))


def test_looking_ahead_is_quick_and_needs_no_weight(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phisense.parts._load", lambda *_, **__: pytest.fail("a weight was read"))
    began = time.monotonic()
    preflight.preflight(load_recipe(root / "tiny.yaml"))
    assert time.monotonic() - began < 20
