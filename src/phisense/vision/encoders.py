"""Vision encoders: an image -> features `(P, D)`, from a hidden layer before any projector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import PIL
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    CLIPVisionModel,
    Dinov2Model,
    LlavaImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)

from ..errors import ArtifactError, PartError
from ..opening import validate_folder
from ..parts import (
    MODEL_TYPES,
    fingerprint,
    load_auto,
    load_submodel,
    load_weights,
    resolve_part,
    split_revision,
)


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """An encoder family: model class, accepted model types, number of rows before the patches."""

    model: type[PreTrainedModel]
    model_types: tuple[str, ...]
    extra_rows: int

    @property
    def strategy(self) -> Literal["default", "full"]:
        """LLaVA's feature select strategy: `default` drops the class token, `full` does not."""
        return "default" if self.extra_rows else "full"


#: Accepted image processor keys; LLaVA's has all of CLIP's and SigLIP's, and padding.
_PREPARATION = (
    *("do_convert_rgb", "do_pad", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)

ENCODER_FAMILIES: dict[str, EncoderFamily] = {
    "clip": EncoderFamily(CLIPVisionModel, ("clip", "clip_vision_model"), 1),
    "siglip": EncoderFamily(SiglipVisionModel, ("siglip", "siglip_vision_model"), 0),
    "dinov2": EncoderFamily(Dinov2Model, ("dinov2",), 1),
}


def vision_config(part: Path, encoder: str) -> PreTrainedConfig:
    """The vision configuration of a part or of a model folder.

    Raises PartError if it is of another family.
    """
    kind = ENCODER_FAMILIES[encoder]
    config = load_auto(AutoConfig, part)
    half: PreTrainedConfig = getattr(config, "vision_config", config)
    found = half.model_type if config.model_type in MODEL_TYPES else config.model_type
    if found not in kind.model_types:
        raise PartError(
            f"{part} is no {encoder} encoder",
            got=found,
            wanted=" or ".join(kind.model_types),
            do="Set vision.encoder",
        )
    return half


def load_vision_tower(part: Path, encoder: str, dtype: torch.dtype) -> Any:
    """Load the vision model of a part or of a model folder."""
    kind = ENCODER_FAMILIES[encoder]
    if load_auto(AutoConfig, part).model_type in MODEL_TYPES:
        return load_submodel(
            kind.model, part, "vision_tower", vision_config(part, encoder), dtype=dtype
        )
    return load_weights(kind.model, part, dtype=dtype)


def num_patches(config: PreTrainedConfig) -> int:
    """Number of patches per image: (image size / patch size) squared."""
    return int((config.image_size // config.patch_size) ** 2)


def build_image_processor(part: Path, encoder: str) -> LlavaImageProcessorPil:
    """Image processor that pads to a square, resizes and normalizes.

    Padding, since a center crop would lose the sides. Sizes and statistics are those the part was
    trained with; a model folder keeps its own processor.
    """
    if load_auto(AutoConfig, part).model_type in MODEL_TYPES:
        return load_image_processor(part)
    judged = validate_folder(part)
    judged.check_processor()
    trained = judged.documents.get("preprocessor_config.json")
    if trained is None:
        raise PartError(
            f"the vision part {part} has no preprocessor_config.json",
            do="Copy it from where the part came from",
        )
    lacking = [key for key in ("image_mean", "image_std") if trained.get(key) is None]
    if lacking:
        raise PartError(
            f"preprocessor_config.json of {part} does not say how pictures were prepared",
            got=f"no {lacking[0]}",
            do="Copy it from where the part came from",
        )
    side = vision_config(part, encoder).image_size
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=trained.get("resample", Image.Resampling.BICUBIC),
        image_mean=trained["image_mean"],
        image_std=trained["image_std"],
    )


def load_image_processor(folder: Path) -> LlavaImageProcessorPil:
    """The image processor that a LLaVA-format folder defines.

    Raises PartError if it defines none.
    """
    judged = validate_folder(folder)
    judged.check_processor()
    facts = judged.documents.get("processor_config.json", {}).get(
        "image_processor"
    ) or judged.documents.get("preprocessor_config.json")
    if not isinstance(facts, dict):
        raise PartError(
            f"{folder} does not say how it prepares pictures",
            got="no preprocessor_config.json",
            do="Copy the whole folder",
        )
    return LlavaImageProcessorPil(
        **{key: value for key, value in facts.items() if key in _PREPARATION}
    )


def encoder_facts(part: str, encoder: str, layer: int) -> dict[str, Any]:
    """All that affects an encoder's features: weights, layer, preprocessing, library versions."""
    folder = resolve_part(part)
    processor = orjson.dumps(
        build_image_processor(folder, encoder).to_dict(), option=orjson.OPT_SORT_KEYS
    )
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
    differing = [key for key in wanted if got.get(key) != wanted[key]]

    def told(facts: dict[str, Any]) -> str:
        return (
            f"encoder {facts_fingerprint(facts)[:12]}"
            f" ({', '.join(f'{key} {facts.get(key)}' for key in differing)})"
        )

    raise ArtifactError(
        f"the feature store {store} was made by another encoder",
        got=told(got),
        wanted=told(wanted),
        do=do,
    )


class Encoder:
    """A frozen vision encoder.

    `part` is a hub id with its commit; the attribute is None for a folder.
    """

    def __init__(
        self,
        part: str,
        encoder: str = "clip",
        layer: int = -2,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        folder = resolve_part(part)
        self.part = part if split_revision(part)[1] else None
        self.kind = ENCODER_FAMILIES[encoder]
        config = vision_config(folder, encoder)
        self.layer = layer
        self.patches, self.width = num_patches(config), int(config.hidden_size)
        self.processor = build_image_processor(folder, encoder)
        self.model: Any = load_vision_tower(folder, encoder, dtype).to(device).eval()
        self.device = device
        self.facts = encoder_facts(part, encoder, layer)
        self.fingerprint = facts_fingerprint(self.facts)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Features `(B, P, D)`: the patches of hidden layer `layer`, without the class token."""
        return self._read(self.processor(list(pictures), return_tensors="pt")["pixel_values"])

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
        return self._read(self.normalize(pixels))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize images from `prepare` to the model's input."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (pixels.float() / 255 - mean) / std

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self.device, self.model.dtype)
        hidden: torch.Tensor = self.model(pixels, output_hidden_states=True).hidden_states[
            self.layer
        ]
        return hidden[:, self.kind.extra_rows :]
