"""RoPE scaling of a configuration, checked before a model computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import PartError
from ..families import FAMILIES


def check_rope(path: Path, judged: dict[str, Any], where: str) -> None:
    """Check the RoPE scaling: LongRoPE factors are first multiplied in the forward pass, so a list
    that is too short would fail only there.
    """
    for key in ("rope_parameters", "rope_scaling"):
        rope = judged.get(key)
        if not isinstance(rope, dict):
            continue
        heads, width = judged.get("num_attention_heads"), judged.get("hidden_size")
        share = rope.get("partial_rotary_factor", judged.get("partial_rotary_factor", 1.0))
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise unexpected_value_error(
                path, f"{where}{key}.partial_rotary_factor", share, "more than 0 and at most 1"
            )
        for name, value in rope.items():
            numbers = (
                value
                if isinstance(value, list)
                else [value]
                if isinstance(value, (int, float))
                else []
            )
            if not all(isinstance(one, (int, float)) and 0 < one <= 1e12 for one in numbers):
                raise unexpected_value_error(path, f"{where}{key}.{name}", value, "numbers above 0")
        kind = rope.get("rope_type", rope.get("type"))
        known = tuple(
            dict.fromkeys(name for family in FAMILIES.values() for name in family.rope_types)
        )
        if kind is not None and kind not in known:
            raise unexpected_value_error(
                path, f"{where}{key}.rope_type", kind, f"one of {', '.join(known)}"
            )
        for name in ("short_factor", "long_factor"):
            factors = rope.get(name)
            if factors is None or not isinstance(heads, int) or not isinstance(width, int):
                continue
            pairs = int(width // max(heads, 1) * share) // 2
            if not isinstance(factors, list) or len(factors) != pairs:
                got = f"{len(factors)} numbers" if isinstance(factors, list) else factors
                raise unexpected_value_error(
                    path,
                    f"{where}{key}.{name}",
                    got,
                    f"{pairs} numbers, one for each pair of a head's dimensions",
                )


def unexpected_value_error(path: Path, key: str, got: object, wanted: str) -> PartError:
    """The error for a value that no model has."""
    return PartError(
        f"{path} says what no model here says", got=f"{key} {str(got)[:120]}", wanted=wanted
    )
