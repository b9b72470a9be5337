"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193), with a class token before the patches."""

from __future__ import annotations

from typing import Any

from .base import EncoderKind


def _model_class() -> Any:
    from transformers import Dinov2Model

    return Dinov2Model


ENCODER = EncoderKind(
    _model_class,
    model_types=("dinov2",),
    extra_rows=1,
    image_processors=("BitImageProcessor",),
    stored_prefix="dinov2.",
    unused_weights=("classifier.",),  # of a folder that was published to name objects
)
