"""Validation errors as sentences."""

from __future__ import annotations

import difflib

from pydantic import ValidationError

from .. import safe_parsing
from ..errors import RecipeError
from .lookup import keys_at
from .renamed import successor


def explain(error: ValidationError, name: str) -> RecipeError:
    """The first validation error as one sentence: where, what, and the nearest key for a misspelled
    one.
    """
    first = error.errors()[0]
    where = safe_parsing.truncate(".".join(str(step) for step in first["loc"]))
    if first["type"] == "extra_forbidden":
        if new := successor(first["loc"]):
            return RecipeError(f"{name}: {where} is not a key; it is now {new}", do="Rename it")
        known = keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(
            safe_parsing.truncate(str(first["loc"][-1])), known, n=1, cutoff=0.0
        )
        return RecipeError(
            f"{name} has an unknown key {where}",
            wanted=f"one of {', '.join(known)}",
            do=f"Did you mean {near[0]}?" if near else None,
        )
    if first["type"] == "missing":
        return RecipeError(f"{name} lacks the key {where}")
    said = first["msg"].removeprefix("Value error, ")
    # a whole section would not help
    got = None if isinstance(first["input"], dict) else safe_parsing.truncate(repr(first["input"]))
    return RecipeError(
        f"{name}: {f'{where} is wrong: ' if where else ''}{said[0].lower()}{said[1:]}", got=got
    )
