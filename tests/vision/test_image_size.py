"""`vision.size`: which side the images have, and positions resized to it as the encoder itself
resizes them at run time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import LlavaImageProcessorPil

from phisense.doctor.shapes import read_shapes
from phisense.errors import ArtifactError, PartError, RecipeError
from phisense.parts import fingerprint
from phisense.recipe import load_recipe
from phisense.vision.encoders.base import ENCODERS
from phisense.vision.encoders.encode import Encoder, check_same_encoder, encoder_facts
from phisense.vision.encoders.image_size import MAX_PATCHES_A_SIDE, nearest_sizes
from phisense.vision.encoders.loading import (
    build_image_processor,
    load_vision_tower,
    num_patches,
    stored_vision_config,
    vision_config,
)
from phisense.vision.encoders.positions import resize_positions

from ..tiny import PRACTICE, make_root, make_vision

KINDS = ("clip", "siglip", "dinov2")
PRIME, PATCH = 37, 2  # patches a side of the stored table, pixels of one
STORED = PRIME * PATCH


def prepared(part: Path, **said: Any) -> Path:
    """`part`, with a preprocessor_config.json of these keys."""
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}
    (part / "preprocessor_config.json").write_text(json.dumps({**statistics, **said}))
    return part


def bit(crop: int, shortest: int) -> dict[str, Any]:
    """As published DINOv2 folders say it."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shortest},
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A part of each kind with a table for 37 patches a side; the preprocessor says 32 pixels."""
    folder = tmp_path_factory.mktemp("stored")
    return {
        kind: prepared(
            make_vision(folder / kind, encoder=kind, side=STORED, patch=PATCH),
            **bit(32, 36),
        )
        for kind in KINDS
    }


#: (encoder, image_size, patch_size) of published configurations.
CLIP_B32, CLIP_L336 = ("clip", 224, 32), ("clip", 336, 14)
SIGLIP_384, SIGLIP2_256, DINOV2 = ("siglip", 384, 14), ("siglip", 256, 16), ("dinov2", 518, 14)
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None, "do_resize": True}

#: What is published, and the side that it means: (configuration, preprocessor_config.json, side).
DECISIONS: dict[str, tuple[tuple[str, int, int], dict[str, Any], int]] = {
    "dinov2": (DINOV2, bit(224, 256), 224),
    "dinov2, prepared for 518": (DINOV2, bit(518, 518), 518),
    "clip of 2021: numbers": (
        CLIP_B32,
        {"feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 224}
        | {"do_center_crop": True, "crop_size": 224},
        224,
    ),
    "clip 336: numbers": (
        CLIP_L336,
        {"feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 336}
        | {"do_center_crop": True, "crop_size": 336},
        336,
    ),
    "clip: both keys as mappings": (
        CLIP_B32,
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}
        | {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
        224,
    ),
    "a crop that is not said to be off": (DINOV2, {"size": 256, "crop_size": 224}, 224),
    "siglip": (SIGLIP_384, {**SIGLIP, "size": {"height": 384, "width": 384}}, 384),
    "siglip 2 of fixed resolution": (
        SIGLIP2_256,
        {**SIGLIP, "size": {"height": 256, "width": 256}},
        256,
    ),
    "as newer versions save it: keys that are null": (
        SIGLIP2_256,
        {**SIGLIP, "crop_size": None, "do_center_crop": None, "do_pad": None}
        | {"size": {"height": 256, "width": 256, "shortest_edge": None, "longest_edge": None}},
        256,
    ),
    "the crop is off": (
        DINOV2,
        {"do_center_crop": False, "crop_size": {"height": 224, "width": 224}}
        | {"size": {"height": 280, "width": 280}},
        280,
    ),
    "the crop is off, and the shorter side is said": (
        DINOV2,
        {"do_center_crop": False, "size": {"shortest_edge": 280}},
        280,
    ),
    "it says nothing": (DINOV2, {}, 518),
    "it crops, but does not say to what": (
        DINOV2,
        {"do_center_crop": True, "size": {"shortest_edge": 256}},
        518,
    ),
    "it does not resize": (DINOV2, {"do_resize": False, "size": {"shortest_edge": 256}}, 518),
    "it does not resize, but crops": (DINOV2, {"do_resize": False, "crop_size": 224}, 224),
    "only a longest edge": (DINOV2, {"size": {"longest_edge": 700}}, 518),
    "an incomplete patch": (("siglip", 224, 14), {"size": {"height": 384, "width": 384}}, 384),
}


def bare(folder: Path, published: tuple[str, int, int], said: dict[str, Any]) -> Path:
    """A part that is a configuration and a preprocessor alone."""
    kind, side, patch = published
    config = (
        ENCODERS[kind]
        .model_class()
        .config_class(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
        )
    )
    config.save_pretrained(folder)
    return prepared(folder, **said)


@pytest.mark.parametrize(("published", "said", "side"), DECISIONS.values(), ids=list(DECISIONS))
def test_the_preprocessor_decides(
    tmp_path: Path, published: tuple[str, int, int], said: dict[str, Any], side: int
) -> None:
    part, kind = bare(tmp_path / "part", published, said), published[0]
    assert vision_config(part, kind).image_size == side
    assert stored_vision_config(part, kind).image_size == published[1]
    processor = build_image_processor(part, kind)
    pixels = processor([Image.new("RGB", (90, 50))], return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape) == (1, 3, side, side)
    assert num_patches(vision_config(part, kind)) == (side // published[2]) ** 2


@pytest.mark.parametrize(
    ("said", "got"),
    [
        ({"crop_size": {"height": 224, "width": 196}}, "224 x 196"),
        ({"size": {"height": 224}}, "224 x None"),
        ({"crop_size": 8}, "8 x 8"),
    ],
)
def test_what_no_encoder_reads_is_an_error(tmp_path: Path, said: dict[str, Any], got: str) -> None:
    part = bare(tmp_path / "part", DINOV2, said)
    with pytest.raises(PartError, match=rf"got {got} pixels .* Choose the side with vision\.size"):
        vision_config(part, "dinov2")
    assert vision_config(part, "dinov2", 224).image_size == 224


@pytest.mark.parametrize("asked", [14, 224, 518, 532, 14 * MAX_PATCHES_A_SIDE])
def test_a_size_is_chosen(tmp_path: Path, asked: int) -> None:
    assert vision_config(bare(tmp_path, DINOV2, bit(224, 256)), "dinov2", asked).image_size == asked


@pytest.mark.parametrize("asked", [384, 256])
def test_a_size_that_the_part_names_has_no_whole_patches(tmp_path: Path, asked: int) -> None:
    part = bare(tmp_path, SIGLIP_384, {"size": {"height": 256, "width": 256}})
    assert vision_config(part, "siglip", asked).image_size == asked


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        (500, "490 or 504"),
        (13, "14"),
        (1, "14"),
        (14 * MAX_PATCHES_A_SIDE + 1, f"{14 * MAX_PATCHES_A_SIDE}"),
        (14 * (MAX_PATCHES_A_SIDE + 1), f"{14 * MAX_PATCHES_A_SIDE}"),
    ],
)
def test_a_size_that_does_not_suit_is_refused(tmp_path: Path, asked: int, near: str) -> None:
    part = bare(tmp_path, DINOV2, bit(224, 256))
    with pytest.raises(
        PartError,
        match=(
            rf"got vision\.size {asked}, patches of 14; wanted a multiple of 14 up to 1,792,"
            rf" such as {near}\. Set vision\.size"
        ),
    ):
        vision_config(part, "dinov2", asked)


@pytest.mark.parametrize(
    ("size", "divisors", "near"),
    [
        (518, (2,), [504, 532]),
        (518, (3,), [504, 546]),
        (518, (1, 2, 4), [504, 560]),
        (518, (1, 2, 3, 4), [504, 672]),
        (14, (2,), [28]),
        (14 * MAX_PATCHES_A_SIDE, (3,), [14 * 126]),
    ],
)
def test_the_nearest_sizes(size: int, divisors: tuple[int, ...], near: list[int]) -> None:
    assert nearest_sizes(size, 14, divisors) == near
    assert all(one // 14 % divisor == 0 for one in near for divisor in divisors)


@pytest.mark.parametrize("asked", ["0", "-14", "37.5", "big"])
def test_a_size_is_a_number_of_pixels(asked: str) -> None:
    with pytest.raises(RecipeError, match=r"vision\.size"):
        load_recipe("practice", (f"vision.size={asked}",))


@pytest.mark.parametrize(
    ("changes", "pool", "near"),
    [
        (("projector.pool=2",), 2, r"72 \(36 a side\) or 76 \(38 a side\)"),
        (("projector.pool=3",), 3, r"72 \(36 a side\) or 78 \(39 a side\)"),
        (("projector.nested=[1,2,4]",), 2, r"72 \(36 a side\) or 80 \(40 a side\)"),
    ],
)
def test_a_prime_number_of_patches_names_good_sizes(
    tmp_path: Path, changes: tuple[str, ...], pool: int, near: str
) -> None:
    make_root(tmp_path)
    make_vision(tmp_path / "prime", side=STORED, patch=PATCH)
    changes = (*changes, f"vision.part={tmp_path / 'prime'}")
    with pytest.raises(
        PartError,
        match=(
            rf"{pool}x{pool} pooling needs a number of patches a side that {pool} divides; got 37,"
            rf" of 2 pixels each in images of 74\. Set vision\.size to {near}"
        ),
    ):
        read_shapes(load_recipe(tmp_path / "tiny.yaml", changes))
    planned = read_shapes(load_recipe(tmp_path / "tiny.yaml", (*changes, "vision.size=72")))
    assert planned.patches == 36 * 36


def noise(side: int) -> torch.Tensor:
    """Two images `(2, 3, side, side)`."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def run_time(kind: str, part: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hidden states of the stored encoder, which resizes its table in the forward pass."""
    plain: Any = ENCODERS[kind].model_class().from_pretrained(part).eval()
    how = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        found: tuple[torch.Tensor, ...] = plain(
            pixels, output_hidden_states=True, **how
        ).hidden_states
    return found


