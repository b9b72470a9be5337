"""LLaVA's projector with a ReLU, whose layers begin as orthogonal matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phisense.model.projectors.base import NativeModel, ProjectorKind, nested_refusal
from phisense.model.projectors.native import LLAVA, llava_keys


class _Orthogonal:
    natives = (LLAVA,)

    def refusal(self, pool: int, nested: Sequence[int]) -> str | None:
        return "a toy does not pool" if pool > 1 else nested_refusal(pool, nested)

    def native(self, pool: int) -> NativeModel:
        return LLAVA

    def keys(self, pool: int, patches: int, hidden: int) -> Mapping[str, Any]:
        return llava_keys("relu", patches)

    def initialize(self, projector: Any, config: Any) -> None:
        from torch import nn

        for linear in (projector.linear_1, projector.linear_2):
            nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(linear.bias)


PROJECTOR: ProjectorKind = _Orthogonal()
