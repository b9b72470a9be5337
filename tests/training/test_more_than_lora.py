"""Full fine-tuning, and LoRA in the vision tower: what moves, what does not, what is merged and
what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from phisense.conversations import IMAGE, Message
from phisense.errors import MergeError, RecipeError, TerminatedError
from phisense.merging import steps
from phisense.model import load_model
from phisense.model.trainable import TRAINABLE_FILE
from phisense.pipeline.progress import Event, TrainingStep
from phisense.recipe import load_recipe
from phisense.training import Training

from ..tiny import make_root

pytestmark = pytest.mark.slow

FULL = ("--set", "train.lora=null", "--set", "train.quantize=false")
TOWER = ("--set", "train.lora.vision=true", "--set", "features.dtype=pixels")


def part(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / "parts" / name / "model.safetensors")


def opens_natively(root: Path, model: Path) -> None:
    """In plain transformers, with the logits that phisense's own loader gives."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    ours = load_model(model, "cpu", torch.float32)
    picture = Image.open(root / "images" / "red.png").convert("RGB")
    native: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(model)
    asked = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}],
        }
    ]
    batch = processor(
        images=[picture],
        text=processor.apply_chat_template(asked, add_generation_prompt=True),
        return_tensors="pt",
    )
    mine = ours.inputs(
        [[Message("user", f"{IMAGE}\nWhat colour is it?")]], [[picture]], supervised=False
    )
    with torch.inference_mode():
        torch.testing.assert_close(
            ours.model(**mine.to_kwargs()).logits, native(**batch).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.usefixtures("compute")
def test_full_fine_tuning(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    file = tmp_path / "tiny.yaml"
    verb("features", file)
    facts = verb("train", file, *FULL)
    base = part(tmp_path, "language")
    projector = 16 * 32 + 32 + 32 * 32 + 32
    assert (
        facts["trainable"]
        == facts["trainable_expected"]
        == sum(w.numel() for w in base.values()) + projector
    )
    run = Path(facts["run"])
    assert not (run / "adapter").exists()
    weights = load_file(run / "weights" / TRAINABLE_FILE)
    renamed = {
        name.replace("model.language_model.", "model."): w
        for name, w in weights.items()
        if "projector" not in name
    }
    assert renamed.keys() == base.keys()
    still = [name for name, w in renamed.items() if torch.equal(w, base[name])]
    assert not still, "every matrix, norm and embedding moved"
    aligned = load_file(run / "stages" / "align" / TRAINABLE_FILE)
    assert sum(w.numel() for w in aligned.values()) == projector

    report = verb("merge", run)
    assert abs(report["merged"]["delta_loss"]) < 1e-6
    assert report["merged"]["same_answers"] == 1.0
    assert report["projector_change"] == 0.0
    assert "on_original" not in report
    model = Path(report["model"])
    merged = load_file(model / "model.safetensors")
    tower = {name: w for name, w in merged.items() if "vision_tower" in name}
    assert sorted(tuple(w.shape) for w in tower.values()) == sorted(
        tuple(w.shape) for w in part(tmp_path, "vision").values()
    )
    opens_natively(tmp_path, model)


@pytest.mark.usefixtures("compute")
def test_full_fine_tuning_goes_on_where_it_was(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its 20 steps' checkpoint and resumed, it ends with the same weights."""
    make_root(tmp_path)
    file = tmp_path / "tiny.yaml"
    verb("features", file)
    more = (*FULL, "--set", "train.instruct.max_steps=24", "--set", "train.log_every=1")
    verb("train", file, *more)
    straight = load_file(tmp_path / "runs" / "tiny" / "weights" / TRAINABLE_FILE)
    call = Training.__call__
    other = ("--set", "name=stopped", "--set", "features.folder=features/tiny")

    def stopping(self: Training) -> dict[str, Any]:
        on_event = self.on_event

        def until(event: Event) -> None:
            on_event(event)
            if isinstance(event, TrainingStep) and (event.stage, event.step) == ("instruct", 22):
                raise TerminatedError("the test stops it")

        self.on_event = until
        return call(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "__call__", stopping)
        with pytest.raises(TerminatedError):
            verb("train", file, *more, *other)
    verb("train", file, *more, *other, "--resume")
    resumed = load_file(tmp_path / "runs" / "stopped" / "weights" / TRAINABLE_FILE)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "runs" / "stopped" / "metrics.jsonl").read_text().splitlines()
    ]
    assert 21 in steps


def test_a_wrong_merge_of_full_weights_is_refused(
    tmp_path: Path, verb: Any, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the gate: what is written is not what was trained, but noise in its head."""
    make_root(tmp_path)
    file = tmp_path / "tiny.yaml"
    verb("features", file)
    run = verb("train", file, *FULL, "--set", "merge.samples=12")["run"]
    cast = steps._cast

    def spoilt(*args: Any) -> Any:
        made = cast(*args)
        torch.manual_seed(0)
        weight = made.model.lm_head.weight
        weight.data += 0.1 * torch.randn_like(weight)
        return made

    monkeypatch.setattr(steps, "_cast", spoilt)
    with pytest.raises(MergeError, match="the merged model is not what was trained"):
        verb("merge", run)
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2"])
def test_lora_in_the_vision_tower(tmp_path: Path, verb: Any, encoder: str, compute: str) -> None:
    make_root(tmp_path, encoder=encoder)
    file = tmp_path / "tiny.yaml"
    verb("features", file, *TOWER)
    facts = verb("train", file, *TOWER, "--set", "train.eval.questions=3")
    language = 2 * 4 * ((32 + 96) + (32 + 32) + (32 + 128) + (64 + 32))
    # two of three layers: the projector reads the last but one
    tower = 2 * 4 * (4 * (16 + 16) + 2 * (16 + 32))
    assert (
        facts["trainable"]
        == facts["trainable_expected"]
        == language + tower + 16 * 32 + 32 + 32 * 32 + 32
    )
    run = Path(facts["run"])
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    moved = [name for name, w in weights.items() if "lora_B" in name and w.abs().max() > 0]
    assert len([name for name in moved if "vision_tower" in name]) == 2 * 6
    assert len([name for name in moved if "language_model" in name]) == 2 * 4
    assert not [
        name
        for name in load_file(run / "stages" / "align" / TRAINABLE_FILE)
        if "projector" not in name
    ]

    report = verb("merge", run)
    assert abs(report["merged"]["delta_loss"]) < 1e-5
    assert report["merged"]["same_answers"] == 1.0
    merged = load_file(Path(report["model"]) / "model.safetensors")
    held = getattr(torch, compute)  # what was not trained is as training held it
    base = {
        name.removeprefix("vision_model."): w.to(held).to(w.dtype)
        for name, w in part(tmp_path, "vision").items()
    }
    changed = set()
    for name, w in merged.items():
        if "vision_tower" in name:
            short = name.partition("vision_tower.")[2].removeprefix("vision_model.")
            if not torch.equal(w, base[short]):
                changed.add(short)
    assert len(changed) == 2 * 6
    assert not [name for name in changed if ".2." in name or not name.endswith("weight")], (
        "neither the last layer nor a bias"
    )
    opens_natively(tmp_path, Path(report["model"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("train.lora=null",), r"full fine-tuning \(lora: null\) needs quantize: false"),
        (("train.lora.vision=true",), r"train.lora.vision needs features.dtype: pixels"),
        (
            ("train.lora.vision=true", "features.dtype=pixels", "projector.nested=[1, 2]"),
            "and no projector.nested",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("phi3.5-clip-l336", changes)
