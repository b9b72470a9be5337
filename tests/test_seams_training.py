"""A training objective is one file and one line in `seams.OBJECTIVE_MODULES`: toys train a tiny
world.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import phisense
from phisense import seams
from phisense.errors import ArtifactError, RecipeError
from phisense.recipe import load_recipe
from phisense.training import checkpoints
from phisense.training.stage_plan import _NOT_COMPARED

from .tiny import make_root

LAST_TOKEN = '''
"""Cross-entropy of each conversation's last token alone."""

from phisense.prompt import IGNORE_INDEX, Rendered
from phisense.training.objectives.supervised import Supervised


class LastToken(Supervised):
    def render(self, prompt, conversation, image_tokens, max_length):
        rendered, left_out = super().render(prompt, conversation, image_tokens, max_length)
        last = max(i for i, label in enumerate(rendered.labels) if label != IGNORE_INDEX)
        labels = [IGNORE_INDEX] * len(rendered.ids)
        labels[last] = rendered.labels[last]
        return Rendered(rendered.ids, labels), left_out


OBJECTIVE = LastToken()
'''
TWICE = '''
"""Twice the cross-entropy, by a tensor of the batch that the model must not get."""

import torch

from phisense.training.objectives.supervised import Supervised


class Twice(Supervised):
    targets = ("factors",)

    def collate(self, rows, layout):
        batch = super().collate(rows, layout)
        return {**batch, "factors": torch.full(batch["labels"].shape, 2.0)}

    def loss(self, outputs, batch, num_items):
        return super().loss(outputs, batch, num_items) * batch["factors"].mean()


OBJECTIVE = Twice()
'''
STEPS = (
    "train.align=null",
    "train.log_every=1",
    "train.eval.questions=0",
    "features.folder=features/tiny",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    make_root(folder)
    phisense.encode_features(load_recipe(folder / "tiny.yaml"))
    (folder / "last_token.py").write_text(LAST_TOKEN)
    (folder / "twice.py").write_text(TWICE)
    return folder


@pytest.fixture
def toys(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setitem(seams.OBJECTIVE_MODULES, "last", "last_token")
    monkeypatch.setitem(seams.OBJECTIVE_MODULES, "twice", "twice")


def losses(root: Path, name: str, *changes: str) -> list[float]:
    """The losses of a stage of two steps."""
    recipe = load_recipe(root / "tiny.yaml", (f"name={name}", *STEPS, *changes))
    phisense.train(recipe, overwrite=True, device="cpu")
    log = (recipe.run / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, log) if "loss" in row]


@pytest.mark.slow
def test_a_toy_objective_trains(root: Path, request: pytest.FixtureRequest) -> None:
    usual = losses(root, "usual")
    assert len(usual) == 2
    request.getfixturevalue("toys")
    last = losses(root, "last", "train.instruct.objective=last")
    assert len(last) == 2
    assert last[0] != usual[0]
    twice = losses(root, "twice", "train.instruct.objective=twice")
    assert twice[0] == pytest.approx(2 * usual[0], rel=1e-6)
    assert losses(root, "control", "train.instruct.objective=supervised") == usual


@pytest.mark.slow
def test_a_step_has_the_same_loss_however_it_is_split(root: Path, toys: None) -> None:
    changes = ("train.instruct.objective=last", "compute_dtype=float32")
    whole, cut = (
        losses(root, f"of-{size}", *changes, f"train.instruct.micro_batch_size={size}")
        for size in (6, 1)
    )
    assert whole == pytest.approx(cut, abs=1e-5)


def test_control_an_unknown_objective_is_refused(root: Path) -> None:
    with pytest.raises(
        RecipeError, match="instruct.objective is wrong: input should be 'supervised'"
    ):
        load_recipe(root / "tiny.yaml", ("train.instruct.objective=last",))


def test_a_run_of_an_earlier_version_was_supervised(root: Path, toys: None) -> None:
    def about(*changes: str) -> dict[str, Any]:
        recipe = load_recipe(root / "tiny.yaml", changes)
        return {"recipe": recipe.model_dump(mode="json", exclude=_NOT_COMPARED)}

    earlier = about()
    for stage in ("align", "instruct"):
        del earlier["recipe"]["train"][stage]["objective"]
    checkpoints.check_unchanged(root, earlier, about())
    with pytest.raises(ArtifactError, match=r"instruct\.objective was None, is last"):
        checkpoints.check_unchanged(root, earlier, about("train.instruct.objective=last"))
