"""Model inputs: what is computed here, from images or stored features, is to the bit what the
native model computes from the same; padding, and where the image embeddings go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from phisense import Phi3WithProjector
from phisense.conversations import IMAGE, Message
from phisense.model.inputs import StoredFeatures, pad_prompts, pad_rows, splice_images
from phisense.model.projectors.image_tokens import average_patches
from phisense.prompt import IGNORE_INDEX, Rendered
from phisense.recipe import Projector

from ..tiny import make_language, make_vision

KINDS = {
    "linear": Projector(kind="linear"),
    "mlp": Projector(),
    "pooled by 2": Projector(pool=2),
    "pooled by 3": Projector(pool=3),
    "shuffled": Projector(kind="pixel_shuffle", pool=2),
    "nested": Projector(nested=(1, 2, 3)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("six_by_six")
    make_language(root / "language")
    for encoder in ("clip", "siglip"):
        make_vision(root / encoder, encoder=encoder, side=48)  # 6 x 6 patches
    return root


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def assembled(
    folders: Path, dtype: torch.dtype, kind: str = "mlp", encoder: str = "clip", **options: Any
) -> Phi3WithProjector:
    return Phi3WithProjector.assemble(
        str(folders / "language"),
        str(folders / encoder),
        KINDS[kind],
        encoder=encoder,
        device="cpu",
        dtype=dtype,
        **options,
    )


def pictures(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 255, (count, 40, 30, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def native(built: Phi3WithProjector, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """The image embeddings of the native model."""
    found = built.model.get_image_features(pixel_values=pixel_values, return_dict=True)
    return list(found.pooler_output)


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_images_are_projected_as_the_native_model_does(
    folders: Path, dtype: torch.dtype, kind: str, encoder: str, count: int
) -> None:
    built = assembled(folders, dtype, kind, encoder)
    tower = built.model.model.vision_tower
    seen = pictures(count)
    pixels = built.processor.image_processor(seen, return_tensors="pt")["pixel_values"]
    wanted = native(built, pixels.to(dtype))
    found = built.project(seen)
    assert same(found, wanted)
    assert {len(one) for one in found} == {built.image_tokens}
    assert built.model.model.vision_tower is tower
    control = built.project(pictures(count + 1)[:count])
    assert not same(control, wanted), "other images must give others"


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_stored_features_are_projected_as_the_native_model_does(
    folders: Path, dtype: torch.dtype, kind: str, pool: int
) -> None:
    """As in training, where the vision tower is one of stored features."""
    if kind != "nested" and pool > 1:
        pytest.skip("only a nested model averages patches before the projector")
    built = assembled(folders, dtype, kind)
    trained = assembled(folders, dtype, kind, stored_features=True)
    built.pool = pool
    features = torch.randn(3, 36, 16, generator=torch.Generator().manual_seed(0))
    found = built.project(list(features))
    assert same(found, native(trained, average_patches(features, pool)))
    assert not isinstance(built.model.model.vision_tower, StoredFeatures)
    assert not same(found, native(trained, average_patches(features + 1, pool)))


@torch.inference_mode()
def test_logits_of_spliced_embeddings_are_the_native_models(
    folders: Path, dtype: torch.dtype
) -> None:
    built = assembled(folders, dtype)
    messages = [Message("user", f"{IMAGE}\n{IMAGE}\nAre they alike?"), Message("assistant", "No.")]
    seen = pictures(2)
    batch = built.inputs([messages], [seen])
    pixels = built.processor.image_processor(seen, return_tensors="pt")["pixel_values"]
    plain = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    wanted = built.model(**plain, pixel_values=pixels.to(dtype)).logits
    assert torch.equal(built.model(**batch.to_kwargs()).logits, wanted)
    turned = built.inputs([messages], [seen[::-1]])
    assert not torch.equal(built.model(**turned.to_kwargs()).logits, wanted), "order matters"


def test_images_take_the_places_of_their_ids() -> None:
    ids = torch.tensor([[7, 9, 9, 5], [9, 5, 5, 5]])
    words = torch.zeros(2, 4, 3)
    first, second = torch.full((2, 3), 1.0), torch.full((1, 3), 2.0)
    found = splice_images(words, ids, 9, [first, second])
    assert found[..., 0].tolist() == [[0, 1, 1, 0], [2, 0, 0, 0]]
    assert not words.any(), "the given embeddings stay as they are"
    assert splice_images(words, ids, 9, []) is words


@pytest.mark.parametrize("rows", [2, 4])
def test_another_number_of_image_tokens_is_an_error(rows: int) -> None:
    with pytest.raises(AssertionError, match=f"3 <image> ids for {rows} image embeddings"):
        splice_images(torch.zeros(1, 4, 3), torch.tensor([[7, 9, 9, 9]]), 9, [torch.zeros(rows, 3)])


def test_rows_are_padded_on_the_right_and_prompts_on_the_left() -> None:
    rows = [Rendered([1, 2, 3], [IGNORE_INDEX, 2, 3]), Rendered([4], [4])]
    batch = pad_rows(rows, 0)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert set(batch.to_kwargs()) == {"input_ids", "attention_mask", "labels"}
    assert pad_rows(rows, 0, multiple_of=4).input_ids.shape == (2, 4)

    prompts = pad_prompts([[1, 2, 3], [4]], 0)
    assert prompts.input_ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert prompts.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert prompts.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert set(prompts.to_kwargs()) == {"input_ids", "attention_mask"}


def test_a_model_gets_ids_or_embeddings(folders: Path) -> None:
    asked = [[Message("user", f"{IMAGE}\nWhat?")], [Message("user", "Hello.")]]
    seen: list[list[Any]] = [pictures(1), []]
    batch = assembled(folders, torch.float32).inputs(asked, seen, supervised=False)
    assert set(batch.to_kwargs()) == {"attention_mask", "inputs_embeds"}
    features: list[list[Any]] = [[torch.zeros(36, 16)], []]
    stored = assembled(folders, torch.float32, stored_features=True)
    batch = stored.inputs(asked, features, supervised=False)
    assert set(batch.to_kwargs()) == {"input_ids", "attention_mask", "pixel_values"}
    with pytest.raises(AssertionError, match="reads stored features only"):
        stored.inputs(asked, seen, supervised=False)
