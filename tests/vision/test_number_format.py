"""The number format of a store: measured, the same for all processes, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from phisense.errors import ArtifactError
from phisense.pipeline.features import encode_features
from phisense.pipeline.progress import Event, Notice
from phisense.recipe import load_recipe
from phisense.vision.encoders import number_format
from phisense.vision.encoders.encode import Encoder
from phisense.vision.encoders.number_format import (
    MIN_COSINE,
    channel_cosine,
    choose_encoding_format,
)
from phisense.vision.store.contents import read_store_manifest

from ..tiny import make_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_root(tmp_path)
    return tmp_path


def speeds(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """A processor that encodes so many times as fast in bfloat16."""
    times = iter((1.0, 1.0 / speedup) * 99)
    monkeypatch.setattr(number_format, "_time", lambda work, clock: next(times))
    monkeypatch.setattr("phisense.model.device.supports_bfloat16", lambda device: True)


def features(root: Path, *changes: str) -> tuple[str, list[str]]:
    """What the store was computed in, and what was said."""
    said: list[Event] = []
    recipe = load_recipe(root / "tiny.yaml", changes)
    encode_features(recipe, device="cpu", on_event=said.append)
    return read_store_manifest(recipe.store).about.computed_in, [
        one.text for one in said if isinstance(one, Notice)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speedup", "format_", "words"),
    [
        (6.0, "bfloat16", "6.0 times as fast in it, and the features are the same (cosine 0.99"),
        (0.2, "float32", "bfloat16 takes 5.00 times as long as float32 here"),
        (1.1, "float32", "bfloat16 takes 0.91 times as long"),
    ],
)
def test_a_new_store_is_in_the_faster_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, format_: str, words: str
) -> None:
    speeds(monkeypatch, speedup)
    made, said = features(root)
    assert made == format_
    assert any(
        text.startswith(f"encodes pictures in {format_}: ") and words in text for text in said
    )


@pytest.mark.slow
def test_without_instructions_nothing_is_measured(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phisense.model.device.supports_bfloat16", lambda device: False)
    monkeypatch.setattr(number_format, "choose_encoding_format", None)
    assert features(root)[0] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(6.0, 0.2), (0.2, 6.0)])
def test_a_store_goes_on_in_the_format_that_made_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, first: float, then: float
) -> None:
    """Whatever this machine would choose, so that no store holds two; and what the recipe asks for
    is refused if it is another.
    """
    from PIL import Image

    speeds(monkeypatch, first)
    made, _ = features(root)
    Image.new("RGB", (40, 40), "yellow").save(root / "images" / "new.png")
    rows = (root / "rows.json").read_text()
    (root / "rows.json").write_text(rows.replace('"red.png"', '"new.png"', 1))
    speeds(monkeypatch, then)
    other = "float32" if made == "bfloat16" else "bfloat16"
    with pytest.raises(ArtifactError, match=f"another number format; got {made}; wanted {other}"):
        features(root, f"compute_dtype={other}")
    again, said = features(root)
    assert again == made
    assert f"encodes pictures in {made}: the store was begun in it" in said


@pytest.mark.slow
def test_features_that_differ_stay_in_float32(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel's own differences count, however large another is."""
    speeds(monkeypatch, 6.0)
    read = Encoder.read

    def noisy(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        found = read(self, pixels).float()
        massive = torch.zeros_like(found)
        massive[..., 0] = 24_494.0
        if self.model.dtype is torch.bfloat16:
            found = found + 0.2 * found.std() * torch.randn(found.shape)
        return found + massive

    monkeypatch.setattr(Encoder, "read", noisy)
    made, said = features(root)
    assert made == "float32"
    assert any("the features in bfloat16 differ: a cosine of 0.9" in text for text in said)


def test_a_massive_activation_does_not_hide_the_other_channels() -> None:
    torch.manual_seed(0)
    wanted = 1.9 * torch.randn(2, 64, 32)
    wanted[:, 0, 5] = 24_494.0
    noise = torch.randn(2, 64, 32)
    noise[..., 5] = 0

    def plain(got: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(wanted, got, dim=-1)[:, 0].min())

    assert plain(wanted + noise) > MIN_COSINE
    assert channel_cosine(wanted, wanted + noise) < 0.95
    assert channel_cosine(wanted, wanted.bfloat16().float()) > MIN_COSINE
    assert channel_cosine(wanted, wanted) == pytest.approx(1)
    assert not channel_cosine(wanted, wanted * float("nan")) >= MIN_COSINE


@pytest.mark.slow
def test_the_encoder_is_left_as_it_was(root: Path) -> None:
    from PIL import Image

    recipe = load_recipe(root / "tiny.yaml")
    encoder = Encoder(recipe.vision.part, recipe.vision.encoder, recipe.vision.layer)
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    before, ticks = encoder.encode(images), iter(range(10**6))

    def clock() -> float:
        return float(next(ticks))

    found: Any = choose_encoding_format(encoder, images, clock=clock)
    assert found.name == "float32"
    assert encoder.model.dtype is torch.float32
    assert torch.equal(encoder.encode(images), before)
