"""A part whose stored positions are for 37 patches a side and whose preprocessor says 8: the whole
road at 8 a side, to a folder that plain transformers opens.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from phisense.conversations import IMAGE, Message
from phisense.doctor.shapes import read_shapes
from phisense.errors import ArtifactError, PartError
from phisense.model import load_model
from phisense.model.provenance import check_parts_unchanged, digest_parts, write_digests
from phisense.recipe import Recipe, load_recipe
from phisense.showing import render_rows
from phisense.vision.encoders.encode import Encoder

from ..tiny import make_root, make_vision
from .test_image_size import KINDS, PATCH, STORED, bit, prepared, run_time

pytestmark = pytest.mark.slow

SIDE = 16  # pixels, of 2 a patch


@pytest.fixture(scope="module", params=KINDS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with such a part, pooled 2x2, as 37 patches a side cannot be."""
    made = tmp_path_factory.mktemp("road")
    recipe = make_root(made, encoder=request.param)
    part = made / "parts" / "vision"
    make_vision(part, encoder=request.param, side=STORED, patch=PATCH)
    prepared(part, **bit(SIDE, 20))
    recipe |= {"projector": {"pool": 2}, "vision": {**recipe["vision"], "part": str(part)}}
    recipe["train"] |= {"eval": {"questions": 2, "times": 1}}
    (made / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return made


@pytest.fixture(scope="module")
def merged(root: Path, verb: Any) -> Path:
    assert verb("features", root / "tiny.yaml")["tokens"] == 64
    run = Path(verb("train", root / "tiny.yaml")["run"])
    assert json.loads((run / "parts.json").read_text())["vision"]["image_size"] == SIDE
    return Path(verb("merge", run)["model"])


def recipe_of(root: Path, *changes: str) -> Recipe:
    return load_recipe(root / "tiny.yaml", changes)


def opened(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def logits(folder: Path, picture: Image.Image) -> torch.Tensor:
    """Of plain transformers, by the folder's own processor."""
    model, processor = opened(folder)
    content = [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    batch = processor(images=[picture], text=text, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
    with torch.inference_mode():
        found: torch.Tensor = model(**batch).logits
    return found


def test_every_count_of_patches_is_that_of_the_effective_size(root: Path, merged: Path) -> None:
    recipe = recipe_of(root)
    shapes = read_shapes(recipe)
    assert (shapes.patches, shapes.image_tokens) == (64, 16)
    (row,) = render_rows(root / "rows.json", recipe, 1)
    assert "<image>x16" in row.tokens
    config = json.loads((merged / "config.json").read_text())
    assert config["vision_config"]["image_size"] == SIDE
    about = json.loads((merged / "manifest.json").read_text())["about"]
    assert about["parts"]["vision"]["image_size"] == SIDE
    assert load_model(merged, "cpu", torch.float32).image_tokens == 16


def test_plain_transformers_computes_the_same(root: Path, merged: Path, tmp_path: Path) -> None:
    """What training saw as stored features, the folder computes from the image; and with the table
    resized otherwise it does not.
    """
    recipe = recipe_of(root)
    vision = recipe.vision
    picture = Image.open(root / "images" / "red.png").convert("RGB")
    model, processor = opened(merged)
    pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    wanted = run_time(vision.encoder, Path(vision.part), pixels)
    with torch.inference_mode():
        found = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[-2], wanted[-2], rtol=1e-5, atol=1e-5)
    stored = Encoder(vision.part, vision.encoder).encode([picture])
    torch.testing.assert_close(stored, found[-2][:, -64:], rtol=1e-5, atol=1e-5)

    ours = load_model(merged, "cpu", torch.float32)
    question = [[Message("user", f"{IMAGE}\nWhat colour is it?")]]
    mine = ours.inputs(question, [[picture]], supervised=False)
    with torch.inference_mode():
        answer = ours.model(**mine.to_kwargs()).logits
    torch.testing.assert_close(answer, logits(merged, picture), rtol=1e-4, atol=1e-4)

    other = tmp_path / "other"
    other.mkdir()
    for path in merged.iterdir():
        if path.is_file() and path.name != "manifest.json":
            (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    (name,) = [one for one in weights if "position_embedding" in one]
    table = weights[name]
    rows = 64 + (table.shape[-2] - 64)
    part = load_file(Path(vision.part) / "model.safetensors")
    (whole,) = [one for one in part.values() if one.shape[-2:-1] in ((1369,), (1370,))]
    grid = whole.reshape(-1, 16)[-1369:].T.reshape(1, 16, 37, 37)
    squares = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bilinear")
    first = whole.reshape(-1, 16)[: rows - 64]
    linear = torch.cat([first, squares.reshape(16, 64).T]).reshape(table.shape)
    save_file({**weights, name: linear.contiguous()}, other / "model.safetensors", {"format": "pt"})
    assert not torch.allclose(logits(other, picture), answer, rtol=1e-4, atol=1e-4)


def test_it_answers_questions(root: Path, merged: Path, verb: Any) -> None:
    asks = ("--data", root / "rows.json", "--images", root / "images")
    report = verb("evaluate", merged, *asks, "--out", root / "report")
    assert report["real"]["loss"] > 0


def test_a_model_folder_keeps_its_size(root: Path, merged: Path) -> None:
    """`start`: tower, projector and processor are the folder's own."""
    encoder = recipe_of(root).vision.encoder
    raw = {
        **yaml.safe_load((root / "tiny.yaml").read_text()),
        "name": "again",
        "start": str(merged),
        "language": {},
        "vision": {"encoder": encoder},
    }
    (root / "again.yaml").write_text(yaml.safe_dump(raw))
    for changes in ((), (f"vision.size={SIDE}",)):
        recipe = load_recipe(root / "again.yaml", changes)
        assert read_shapes(recipe).patches == 64
        assert Encoder(recipe.vision.part, encoder, size=recipe.vision.size).patches == 64
    with pytest.raises(
        PartError,
        match=rf"keeps the image size that .*; got vision\.size 32; wanted {SIDE}\. Leave vision",
    ):
        read_shapes(load_recipe(root / "again.yaml", ("vision.size=32",)))


@pytest.mark.parametrize("root", ["dinov2"], indirect=True)
def test_a_store_made_at_another_size_is_refused(root: Path, merged: Path, verb: Any) -> None:
    sizes = rf"images of {SIDE} pixels\); wanted .* images of 32 pixels\)"
    for what in ("features", "train"):
        changes = ("--set", "vision.size=32", "--set", "name=other")
        folder = (
            "--set",
            "features.folder=features/tiny",
            "--set",
            "train.instruct.max_length=512",
        )
        with pytest.raises(ArtifactError, match=rf"{sizes}.* Or set vision\.size to {SIDE}"):
            verb(what, root / "tiny.yaml", *changes, *folder)


@pytest.mark.parametrize("root", ["dinov2"], indirect=True)
def test_a_run_stays_at_its_size(root: Path, merged: Path, tmp_path: Path, verb: Any) -> None:
    """Also one that recorded none: it was trained at what config.json says."""
    run = root / "runs" / "tiny"
    with pytest.raises(
        PartError, match=rf"images of another size; got 32 .*; wanted {SIDE}\. Set vision\.size to"
    ):
        verb("merge", run, "--out", tmp_path / "out", "--set", "vision.size=32")
    recipe = recipe_of(root)
    now = digest_parts(recipe)
    assert now["vision"].image_size == SIDE
    write_digests(tmp_path, {**now, "vision": replace(now["vision"], image_size=None)})
    with pytest.raises(PartError, match=rf"got {SIDE} .*; wanted {STORED}\. Set vision\.size to"):
        check_parts_unchanged(tmp_path, recipe)
    assert check_parts_unchanged(tmp_path, recipe_of(root, f"vision.size={STORED}"))
