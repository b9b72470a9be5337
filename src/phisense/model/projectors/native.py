"""The native models of the projectors here: LLaVA and Aya Vision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import NativeModel


def _llava() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration


def _aya_vision() -> Any:
    from transformers import AyaVisionForConditionalGeneration

    return AyaVisionForConditionalGeneration


LLAVA = NativeModel("llava", _llava, own_keys={"projector_hidden_act": "Set projector.kind"})
AYA_VISION = NativeModel(
    "aya_vision",
    _aya_vision,
    merged_side=lambda config: int(config.downsample_factor),
    own_keys={"downsample_factor": "Set projector.pool"},
)


def llava_keys(act: str, patches: int) -> Mapping[str, Any]:
    """Configuration keys of LLaVA's projector: two layers with the activation `act` between."""
    return {"projector_hidden_act": act, "image_seq_length": patches}


def aya_vision_keys(pool: int, hidden: int) -> Mapping[str, Any]:
    """Configuration keys of Aya Vision's projector: a SwiGLU as wide as the language model."""
    return {"downsample_factor": pool, "alignment_intermediate_size": 2 * hidden}
