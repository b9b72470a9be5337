"""Parts that are ids of the hub: pinned to the commit that they meant when they were first used,
whatever the id means later.

There is no hub here: its cache is made by hand as huggingface_hub lays it out,
`snapshots/<commit>/` and `refs/main`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from phisense import artifacts
from phisense.errors import PartError, TerminatedError
from phisense.parts import pin_revision, resolve_part
from phisense.pipeline.progress import Event, TrainingStep
from phisense.training import Training

from ..tiny import make_root
from .test_other_parts import one_layer

pytestmark = pytest.mark.slow

OLD, NEW = "a" * 40, "b" * 40
IDS = {"language": "some/language", "vision": "some/vision"}


class Hub:
    """The cache of a hub with the tiny parts at two commits; `main` is what an id means now."""

    def __init__(self, cache: Path, root: Path) -> None:
        self.cache = cache
        for part, name in IDS.items():
            for commit in (OLD, NEW):
                shutil.copytree(root / "parts" / part, self.snapshot(name, commit))
            one_layer(self.snapshot(name, NEW))
        self.main(OLD)

    def snapshot(self, name: str, commit: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit

    def main(self, commit: str) -> None:
        for name in IDS.values():
            refs = self.snapshot(name, commit).parents[1] / "refs"
            refs.mkdir(exist_ok=True)
            (refs / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    make_root(tmp_path)
    recipe = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    for part, name in IDS.items():
        recipe[part]["part"] = name
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    made = Hub(tmp_path / "hub", tmp_path)
    shutil.rmtree(tmp_path / "parts")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return made


def test_an_id_means_one_commit(hub: Hub) -> None:
    name = IDS["language"]
    assert pin_revision(name) == pin_revision(f"{name}@main") == f"{name}@{OLD}"
    assert resolve_part(f"{name}@{NEW}") == hub.snapshot(name, NEW)
    hub.main(NEW)
    assert pin_revision(name) == f"{name}@{NEW}"
    assert pin_revision(f"{name}@{OLD}") == f"{name}@{OLD}"
    with pytest.raises(
        PartError,
        match=(
            f"the part {name}@{'c' * 40} was not found; .*hf download {name} --revision {'c' * 40}"
            " --local-dir"
        ),
    ):
        resolve_part(f"{name}@{'c' * 40}")


def test_a_folder_keeps_its_name(tmp_path: Path) -> None:
    assert pin_revision(str(tmp_path)) == str(tmp_path)
    odd = tmp_path / "owner" / "name@main"
    odd.mkdir(parents=True)
    assert pin_revision(str(odd)) == str(odd)


def train(root: Path, verb: Any, *more: str, until: int | None = None) -> Any:
    call = Training.__call__

    def stopping(self: Training) -> dict[str, Any]:
        def stop(event: Event) -> None:
            if (
                until is not None
                and isinstance(event, TrainingStep)
                and (event.stage, event.step) == ("instruct", until)
            ):
                raise TerminatedError("the test stops it")

        self.on_event = stop
        return call(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "__call__", stopping)
        changes = (
            "--set",
            "train.eval.questions=0",
            "--set",
            "train.log_every=1",
            "--set",
            "train.instruct.max_steps=24",
        )
        return verb("train", root / "tiny.yaml", *changes, *more)


def test_the_whole_road_stays_at_the_commit_that_it_began_with(
    hub: Hub, tmp_path: Path, verb: Any
) -> None:
    """main moves behind the features, behind a stopped training, and behind a finished one."""
    verb("features", tmp_path / "tiny.yaml")
    assert (
        artifacts.read_manifest(tmp_path / "features" / "tiny", kind="feature store")["part"]
        == f"{IDS['vision']}@{OLD}"
    )
    train(tmp_path, verb, "--set", "name=straight", "--set", "features.folder=features/tiny")
    for name in IDS.values():
        (hub.snapshot(name, OLD).parents[1] / "refs" / "main").write_text(
            NEW if "vision" in name else OLD
        )
    with pytest.raises(TerminatedError):
        train(tmp_path, verb, until=22)
    hub.main(NEW)
    run = Path(train(tmp_path, verb, "--resume")["run"])
    told = yaml.safe_load((run / "recipe.yaml").read_text())
    assert {part: told[part]["part"] for part in IDS} == {
        part: f"{name}@{OLD}" for part, name in IDS.items()
    }
    parts = json.loads((run / "parts.json").read_text())
    assert {parts[part]["revision"] for part in IDS} == {OLD}
    straight = load_file(tmp_path / "runs" / "straight" / "adapter" / "adapter_model.safetensors")
    resumed = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    report = verb("merge", run)
    assert abs(report["merged"]["delta_loss"]) < 1e-5
    about = artifacts.read_manifest(Path(report["model"]), kind="model folder")
    assert about["made_from"] == list(IDS.values())
    assert {about["parts"][part]["revision"] for part in IDS} == {OLD}
    asked = (
        "--data",
        tmp_path / "rows.json",
        "--images",
        tmp_path / "images",
        "--condition",
        "real",
        "--out",
        tmp_path / "report",
    )
    scores = verb("evaluate", run, *asked)
    assert scores["real"]["loss"] > 0


def test_another_revision_is_refused(hub: Hub, tmp_path: Path, verb: Any) -> None:
    """Named by hand, in the recipe or at the merge; one whose files are the same is no other part.
    A commit that is gone is a sentence.
    """
    verb("features", tmp_path / "tiny.yaml")
    with pytest.raises(TerminatedError):
        train(tmp_path, verb, until=22)
    for part, name in IDS.items():
        with pytest.raises(
            PartError,
            match=(
                rf"was trained with another {part} part; got \w+ of revision {NEW[:12]}; wanted \w+"
                rf" of revision {OLD[:12]}"
            ),
        ):
            train(tmp_path, verb, "--resume", "--set", f"{part}.part={name}@{NEW}")
    run = train(tmp_path, verb, "--resume")["run"]
    name = IDS["language"]
    with pytest.raises(PartError, match="was trained with another language part; got "):
        verb("merge", run, "--set", f"language.part={name}@{NEW}")
    shutil.copytree(hub.snapshot(name, OLD), hub.snapshot(name, "d" * 40))
    verb("merge", run, "--set", f"language.part={name}@{'d' * 40}")
    shutil.rmtree(hub.snapshot(name, OLD))
    hub.main(NEW)
    for again in (
        lambda: verb("merge", run, "--out", tmp_path / "other"),
        lambda: train(tmp_path, verb, "--resume"),
    ):
        with pytest.raises(
            PartError,
            match=f"the part {name}@{OLD} was not found; .*hf download {name} --revision {OLD}",
        ):
            again()


def test_an_adapter_of_others_is_put_on_the_revision_it_names(hub: Hub, tmp_path: Path) -> None:
    from phisense.importing.source import _read_base

    config = tmp_path / "adapter_config.json"
    for told, wanted in (
        ({"base_model_name_or_path": "some/language", "revision": OLD}, f"some/language@{OLD}"),
        ({"base_model_name_or_path": "some/language", "revision": None}, "some/language"),
        ({"base_model_name_or_path": str(tmp_path), "revision": "main"}, str(tmp_path)),
        ({"base_model_name_or_path": "", "revision": "main"}, None),
        ({}, None),
    ):
        config.write_text(json.dumps(told))
        assert _read_base(tmp_path) == wanted
