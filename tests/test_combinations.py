"""Every encoder with every projector, from pictures to a merged folder that plain transformers
opens: random weights, real classes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from phisense.conversations import IMAGE, Message
from phisense.errors import PartError, RecipeError, UsageError
from phisense.model import load_model
from phisense.model.projectors.image_tokens import average_patches
from phisense.recipe import load_recipe

from .conftest import LONG
from .tiny import make_root

pytestmark = pytest.mark.slow

SIDE = 6  # patches
ENCODERS = ("clip", "siglip", "dinov2")
#: Recipe section, slots of a picture, native class.
PROJECTORS: dict[str, tuple[dict[str, Any], int, str]] = {
    "linear": ({"kind": "linear"}, 36, "LlavaForConditionalGeneration"),
    "mlp": ({"kind": "mlp"}, 36, "LlavaForConditionalGeneration"),
    "pooled 2x2": ({"kind": "mlp", "pool": 2}, 9, "AyaVisionForConditionalGeneration"),
    "pooled 3x3": ({"kind": "mlp", "pool": 3}, 4, "AyaVisionForConditionalGeneration"),
    "pixel shuffle 2x2": (
        {"kind": "pixel_shuffle", "pool": 2},
        9,
        "AyaVisionForConditionalGeneration",
    ),
    "pixel shuffle 3x3": (
        {"kind": "pixel_shuffle", "pool": 3},
        4,
        "AyaVisionForConditionalGeneration",
    ),
    "nested": ({"kind": "mlp", "nested": [1, 2, 3]}, 36, "LlavaForConditionalGeneration"),
}


@pytest.fixture(scope="module")
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, verb: Any
) -> tuple[Path, dict[str, Any]]:
    """A tiny root, with the features of one encoder."""
    root = tmp_path_factory.mktemp(request.param)
    recipe = make_root(root, encoder=request.param, side=8 * SIDE)
    assert verb("features", root / "tiny.yaml")["tokens"] == SIDE * SIDE
    return root, recipe


#: What an encoder changes is met by one projector of each native class; what a projector does, by
#: one encoder.
CASES = [
    (encoder, projector)
    for encoder in ENCODERS
    for projector in PROJECTORS
    if LONG or encoder == "clip" or projector in ("mlp", "pooled 2x2")
]


@pytest.mark.parametrize(("seen", "projector"), CASES, indirect=["seen"])
def test_from_features_to_a_native_folder(
    seen: tuple[Path, dict[str, Any]], projector: str, verb: Any
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    root, recipe = seen
    section, slots, native_class = PROJECTORS[projector]
    file = root / f"{projector}.yaml"
    name = projector.replace(" ", "-")
    file.write_text(
        yaml.safe_dump(
            {**recipe, "name": name, "features": {"folder": "features/tiny"}, "projector": section}
        )
    )
    facts = verb("train", file)
    assert facts["projector_change"] > 0
    assert facts["stages"]["align"]["projector_change"] > 0
    report = verb("merge", facts["run"])
    assert abs(report["merged"]["delta_loss"]) <= 0.002

    ours = load_model(Path(report["model"]), "cpu", torch.float32)
    assert ours.image_tokens == slots
    picture = Image.open(root / "images" / "red.png").convert("RGB")
    native: Any = AutoModelForImageTextToText.from_pretrained(report["model"], dtype=torch.float32)
    assert type(native).__name__ == native_class
    processor: Any = AutoProcessor.from_pretrained(report["model"])
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}],
            }
        ],
        add_generation_prompt=True,
    )
    batch = processor(images=[picture], text=text, return_tensors="pt")
    mine = ours.inputs(
        [[Message("user", f"{IMAGE}\nWhat colour is it?")]], [[picture]], supervised=False
    )
    assert batch["input_ids"].tolist() == mine.input_ids.tolist()
    with torch.inference_mode():
        torch.testing.assert_close(
            ours.model(**mine.to_kwargs()).logits, native(**batch).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("seen", ENCODERS if LONG else ["clip"], indirect=True)
def test_a_nested_model_serves_every_side(seen: tuple[Path, dict[str, Any]], verb: Any) -> None:
    root, recipe = seen
    file = root / "served.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                **recipe,
                "name": "served",
                "features": {"folder": "features/tiny"},
                "projector": {"nested": [1, 2, 3]},
            }
        )
    )
    model = Path(verb("merge", verb("train", file)["run"])["model"])
    picture = Image.open(root / "images" / "blue.png").convert("RGB")
    whole = load_model(model, "cpu").project([picture])[0]
    for tokens, pool in ((36, 1), (9, 2), (4, 3)):
        built = load_model(model, "cpu", image_tokens=tokens)
        slots = built.project([picture])[0]
        assert (len(slots), built.image_tokens, built.pool) == (tokens, tokens, pool)
        answer = verb(
            "ask",
            model,
            "--image",
            root / "images" / "blue.png",
            "-q",
            "What colour?",
            "--picture-tokens",
            tokens,
        )
        assert isinstance(answer["answer"], str)
        assert tokens == 36 or not torch.allclose(slots[0], whole[0])
    with pytest.raises(UsageError, match="got 10; wanted 36 or 9 or 4"):
        load_model(model, "cpu", image_tokens=10)


def test_averaging_is_of_squares() -> None:
    rows = torch.arange(36.0).view(1, 36, 1)
    by_hand = [[(12 * i + 2 * j) + (0 + 1 + 6 + 7) / 4 for j in range(3)] for i in range(3)]
    assert average_patches(rows, 2).flatten().tolist() == list(itertools.chain(*by_hand))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("projector.kind=linear", "projector.pool=2"), "a linear projector cannot pool"),
        (("projector.kind=pixel_shuffle",), "pixel_shuffle needs pool 2 or 3"),
        (("projector.nested=[2, 4]",), "must hold 1"),
        (("projector.nested=[1, 2]", "projector.pool=2"), "nested goes with pool 1"),
    ],
)
def test_projectors_that_cannot_be_are_refused(changes: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("practice", changes)


def test_patches_that_do_not_divide_are_refused(parts: tuple[str, str]) -> None:
    from phisense import Phi3WithProjector
    from phisense.recipe import Projector

    with pytest.raises(
        PartError, match="3x3 pooling needs a number of patches a side that 3 divides; got 4"
    ):
        Phi3WithProjector.assemble(*parts, Projector(pool=3))
