"""Training, through the command's own function: what moves, what does not, what is refused, and
resuming.
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

from phisense.errors import ArtifactError, RecipeError, TrainingError

from ..tiny import make_root

QUICK = (
    "--set",
    "train.align.max_steps=6",
    "--set",
    "train.instruct.max_steps=4",
    "--set",
    "train.log_every=1",
)


@pytest.fixture
def root(world: Path, trained: dict[str, Any], tmp_path: Path) -> Path:
    """A root of its own that shares data and features with the little world."""
    for name in ("data", "features"):
        (tmp_path / name).symlink_to(world / name)
    return tmp_path


def settings(root: Path, *more: str) -> tuple[str, ...]:
    return (
        "--set",
        f"root={root}",
        *QUICK,
        *(word for change in more for word in ("--set", change)),
    )


def test_a_run_records_what_it_did(trained: dict[str, Any]) -> None:
    run = Path(trained["run"])
    facts = json.loads((run / "train.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"align", "instruct"}
    steps = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "held_out" in line]
    assert len(steps) + len(looks) == len(lines)
    assert all(line["loss"] > 0 and line["tokens_per_second"] > 0 for line in steps)
    assert {line["stage"] for line in looks} == {"align", "instruct"}
    assert looks[-1]["held_out"] > 0.5, "the practice world is learned"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["lora"]["rank"] == 16
    assert facts["projector_change"] > 0
    assert facts["stages"]["align"]["projector_change"] > 0
    # Width 192, MLP 512, 6 layers, rank 16; projector 192 -> 192 -> 192 with biases.
    by_hand = 6 * 16 * ((192 + 576) + (192 + 192) + (192 + 1024) + (512 + 192)) + 2 * (
        192 * 192 + 192
    )
    assert facts["trainable"] == facts["trainable_expected"] == by_hand
    assert len(facts["modules"]) == 6 * 4
    first = steps[0]["loss"]
    last = [line for line in steps if line["stage"] == "instruct"][-1]["loss"]
    assert last < first / 2


def test_only_the_adapter_is_stored_and_lora_moved_everywhere(trained: dict[str, Any]) -> None:
    weights = load_file(Path(trained["run"]) / "adapter" / "adapter_model.safetensors")
    moved = [
        name for name, weight in weights.items() if "lora_B" in name and weight.abs().max() > 0
    ]
    assert len(moved) == 24
    assert not [
        name for name in weights if "lora_" not in name and "multi_modal_projector" not in name
    ]


def test_frozen_weights_do_not_change_by_a_bit(parts: tuple[str, str]) -> None:
    from phisense import Phi3WithProjector
    from phisense.conversations import IMAGE, Message
    from phisense.model.lora import add_lora
    from phisense.recipe import Lora

    built = Phi3WithProjector.assemble(
        *parts, quantize=True, stored_features=True, dtype=torch.float32
    )
    built.model.requires_grad_(False)
    adapted = add_lora(built.model, Lora(rank=4))
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    batch = built.inputs(
        [[Message("user", f"{IMAGE}\nWhat?"), Message("assistant", "Red.")]], [[torch.rand(16, 16)]]
    ).to_kwargs()
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in adapted.named_parameters() if p.requires_grad}


def test_other_pictures_give_another_loss(trained: dict[str, Any], world: Path) -> None:
    """The loss depends on which picture is seen: the control that training looked at all."""
    from phisense.conversations import IMAGE, Message, read_questions
    from phisense.evaluation.asked import (
        pictures_for_condition,  # the same pairing as the evaluation's
    )
    from phisense.model.unmerged import load_with_adapter
    from phisense.recipe import load_recipe
    from phisense.vision.encoders.encode import Encoder
    from phisense.vision.image_io import open_image

    recipe = load_recipe(Path(trained["run"]) / "recipe.yaml")
    built = load_with_adapter(recipe, Path(trained["run"]), "cpu")
    encoder = Encoder(recipe.vision.part)
    questions = read_questions(world / "data" / "heldout.jsonl")[:48]

    def loss(pictures: list[str | None]) -> float:
        features = [
            encoder.encode([open_image(world / "data" / "images" / str(name))])[0]
            for name in pictures
        ]
        talks = [
            [Message("user", f"{IMAGE}\n{q.text}"), Message("assistant", q.answers[0])]
            for q in questions
        ]
        with torch.inference_mode():
            batch = built.inputs(talks, [[f] for f in features]).to_kwargs()
            return float(built.model(**batch).loss)

    own = loss([q.image for q in questions])
    assert loss(pictures_for_condition(questions, "shuffled", 0)) > own * 1.2


@pytest.mark.slow
@pytest.mark.usefixtures("compute")
def test_resuming_ends_where_an_uninterrupted_run_ends(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phisense.training import trainer

    make_root(tmp_path)
    file, run = tmp_path / "tiny.yaml", tmp_path / "runs" / "tiny"
    recipe = settings(tmp_path, "train.lora.dropout=0.1")
    verb("features", file)
    verb("train", file, *recipe)
    straight = load_file(run / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "runs")

    original = trainer.arguments
    monkeypatch.setattr(
        "phisense.training.stage_plan.arguments",
        lambda *a, **k: original(*a, **{**k, "save_every": 2}),
    )
    step = trainer.StageTrainer.training_step
    seen = {"steps": 0}

    def dies(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["steps"] += 1
        if seen["steps"] == 6 + 4:  # in the last step of the second stage
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.StageTrainer, "training_step", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        from phisense.recipe import load_recipe
        from phisense.training import Training

        changes = tuple(word for word in recipe if word != "--set")
        Training(load_recipe(file, changes), lambda row: None)()
    monkeypatch.setattr(trainer.StageTrainer, "training_step", step)
    with pytest.raises(ArtifactError, match="is not a finished run"):
        verb("merge", run)
    verb("train", file, *recipe, "--resume")
    resumed = load_file(run / "adapter" / "adapter_model.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            r"train.lora.target_modules='.*(qkv_proj|o_proj)'",
            TrainingError,
            "the LoRA pattern matches the wrong modules; got 12 matched",
        ),
        (
            "features.folder=features/other",
            ArtifactError,
            "is not a finished feature store; got no such folder",
        ),
        ("vision.layer=-1", ArtifactError, "was made by another encoder"),
        ("data.instruct=[data/none.json]", Exception, "there is no data file"),
        ("train.align.projector_learning_rate=1.0e+30", RecipeError, "a number must lie within"),
    ],
)
def test_what_must_not_start_does_not(
    root: Path, verb: Any, change: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        verb(
            "train",
            "practice",
            *settings(root, "name=never", "features.folder=features/practice", change),
            "--overwrite",
        )
    assert not list((root / "runs" / "never").rglob("adapter"))
    assert not (root / "runs" / "never" / "manifest.json").exists()


def test_resuming_nothing_is_refused(root: Path, verb: Any) -> None:
    with pytest.raises(ArtifactError, match="there is no run .* to resume"):
        verb("train", "practice", *settings(root), "--resume")


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, parts: tuple[str, str]) -> None:
    from phisense.model import trainable
    from phisense.training import checkpoints

    model = torch.nn.Linear(3, 3)
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        trainable.save_trainable(model, folder)
        checkpoints.finish_checkpoint(folder, about={"run": 1}, keep=2)
    assert checkpoints.latest_verified(tmp_path, about={"run": 1}) == tmp_path / "checkpoint-4"
    weights = tmp_path / "checkpoint-4" / trainable.TRAINABLE_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoints.latest_verified(tmp_path, about={"run": 1}) == tmp_path / "checkpoint-2"
    trainable.save_trainable(model, tmp_path / "checkpoint-3")  # a life that went on from there
    checkpoints.finish_checkpoint(tmp_path / "checkpoint-3", about={"run": 1}, keep=2)
    assert checkpoints.latest_verified(tmp_path, about={"run": 1}) == tmp_path / "checkpoint-3"
    assert (tmp_path / "checkpoint-2").is_dir(), "the damaged one after it does not count as kept"
    shutil.rmtree(tmp_path / "checkpoint-3")
    with pytest.raises(
        ArtifactError, match=r"another recipe, other data or other features; got run was 1, is 2\. "
    ):
        checkpoints.latest_verified(tmp_path, about={"run": 2})
    assert checkpoints.latest_verified(tmp_path, about=None) == tmp_path / "checkpoint-2"