def once(kind: str, part: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hidden states of the encoder whose table was resized when it was loaded."""
    tower = load_vision_tower(part, kind, torch.float32, pixels.shape[-1])
    assert tower.config.image_size == pixels.shape[-1]
    with torch.inference_mode():
        found: tuple[torch.Tensor, ...] = tower(pixels, output_hidden_states=True).hidden_states
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [2, 32, 38, 72, 74, 76, 100])
def test_resized_once_is_resized_at_run_time(stored: dict[str, Path], kind: str, side: int) -> None:
    """To the last bit, in every layer."""
    pixels = noise(side)
    found, wanted = once(kind, stored[kind], pixels), run_time(kind, stored[kind], pixels)
    assert len(found) == len(wanted) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_interpolation_is_noticed(
    stored: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: bilinear, and no interpolation but the table's first rows."""
    pixels = noise(32)
    wanted = run_time(kind, stored[kind], pixels)[-2]
    interpolate = nn.functional.interpolate

    def bilinear(table: torch.Tensor, **how: Any) -> torch.Tensor:
        return interpolate(table, **{**how, "mode": "bilinear"})

    def cut(table: torch.Tensor, size: tuple[int, int], **how: Any) -> torch.Tensor:
        return table[..., : size[0], : size[1]].contiguous(memory_format=torch.channels_last)

    for other in (bilinear, cut):
        monkeypatch.setattr(nn.functional, "interpolate", other)
        assert float((once(kind, stored[kind], pixels)[-2] - wanted).abs().max()) > 1e-3
    monkeypatch.undo()
    assert torch.equal(once(kind, stored[kind], pixels)[-2], wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_resized_in_float32_whatever_computes(
    stored: dict[str, Path], kind: str, dtype: torch.dtype
) -> None:
    found = load_vision_tower(stored[kind], kind, dtype, 32).state_dict()
    wanted = load_vision_tower(stored[kind], kind, torch.float32, 32).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].to(dtype)) for name in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_table_is_changed(stored: dict[str, Path], kind: str) -> None:
    before = load_vision_tower(stored[kind], kind, torch.float32, STORED)
    after = resize_positions(before, 32)
    changed = {
        name
        for name, weight in before.state_dict().items()
        if weight.shape != after.state_dict()[name].shape
        or not torch.equal(weight, after.state_dict()[name])
    }
    assert [name for name in changed if "position_embedding" in name] == list(changed)
    assert len(changed) == 1
    assert before.config.image_size == STORED


