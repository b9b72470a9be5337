"""Which section a location in a recipe belongs to, and its keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .fields import RecipeSection
from .recipe import Recipe


def keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at a location."""
    return list(section_at(loc).model_fields)


def section_at(loc: tuple[int | str, ...]) -> type[RecipeSection]:
    """The section that a location in a recipe belongs to."""
    section: type[RecipeSection] = Recipe
    for step in loc:
        if step in section.model_fields:  # else a list index, or a name that the user gave
            section = next(sections_in(section.model_fields[str(step)].annotation), section)
    return section


def sections_in(annotation: Any) -> Iterator[type[RecipeSection]]:
    """The section types that a key may hold: directly, in a union, a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, RecipeSection):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from sections_in(inner)
