"""SigLIP (Zhai et al. 2023, arXiv:2303.15343), without a class token."""

from __future__ import annotations

from typing import Any

from .base import EncoderKind


def _model_class() -> Any:
    from transformers import SiglipVisionModel

    return SiglipVisionModel


ENCODER = EncoderKind(
    _model_class,
    model_types=("siglip", "siglip_vision_model"),
    extra_rows=0,
    processors=("SiglipProcessor",),
    image_processors=("SiglipImageProcessor",),
    stored_prefix="vision_model.",
    published_prefix="vision_model.",
    # SigLIP's text encoder, and what compares the two
    unused_weights=("text_model.", "logit_scale", "logit_bias"),
)