def test_an_encoder_of_one_size_is_refused(stored: dict[str, Path]) -> None:
    from transformers import CLIPVisionConfig

    tower = nn.Sequential(nn.Linear(2, 2))
    tower.config = CLIPVisionConfig(image_size=64)  # type: ignore[assignment]
    with pytest.raises(PartError, match=r"one size only; got 32 pixels; wanted 64.*vision\.size"):
        resize_positions(tower, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_a_part_that_was_resized_by_hand(
    stored: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """The stored encoder at run time, and a folder that holds the resized table, give the features
    that `Encoder` gives.
    """
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
    encoder = Encoder(str(stored[kind]), kind)
    assert (encoder.patches, encoder.width) == (16 * 16, 16)
    features = encoder.encode([picture])
    assert features.shape == (1, 256, 16)
    encoder.model.save_pretrained(tmp_path / "resized")
    by_hand = Encoder(str(prepared(tmp_path / "resized", **bit(32, 36))), kind)
    assert torch.equal(by_hand.encode([picture]), features)
    assert "size" not in by_hand.facts
    pixels = encoder.processor([picture], return_tensors="pt")["pixel_values"]
    wanted = run_time(kind, stored[kind], pixels)[-2]
    assert torch.equal(features, wanted[:, ENCODERS[kind].extra_rows :])


def facts_before(part: Path, side: int) -> dict[str, Any]:
    """What `encoder_facts` said of a part before `vision.size` was."""
    said = json.loads((part / "preprocessor_config.json").read_text())
    processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=said["resample"],
        image_mean=said["image_mean"],
        image_std=said["image_std"],
    )
    written = orjson.dumps(processor.to_dict(), option=orjson.OPT_SORT_KEYS)
    return {
        "weights": fingerprint(part)[:16],
        "layer": -2,
        "processor": hashlib.sha256(written).hexdigest()[:16],
        "libraries": (
            f"pillow {PIL.__version__.split('.')[0]},"
            f" transformers {transformers.__version__.split('.')[0]}"
        ),
    }


def test_a_store_of_an_unchanged_size_stays_valid(stored: dict[str, Path], tmp_path: Path) -> None:
    practice = PRACTICE / "vision"
    assert encoder_facts(str(practice), "clip", -2) == facts_before(practice, 96)
    assert encoder_facts(str(practice), "clip", -2, 96) == facts_before(practice, 96)
    tiny = make_vision(tmp_path / "tiny")
    assert encoder_facts(str(tiny), "clip", -2) == facts_before(tiny, 32)
    # a store of DINOv2 made before: at what its config.json says
    before = facts_before(stored["dinov2"], STORED)
    assert encoder_facts(str(stored["dinov2"]), "dinov2", -2, STORED) == before


@pytest.mark.parametrize(("made", "asked"), [(STORED, 32), (32, STORED), (32, 48), (48, 32)])
def test_a_store_of_another_size_is_refused(stored: dict[str, Path], made: int, asked: int) -> None:
    part = str(stored["dinov2"])
    got, wanted = (encoder_facts(part, "dinov2", -2, one) for one in (made, asked))
    with pytest.raises(
        ArtifactError,
        match=(
            rf"got encoder \w+ \(processor \w+, images of {made} pixels\); wanted encoder \w+"
            rf" \(processor \w+, images of {asked} pixels\)\. Do it again\. Or set vision\.size to"
            rf" {made}"
        ),
    ):
        check_same_encoder(Path("store"), got=got, wanted=wanted, do="Do it again")
    check_same_encoder(Path("store"), got=got, wanted=dict(got), do="")


def test_of_another_part_no_size_is_made_up(stored: dict[str, Path]) -> None:
    """Facts without a size are of the stored one, which is the other part's."""
    got = facts_before(stored["clip"], STORED)
    wanted = encoder_facts(str(stored["dinov2"]), "dinov2", -2)
    with pytest.raises(ArtifactError) as caught:
        check_same_encoder(Path("store"), got=got, wanted=wanted, do="Do it again")
    got_said, wanted_said = str(caught.value).split("; wanted ")
    assert "images of" not in got_said
    assert "images of 32 pixels" in wanted_said
    assert "vision.size" not in str(caught.value)


def test_a_plan_without_a_preprocessor_says_so(tmp_path: Path) -> None:
    """As where a hub id's config.json alone is in the cache."""
    make_root(tmp_path)
    part = bare(tmp_path / "part", DINOV2, bit(224, 256))
    changes = (f"vision.part={part}", "vision.encoder=dinov2")
    planned = read_shapes(load_recipe(tmp_path / "tiny.yaml", changes))
    assert (planned.patches, planned.notes) == (16 * 16, ())
    (part / "preprocessor_config.json").unlink()
    planned = read_shapes(load_recipe(tmp_path / "tiny.yaml", changes))
    assert planned.patches == 37 * 37
    assert "planned for images of 518 pixels" in planned.notes[0]
    planned = read_shapes(load_recipe(tmp_path / "tiny.yaml", (*changes, "vision.size=224")))
    assert (planned.patches, planned.notes) == (16 * 16, ())
