"""Renamed keys: a recipe is told the new name, the record of an earlier run is translated."""

from __future__ import annotations

from typing import Any

from .. import safe_parsing
from .fields import RecipeSection
from .lookup import section_at, sections_in
from .recipe import Recipe
from .sections import Evaluate, Features, Merge
from .stages import Lora, Stage, Train

#: Renamed keys, by section. In a recipe they are rejected, and the message gives the new one; in
#: the record of an earlier run they are translated.
RENAMED: dict[type[RecipeSection], dict[str, str]] = {
    Features: {"batch": "batch_size", "shard": "shard_size"},
    Lora: {"targets": "target_modules"},
    Stage: {
        "batch": "batch_size",
        "micro_batch": "micro_batch_size",
        "warm_up": "warmup_ratio",
        "clip": "max_grad_norm",
        "length": "max_length",
    },
    Train: {
        "quantise": "quantize",
        "checkpointing": "gradient_checkpointing",
        "watch": "eval",
    },
    Merge: {
        "most_delta_loss": "max_delta_loss",
        "least_same_answers": "min_same_answers",
    },
    Evaluate: {"batch": "batch_size"},
}

#: Values that were defaults, by section and key: in the record of an earlier run they say what the
#: default of today says.
_FORMER_DEFAULTS: dict[type[RecipeSection], dict[str, object]] = {
    Lora: {"target_modules": r".*language_model.*\.(qkv_proj|o_proj|gate_up_proj|down_proj)"},
}


def successor(loc: tuple[int | str, ...]) -> str | None:
    """The full new name of a renamed key."""
    section = section_at(loc[:-1])
    for owner, table in RENAMED.items():
        if issubclass(section, owner) and loc[-1] in table:
            return safe_parsing.truncate(".".join(map(str, (*loc[:-1], table[str(loc[-1])]))))
    return None


def with_current_keys(raw: Any, section: type[RecipeSection] | None = None) -> Any:
    """A recipe as it was recorded, with its keys under the names of today, and with the defaults of
    today where it had those of its time.
    """
    if not isinstance(raw, dict):
        return raw
    section = section or Recipe
    renamed = {
        old: new
        for owner, table in RENAMED.items()
        if issubclass(section, owner)
        for old, new in table.items()
    }
    former = {
        key: value
        for owner, table in _FORMER_DEFAULTS.items()
        if issubclass(section, owner)
        for key, value in table.items()
    }
    made = {}
    for key, value in raw.items():
        name = renamed.get(key, key)
        if name in section.model_fields:
            inner = next(sections_in(section.model_fields[name].annotation), None)
            if inner is not None and isinstance(value, dict):
                # a mapping of names to sections has sections one level deeper
                named = getattr(section.model_fields[name].annotation, "__origin__", None) is dict
                value = (
                    {one: with_current_keys(its, inner) for one, its in value.items()}
                    if named
                    else with_current_keys(value, inner)
                )
        if name in former and value == former[name]:
            value = section.model_fields[name].default
        made[name] = value
    return made
