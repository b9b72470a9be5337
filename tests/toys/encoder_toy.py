"""A ViT (Dosovitskiy et al. 2020, arXiv:2010.11929), which phisense does not have."""

from __future__ import annotations

from typing import Any

from phisense.vision.encoders.base import EncoderKind


def _model_class() -> Any:
    from transformers import ViTModel

    return ViTModel


ENCODER = EncoderKind(
    _model_class,
    model_types=("vit",),
    extra_rows=1,
    image_processors=("ToyImageProcessor",),
    stored_prefix="vit.",
)
