"""`Encoder`: images -> features `(P, D)`, and the facts that determine them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import PIL
import torch
import transformers
from PIL import Image

from ...errors import ArtifactError
from ...parts import fingerprint, resolve_part, split_revision
from .base import ENCODERS
from .loading import (
    build_image_processor,
    load_vision_tower,
    num_patches,
    stored_vision_config,
    vision_config,
)


def encoder_facts(part: str, encoder: str, layer: int, size: int | None = None) -> dict[str, Any]:
    """All that affects an encoder's features: weights, layer, preprocessing, library versions; and
    the side of the images, where the stored position table, for images of `stored_size` pixels, is
    resized to it.
    """
    folder = resolve_part(part)
    processor = orjson.dumps(
        build_image_processor(folder, encoder, size).to_dict(), option=orjson.OPT_SORT_KEYS
    )
    side = vision_config(folder, encoder, size).image_size
    stored = stored_vision_config(folder, encoder).image_size
    return {
        "weights": fingerprint(folder)[:16],
        "layer": layer,
        "processor": hashlib.sha256(processor).hexdigest()[:16],
        # Pillow resizes and transformers computes the forward pass: a major version may change
        # either.
        "libraries": (
            f"pillow {PIL.__version__.split('.')[0]}, transformers"
            f" {transformers.__version__.split('.')[0]}"
        ),
        **({} if side == stored else {"size": side, "stored_size": stored}),
    }


def facts_fingerprint(facts: dict[str, Any]) -> str:
    """SHA-256 of an encoder's facts, in hexadecimal."""
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def check_same_encoder(
    store: Path, *, got: dict[str, Any], wanted: dict[str, Any], do: str
) -> None:
    """Raise ArtifactError with both fingerprints and the differences unless the facts are equal."""
    if got == wanted:
        return
    sizes = {"size", "stored_size"}
    differing = [key for key in wanted if key not in sizes and got.get(key) != wanted[key]]
    stored = None  # facts without a size are those of the stored one, known if the part is the same
    if got.get("weights") == wanted.get("weights"):
        stored = got.get("stored_size", wanted.get("stored_size"))
    before, now = got.get("size", stored), wanted.get("size", stored)
    if stored is not None and before != now:
        do = f"{do}. Or set vision.size to {before}"

    def told(facts: dict[str, Any], size: int | None) -> str:
        said = [f"{key} {facts.get(key)}" for key in differing]
        said += [f"images of {size} pixels"] if before != now and size is not None else []
        return f"encoder {facts_fingerprint(facts)[:12]} ({', '.join(said)})"

    raise ArtifactError(
        f"the feature store {store} was made by another encoder",
        got=told(got, before),
        wanted=told(wanted, now),
        do=do,
    )


class Encoder:
    """A frozen vision encoder.

    `part` is a hub id with its commit; the attribute is None for a folder. `size` is the side of
    the images in pixels, or None for what the part says (`image_size.py`).
    """

    def __init__(
        self,
        part: str,
        encoder: str = "clip",
        layer: int = -2,
        *,
        size: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        folder = resolve_part(part)
        self.part = part if split_revision(part)[1] else None
        self.kind = ENCODERS[encoder]
        config = vision_config(folder, encoder, size)
        self.layer = layer
        self.patches, self.width = num_patches(config), int(config.hidden_size)
        self.processor = build_image_processor(folder, encoder, size)
        self.model: Any = load_vision_tower(folder, encoder, dtype, size).to(device).eval()
        self.device = device
        self.facts = encoder_facts(part, encoder, layer, size)
        self.fingerprint = facts_fingerprint(self.facts)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Features `(B, P, D)`: the patches of hidden layer `layer`, without the class token."""
        return self.read(self.pixels(pictures))

    def pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The model's input `(B, 3, S, S)`: preprocessed and normalized, in float32."""
        found: torch.Tensor = self.processor(list(pictures), return_tensors="pt")["pixel_values"]
        return found

    def compute_in(self, dtype: torch.dtype) -> None:
        """Cast the weights to `dtype`, in which everything is computed from now on."""
        self.model = self.model.to(dtype)

    def prepare(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocess without normalizing: padded and resized, `(B, 3, S, S)` uint8.

        The result is the input of `encode_prepared`.
        """
        prepared: torch.Tensor = self.processor(
            list(pictures), do_rescale=False, do_normalize=False, return_tensors="pt"
        )["pixel_values"]
        return prepared.to(torch.uint8)

    @torch.inference_mode()
    def encode_prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        """As `encode`, for images from `prepare`."""
        return self.read(self.normalize(pixels))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize images from `prepare` to the model's input."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (pixels.float() / 255 - mean) / std

    @torch.inference_mode()
    def read(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `(B, P, D)` of the model's input."""
        pixels = pixels.to(self.device, self.model.dtype)
        hidden: torch.Tensor = self.model(pixels, output_hidden_states=True).hidden_states[
            self.layer
        ]
        return hidden[:, self.kind.extra_rows :]
