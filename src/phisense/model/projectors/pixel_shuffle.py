"""`pixel_shuffle`: as `mlp` with a pool, but the first layer begins at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import NativeModel, ProjectorKind, nested_refusal
from .native import AYA_VISION, aya_vision_keys


class _PixelShuffle:
    natives = (AYA_VISION,)

    def refusal(self, pool: int, nested: Sequence[int]) -> str | None:
        if pool == 1:
            return "pixel_shuffle needs pool 2 or 3"
        return nested_refusal(pool, nested)

    def native(self, pool: int) -> NativeModel:
        return AYA_VISION

    def keys(self, pool: int, patches: int, hidden: int) -> Mapping[str, Any]:
        return aya_vision_keys(pool, hidden)

    def initialize(self, projector: Any, config: Any) -> None:
        from .weights import xavier_uniform

        xavier_uniform(projector)


PROJECTOR: ProjectorKind = _PixelShuffle()
