"""`mlp`: two layers. With a pool the first reads the concatenated patches, and begins as the
average of one layer over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import NativeModel, ProjectorKind, nested_refusal
from .native import AYA_VISION, LLAVA, aya_vision_keys, llava_keys


class _MLP:
    natives = (LLAVA, AYA_VISION)

    def refusal(self, pool: int, nested: Sequence[int]) -> str | None:
        return nested_refusal(pool, nested)

    def native(self, pool: int) -> NativeModel:
        return AYA_VISION if pool > 1 else LLAVA

    def keys(self, pool: int, patches: int, hidden: int) -> Mapping[str, Any]:
        return aya_vision_keys(pool, hidden) if pool > 1 else llava_keys("gelu", patches)

    def initialize(self, projector: Any, config: Any) -> None:
        from .image_tokens import merged_side
        from .weights import xavier_uniform

        xavier_uniform(projector)
        joined = merged_side(config) ** 2
        if joined > 1:
            first = projector.linear_1.weight
            one = first.data.unflatten(1, (joined, -1)).mean(1) * joined**0.5
            first.data = (one / joined).repeat(1, joined)


PROJECTOR: ProjectorKind = _MLP()
