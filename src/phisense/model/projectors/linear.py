"""`linear`: LLaVA's projector without an activation between its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import NativeModel, ProjectorKind, nested_refusal
from .native import LLAVA, llava_keys


class _Linear:
    natives = (LLAVA,)

    def refusal(self, pool: int, nested: Sequence[int]) -> str | None:
        if pool > 1:
            return "a linear projector cannot pool: take kind mlp or pixel_shuffle"
        return nested_refusal(pool, nested)

    def native(self, pool: int) -> NativeModel:
        return LLAVA

    def keys(self, pool: int, patches: int, hidden: int) -> Mapping[str, Any]:
        return llava_keys("linear", patches)

    def initialize(self, projector: Any, config: Any) -> None:
        from .weights import xavier_uniform

        xavier_uniform(projector)


PROJECTOR: ProjectorKind = _Linear()
