"""CLIP (Radford et al. 2021, arXiv:2103.00020), with a class token before the patches."""

from __future__ import annotations

from typing import Any

from .base import EncoderKind


def _model_class() -> Any:
    from transformers import CLIPVisionModel

    return CLIPVisionModel


ENCODER = EncoderKind(
    _model_class,
    model_types=("clip", "clip_vision_model"),
    extra_rows=1,
    processors=("CLIPProcessor",),
    image_processors=("CLIPImageProcessor", "CLIPFeatureExtractor"),
    stored_prefix="vision_model.",
    published_prefix="vision_model.",
    # CLIP's text encoder, and what compares the two
    unused_weights=("text_model.", "text_projection.", "visual_projection.", "logit_scale"),
)
