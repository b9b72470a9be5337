"""The feature store: equal to fresh features, resumable, and of one encoder only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phisense.errors import ArtefactError, PartError
from phisense.vision.encoders import Encoder, encoder_fingerprint
from phisense.vision.pictures import open_picture
from phisense.vision.store import FeatureStore, encode_pictures

from ..tiny import make_vision

NAMES = [f"{i}.png" for i in range(7)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / name)
    return folder


def encode(folder: Path, encoder: Encoder, images: Path, names: list[str] = NAMES) -> None:
    encode_pictures(folder, encoder, names, images, dtype="float32", batch=2, shard=3, progress=lambda done, total: None)


@pytest.fixture(scope="module")
def encoder(parts: tuple[str, str]) -> Encoder:
    return Encoder(parts[1])


def test_stored_equals_fresh(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images)
    store = FeatureStore(tmp_path / "store", encoder=encoder.fingerprint)
    assert (len(store), store.tokens, store.width) == (7, 16, 16)
    for name in NAMES:
        fresh = encoder.encode([open_picture(images / name)])[0]
        torch.testing.assert_close(store.features(name), fresh, rtol=1e-5, atol=1e-5)
    with pytest.raises(ArtefactError, match=r"has no picture 9\.png"):
        store.features("9.png")


def test_features_are_the_layer_the_model_reads(images: Path, encoder: Encoder) -> None:
    picture = open_picture(images / "0.png")
    pixels = encoder.processor([picture], return_tensors="pt")["pixel_values"]
    hidden = encoder.model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder.encode([picture]), hidden[-2][:, 1:])
    assert not torch.allclose(encoder.encode([picture]), hidden[-1][:, 1:])


def test_an_interrupted_store_is_no_store_and_goes_on(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    encode(whole, encoder, images)
    with pytest.raises(RuntimeError, match="stopped"):
        encode_pictures(broken, encoder, NAMES, images, dtype="float32", batch=2, shard=3, progress=stop_after(4))
    assert len(list(broken.glob("*.safetensors"))) == 1
    with pytest.raises(ArtefactError, match="is not a finished feature store"):
        FeatureStore(broken)
    encode(broken, encoder, images)
    for path in sorted(whole.glob("*.safetensors")):
        assert (broken / path.name).read_bytes() == path.read_bytes()


def stop_after(count: int):
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise RuntimeError("stopped")

    return progress


def test_another_encoder_is_refused(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images)
    other = Encoder(str(make_vision(tmp_path / "other")), layer=-1)
    with pytest.raises(ArtefactError, match="was made by another encoder; got encoder .*; wanted encoder"):
        FeatureStore(tmp_path / "store", encoder=other.fingerprint)
    with pytest.raises(ArtefactError, match="was made by another encoder"):
        encode(tmp_path / "store", other, images)


def test_the_fingerprint_follows_what_changes_features(tmp_path: Path) -> None:
    part = make_vision(tmp_path / "a")
    first = encoder_fingerprint(str(part), "clip", -2)
    assert encoder_fingerprint(str(part), "clip", -1) != first
    weights = part / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert encoder_fingerprint(str(part), "clip", -2) != first


def test_a_missing_weight_is_an_error_not_a_random_number(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    part = make_vision(tmp_path / "a")
    weights = load_file(part / "model.safetensors")
    del weights[sorted(weights)[3]]
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PartError, match="is incomplete; got 1 weights missing"):
        Encoder(str(part))
