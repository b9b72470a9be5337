"""What `merge` reports beside what training's own model loses, found without any of merging.py: the
base is loaded as for training, in its format, the last stage's weights are put on it by name, and
only then is it computed in float32, with a loop of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch import nn

from phisense.conversations import IMAGE, Message, Question, read_questions
from phisense.model import Phi3WithProjector, load_model, trainable
from phisense.model.device import DTYPES
from phisense.recipe import Recipe, load_recipe
from phisense.vision.encoders.encode import Encoder
from phisense.vision.image_io import open_image

from ..conftest import LONG
from ..tiny import make_root

pytestmark = pytest.mark.slow

KINDS = {
    "nf4": (),
    "nf4, pooled": ("train.lora.rank=8", "projector.pool=2", "evaluate.batch_size=5"),
    "plain": ("train.quantize=false",),
    "tower": ("train.lora.vision=true", "features.dtype=pixels"),
    "tower, plain": ("train.lora.vision=true", "features.dtype=pixels", "train.quantize=false"),
    "full": ("train.lora=null", "train.quantize=false"),
}
STEEP = (
    "train.align.max_steps=6",
    "train.instruct.max_steps=12",
    "train.instruct.learning_rate=0.01",
    "train.eval.questions=0",
)


#: In float32 nothing is rounded to a format but the codes of 4 bits: one with them, one without.
CASES = [
    (kind, compute)
    for kind in KINDS
    for compute in ("float32", "bfloat16")
    if LONG or compute == "bfloat16" or kind in ("nf4", "full")
]


@pytest.mark.parametrize(("kind", "compute"), CASES)
def test_the_reported_loss_is_that_of_trainings_own_model(
    tmp_path: Path, verb: Any, kind: str, compute: str
) -> None:
    make_root(tmp_path)
    file = tmp_path / "tiny.yaml"
    changes = (*KINDS[kind], *STEEP, f"compute_dtype={compute}", "merge.samples=12")
    words = [word for change in changes for word in ("--set", change)]
    verb("features", file, *words)
    run = Path(verb("train", file, *words)["run"])
    report = verb("merge", run)
    recipe = load_recipe(file, changes)
    wanted = loss(trainings_own(recipe, run), recipe)
    found = loss(load_model(Path(report["model"]), "cpu", torch.float32), recipe)
    off = {
        "reference": report["reference_loss"] - wanted,
        "merged": report["merged"]["loss"] - wanted,
        "written": found - wanted,
    }
    print(kind, compute, f"{wanted:.6f}", {name: f"{value:+.2e}" for name, value in off.items()})
    assert all(abs(value) <= 1e-5 for value in off.values()), off


def trainings_own(recipe: Recipe, run: Path) -> Phi3WithProjector:
    """The model as its run held it after the last step, every number as it was multiplied by, in
    float32 from here on.
    """
    told = orjson.loads((run / "train.json").read_bytes())["arithmetic"]["format"]
    dtype = torch.float32 if recipe.train.lora is None else DTYPES[told]
    built = Phi3WithProjector.from_recipe(
        recipe, quantize=recipe.train.quantize, stored_features=True, device="cpu", dtype=dtype
    )
    if recipe.tunes_vision:
        built.model.model.vision_tower = Encoder(
            recipe.vision.part, recipe.vision.encoder, recipe.vision.layer, dtype=dtype
        ).model
    trainable.freeze_all_but_projector(built)
    model = trainable.unfreeze_language(built, recipe)
    trainable.load_trainable(model, run / "stages" / "instruct")
    unpacked(built.model)
    built.model.float().eval()
    if not recipe.tunes_vision:
        built.model.model.vision_tower = Encoder(
            recipe.vision.part, recipe.vision.encoder, recipe.vision.layer
        ).model
    return built


def unpacked(model: nn.Module) -> None:
    """Each 4-bit matrix, within its adapter, as bitsandbytes itself gives it back in the format
    that training computed in.
    """
    from bitsandbytes.functional import dequantize_4bit

    for name, module in list(model.named_modules()):
        state = getattr(module._parameters.get("weight"), "quant_state", None)
        if state is not None:
            plain = nn.Linear(state.shape[1], state.shape[0], bias=False)
            plain.weight = nn.Parameter(dequantize_4bit(module.weight.data, state).float())
            model.set_submodule(name, plain)


@torch.inference_mode()
def loss(built: Phi3WithProjector, recipe: Recipe) -> float:
    """Per supervised token over every held-out question, one at a time, without a cache."""
    total, tokens = 0.0, 0
    for question in read_questions(recipe.path(recipe.data.held_out[0])):
        logits, labels = said(built, recipe, question)
        at = labels != -100
        total += float(
            nn.functional.cross_entropy(logits[at].double(), labels[at], reduction="sum")
        )
        tokens += int(at.sum())
    return total / tokens


def said(
    built: Phi3WithProjector, recipe: Recipe, question: Question
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits `(T, V)` and the labels `(T,)` that they are held to."""
    assert question.image is not None
    picture = open_image(recipe.image_folders[0] / question.image, name=question.image)
    pixels = built.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    row = built.prompt.render_conversation(
        [Message("user", f"{IMAGE}\n{question.text}"), Message("assistant", question.answers[0])],
        [built.image_tokens],
    )
    ids = torch.tensor([row.ids])
    made = built.model(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels.float()
    )
    return made.logits[0, :-1], torch.tensor(row.labels[1:])
