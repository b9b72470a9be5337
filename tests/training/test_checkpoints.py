"""How often a checkpoint is written and how many are kept are keys of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import phisense
from phisense.model import trainable
from phisense.pipeline.reuse import is_same_recipe
from phisense.recipe import CHECKPOINT_KEYS, Recipe, Train, load_recipe
from phisense.training import checkpoints
from phisense.training.stage_plan import _NOT_COMPARED
from phisense.training.trainer import StageTrainer

from ..tiny import make_root


def train(**keys: Any) -> Train:
    return Train(instruct={}, **keys)


@pytest.mark.parametrize(
    ("every", "steps", "interval"),
    [(None, 4, 20), (None, 200, 50), (None, 10_000, 500), (7, 4, 7), (1, 10_000, 1)],
)
def test_the_interval(every: int | None, steps: int, interval: int) -> None:
    assert checkpoints.save_interval(train(checkpoint_every=every), steps) == interval


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 3)
    for step in (2, 4, 6, 8):
        folder = tmp_path / f"checkpoint-{step}"
        trainable.save_trainable(model, folder)
        checkpoints.finish_checkpoint(folder, about={"run": 1}, keep=keep)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"checkpoint-{step}" for step in (2, 4, 6, 8)[-keep:]]
    assert checkpoints.latest_verified(tmp_path, about={"run": 1}) == tmp_path / "checkpoint-8"


def test_a_run_may_be_resumed_with_others() -> None:
    """An earlier version's record, which lacks the keys, counts as the same recipe, too."""
    one = load_recipe("practice")
    other = load_recipe("practice", ("train.checkpoint_every=7", "train.keep_checkpoints=5"))
    assert one != other
    dumps = [each.model_dump(mode="json", exclude=_NOT_COMPARED) for each in (one, other)]
    assert dumps[0] == dumps[1]
    assert not set(CHECKPOINT_KEYS) & set(dumps[0]["train"])
    assert {"log_every", "spike"} <= set(dumps[0]["train"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_root(tmp_path)

    def recipe(*changes: str) -> Recipe:
        return load_recipe(tmp_path / "tiny.yaml", ("train.instruct.max_steps=8", *changes))

    phisense.encode_features(recipe())
    step = StageTrainer.training_step

    def stops(trainer: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if trainer.about["stage"] == "instruct" and trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        phisense.train(recipe("train.checkpoint_every=2", "train.keep_checkpoints=3"))
    stage = tmp_path / "runs" / "tiny" / "stages" / "instruct"
    left = sorted(path.name for path in stage.glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    monkeypatch.setattr(StageTrainer, "training_step", step)
    made = phisense.train(recipe("train.keep_checkpoints=1"), resume=True)
    assert made.stages["instruct"].steps == 8


def test_compare_takes_a_run_that_recorded_fewer_keys_for_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("practice", root=tmp_path)
    recipe.run.mkdir(parents=True)
    recorded = recipe.model_dump(mode="json")
    for key in CHECKPOINT_KEYS:
        del recorded["train"][key]
    (recipe.run / "recipe.yaml").write_text(yaml.safe_dump(recorded))
    assert is_same_recipe(recipe)
    other = load_recipe("practice", ("train.checkpoint_every=7",), root=tmp_path)
    assert is_same_recipe(other)
    assert not is_same_recipe(load_recipe("practice", ("seed=7",), root=tmp_path))
    (recipe.run / "recipe.yaml").write_text("[]")
    assert not is_same_recipe(recipe)
