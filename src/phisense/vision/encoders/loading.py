"""A vision part's configuration, weights and image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, LlavaImageProcessorPil, PreTrainedConfig

from ...errors import PartError
from ...opening import validate_folder
from ...opening.registered import composite_model_types
from ...parts import load_auto, load_submodel, load_weights
from .base import ENCODERS
from .image_size import effective_size
from .positions import resize_positions

#: Accepted image processor keys; LLaVA's has all of CLIP's and SigLIP's, and padding.
_PREPARATION = (
    *("do_convert_rgb", "do_pad", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def vision_config(part: Path, encoder: str, size: int | None = None) -> PreTrainedConfig:
    """The vision configuration of a part or of a model folder, for images of its effective side:
    `size`, or what `image_size.py` finds. A model folder keeps its own.

    Raises PartError if it is of another family, or `size` does not suit it.
    """
    config = stored_vision_config(part, encoder)
    if _is_model_folder(part):
        if size not in (None, config.image_size):
            raise PartError(
                f"{part} is a model folder, which keeps the image size that it was trained at",
                got=f"vision.size {size}",
                wanted=config.image_size,
                do="Leave vision.size out, or take the vision part that the model was made from",
            )
        return config
    document = validate_folder(part).documents.get("preprocessor_config.json", {})
    config.image_size = effective_size(config, document, size, str(part))
    return config


def stored_vision_config(part: Path, encoder: str) -> PreTrainedConfig:
    """As `vision_config`, but with the `image_size` that the stored position table is for."""
    kind = ENCODERS[encoder]
    config = load_auto(AutoConfig, part)
    half: PreTrainedConfig = getattr(config, "vision_config", config)
    found = half.model_type if _is_model_folder(part) else config.model_type
    if found not in kind.model_types:
        raise PartError(
            f"{part} is no {encoder} encoder",
            got=found,
            wanted=" or ".join(kind.model_types),
            do="Set vision.encoder",
        )
    return half


def load_vision_tower(part: Path, encoder: str, dtype: torch.dtype, size: int | None = None) -> Any:
    """Load the vision model of a part or of a model folder, for images of the effective side that
    `vision_config` gives.
    """
    model_class, config = ENCODERS[encoder].model_class(), vision_config(part, encoder, size)
    if _is_model_folder(part):
        return load_submodel(model_class, part, "vision_tower", config, dtype=dtype)
    if config.image_size == stored_vision_config(part, encoder).image_size:
        return load_weights(model_class, part, dtype=dtype)
    stored = load_weights(model_class, part, dtype=torch.float32)
    return resize_positions(stored, config.image_size).to(dtype)


def _is_model_folder(part: Path) -> bool:
    return load_auto(AutoConfig, part).model_type in composite_model_types()


def num_patches(config: PreTrainedConfig) -> int:
    """Number of patches per image: (image size / patch size) squared."""
    return int((config.image_size // config.patch_size) ** 2)


def build_image_processor(
    part: Path, encoder: str, size: int | None = None
) -> LlavaImageProcessorPil:
    """Image processor that pads to a square, resizes to the effective side and normalizes.

    Padding, since a center crop would lose the sides. Statistics are those the part was trained
    with; a model folder keeps its own processor.
    """
    side = vision_config(part, encoder, size).image_size
    if _is_model_folder(part):
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
