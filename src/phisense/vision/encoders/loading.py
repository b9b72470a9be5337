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

#: Accepted image processor keys; LLaVA's has all of CLIP's and SigLIP's, and padding.
_PREPARATION = (
    *("do_convert_rgb", "do_pad", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def vision_config(part: Path, encoder: str) -> PreTrainedConfig:
    """The vision configuration of a part or of a model folder.

    Raises PartError if it is of another family.
    """
    kind = ENCODERS[encoder]
    config = load_auto(AutoConfig, part)
    half: PreTrainedConfig = getattr(config, "vision_config", config)
    found = half.model_type if config.model_type in composite_model_types() else config.model_type
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
    kind = ENCODERS[encoder]
    if load_auto(AutoConfig, part).model_type in composite_model_types():
        return load_submodel(
            kind.model_class(), part, "vision_tower", vision_config(part, encoder), dtype=dtype
        )
    return load_weights(kind.model_class(), part, dtype=dtype)


def num_patches(config: PreTrainedConfig) -> int:
    """Number of patches per image: (image size / patch size) squared."""
    return int((config.image_size // config.patch_size) ** 2)


def build_image_processor(part: Path, encoder: str) -> LlavaImageProcessorPil:
    """Image processor that pads to a square, resizes and normalizes.

    Padding, since a center crop would lose the sides. Sizes and statistics are those the part was
    trained with; a model folder keeps its own processor.
    """
    if load_auto(AutoConfig, part).model_type in composite_model_types():
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
