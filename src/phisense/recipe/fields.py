"""The base class of the sections of a recipe, and types of values that several of them use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from .. import safe_patterns

#: No key needs a larger number, and larger ones overflow in libraries.
MAX_NUMBER = 2**31 - 1


def _check_pattern(pattern: str | None) -> str | None:
    if pattern is not None:
        safe_patterns.compile_safe_pattern(pattern)
    return pattern


#: A valid regular expression that matches in bounded time, or None.
Pattern = Annotated[str | None, AfterValidator(_check_pattern)]


@dataclass(frozen=True)
class OneOf:
    """The type of a key that names an implementation of a seam: one of the names in its table.

    The table is read when a recipe is, so that a name that was added counts.
    """

    table: Mapping[str, str]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.table:
            return value
        *others, last = map(repr, self.table)
        known = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"input should be {known}")


class RecipeSection(BaseModel):
    """Base class of the sections. Every number is finite and at most `MAX_NUMBER`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise ValueError(f"a number must lie within ±{MAX_NUMBER:,}")
        return value


def as_tuple(value: Any) -> Any:
    """Accept a single value for a list, as `--set data.align=a.json` gives it."""
    return (value,) if isinstance(value, (str, Path, dict)) else value


def _check_name(value: Any) -> Any:
    """Reject names that are not a plain folder name: folders of this name are written and replaced,
    so it must not lead anywhere else.
    """
    if (
        not isinstance(value, str)
        or len(value) > 100
        or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value)
    ):
        raise ValueError(
            "a name begins with a letter or a digit, and has at most 100 of A-Z, a-z, 0-9, dot, -"
            " and _"
        )
    return value


Name = Annotated[str, BeforeValidator(_check_name)]
