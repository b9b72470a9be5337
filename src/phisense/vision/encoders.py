"""Vision parts: a picture -> features `(P, D)`, read from a hidden layer before any projector."""

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

from ..errors import ArtefactError, PartError
from ..parts import MODEL_TYPES, fingerprint, load_half, load_weights, open_auto, resolve_part


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of encoders: its class, the model types its parts may have, and how many rows precede the patches."""

    model: type[PreTrainedModel]
    model_types: tuple[str, ...]
    extra_rows: int

    @property
    def strategy(self) -> Literal["default", "full"]:
        """LLaVA's name for it: `default` drops the class row, `full` keeps every row."""
        return "default" if self.extra_rows else "full"


#: What a picture processor may say; LLaVA's has all of CLIP's and SigLIP's, and padding.
_PREPARATION = (
    *("do_convert_rgb", "do_pad", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)

ENCODERS: dict[str, Kind] = {
    "clip": Kind(CLIPVisionModel, ("clip", "clip_vision_model"), 1),
    "siglip": Kind(SiglipVisionModel, ("siglip", "siglip_vision_model"), 0),
    "dinov2": Kind(Dinov2Model, ("dinov2",), 1),
}


def vision_config(part: Path, encoder: str) -> PreTrainedConfig:
    """The vision half of the configuration of a part, or of a model folder. Raises PartError if it is of another family."""
    kind = ENCODERS[encoder]
    config = open_auto(AutoConfig, part)
    half: PreTrainedConfig = getattr(config, "vision_config", config)
    found = half.model_type if config.model_type in MODEL_TYPES else config.model_type
    if found not in kind.model_types:
        raise PartError(f"{part} is no {encoder} encoder", got=found, wanted=" or ".join(kind.model_types), do="Set vision.encoder")
    return half


def load_tower(part: Path, encoder: str, dtype: torch.dtype) -> Any:
    """The encoder's model, also out of a model folder."""
    kind = ENCODERS[encoder]
    if open_auto(AutoConfig, part).model_type in MODEL_TYPES:
        return load_half(kind.model, part, "vision_tower", vision_config(part, encoder), dtype=dtype)
    return load_weights(kind.model, part, dtype=dtype)


def patches(config: PreTrainedConfig) -> int:
    """How many patches a picture has: (side / patch side) squared."""
    return int((config.image_size // config.patch_size) ** 2)


def image_processor(part: Path, encoder: str) -> LlavaImageProcessorPil:
    """Pads to a square (a centre crop would lose the sides), resizes, normalises as the part was trained; a model folder keeps its own."""
    if open_auto(AutoConfig, part).model_type in MODEL_TYPES:
        return own_processor(part)
    path = part / "preprocessor_config.json"
    if not path.is_file():
        raise PartError(f"the vision part {part} has no preprocessor_config.json", do="Copy it from where the part came from")
    trained = orjson.loads(path.read_bytes())
    side = vision_config(part, encoder).image_size
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=trained.get("resample", Image.Resampling.BICUBIC),
        image_mean=trained["image_mean"],
        image_std=trained["image_std"],
    )


def own_processor(folder: Path) -> LlavaImageProcessorPil:
    """How a LLaVA-format folder itself prepares pictures. Raises PartError if it does not say."""
    whole, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    facts = orjson.loads(whole.read_bytes()).get("image_processor") if whole.is_file() else None
    if facts is None:
        if not alone.is_file():
            raise PartError(
                f"{folder} does not say how it prepares pictures", got="no preprocessor_config.json", do="Copy the whole folder"
            )
        facts = orjson.loads(alone.read_bytes())
    return LlavaImageProcessorPil(**{key: value for key, value in facts.items() if key in _PREPARATION})


def encoder_facts(part: str, encoder: str, layer: int) -> dict[str, Any]:
    """Everything that changes an encoder's features: its weights, the layer read, how pictures are prepared and by which libraries."""
    folder = resolve_part(part)
    processor = orjson.dumps(image_processor(folder, encoder).to_dict(), option=orjson.OPT_SORT_KEYS)
    return {
        "weights": fingerprint(folder)[:16],
        "layer": layer,
        "processor": hashlib.sha256(processor).hexdigest()[:16],
        # Resizing is Pillow's, the model's arithmetic transformers': a major version may change either.
        "libraries": f"pillow {PIL.__version__.split('.')[0]}, transformers {transformers.__version__.split('.')[0]}",
    }


def facts_fingerprint(facts: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def check_same_encoder(store: Path, *, got: dict[str, Any], wanted: dict[str, Any], do: str) -> None:
    """Raises ArtefactError, with both fingerprints and what differs, unless the facts are equal."""
    if got == wanted:
        return
    differing = [key for key in wanted if got.get(key) != wanted[key]]

    def told(facts: dict[str, Any]) -> str:
        return f"encoder {facts_fingerprint(facts)[:12]} ({', '.join(f'{key} {facts.get(key)}' for key in differing)})"

    raise ArtefactError(f"the feature store {store} was made by another encoder", got=told(got), wanted=told(wanted), do=do)


class Encoder:
    """A frozen vision part."""

    def __init__(
        self, part: str, encoder: str = "clip", layer: int = -2, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        folder = resolve_part(part)
        self.kind = ENCODERS[encoder]
        config = vision_config(folder, encoder)
        self.layer = layer
        self.patches, self.width = patches(config), int(config.hidden_size)
        self.processor = image_processor(folder, encoder)
        self.model: Any = load_tower(folder, encoder, dtype).to(device).eval()
        self.device = device
        self.facts = encoder_facts(part, encoder, layer)
        self.fingerprint = facts_fingerprint(self.facts)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Features `(B, P, D)`: the patches of hidden layer `layer`, without a class row."""
        return self._read(self.processor(list(pictures), return_tensors="pt")["pixel_values"])

    def prepare(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """`(B, 3, S, S)` uint8: padded and resized, not yet normalised; what `encode_prepared` takes."""
        prepared: torch.Tensor = self.processor(list(pictures), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        return prepared.to(torch.uint8)

    @torch.inference_mode()
    def encode_prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        """As `encode`, from prepared pictures."""
        return self._read(self.normalise(pixels))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Prepared pictures as the model takes them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.processor.image_mean, self.processor.image_std))
        return (pixels.float() / 255 - mean) / std

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self.device, self.model.dtype)
        hidden: torch.Tensor = self.model(pixels, output_hidden_states=True).hidden_states[self.layer]
        return hidden[:, self.kind.extra_rows :]
