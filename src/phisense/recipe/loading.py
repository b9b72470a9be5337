"""Reading recipes: files, shipped ones by name, records of earlier runs, and `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .. import safe_parsing
from ..errors import RecipeError
from .explain import explain
from .recipe import Recipe
from .renamed import with_current_keys

SHIPPED = Path(__file__).parents[1] / "recipes"


def load_recipe(
    source: str | Path, changes: Sequence[str] = (), *, root: str | Path | None = None
) -> Recipe:
    """Read a recipe file, or a shipped recipe by name.

    `changes` are `--set` arguments, such as `train.instruct.epochs=2`; `root` replaces the recipe's
    own root folder. Raises RecipeError for a recipe that does not exist or has a wrong key or
    value.
    """
    path = _find(source)
    return _resolved(path, _read(path), changes, root)


def load_recorded_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that a run recorded when it began, with `changes`. Keys that had other names then
    are read under those of today; such a file must not be edited, for the run's manifest names its
    content. Raises RecipeError as `load_recipe` does.
    """
    return _resolved(path, with_current_keys(_read(path)), changes, None)


def _read(path: Path) -> dict[str, Any]:
    raw = safe_parsing.read_yaml(path)
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{path} is not a recipe", got=type(raw).__name__, wanted="a mapping of sections"
        )
    return raw


def _resolved(
    path: Path, raw: dict[str, Any], changes: Sequence[str], root: str | Path | None
) -> Recipe:
    for change in changes:
        _apply(raw, change)
    if root is not None:
        raw["root"] = str(root)
    if str(raw.get("start", "")).startswith("."):
        raw["start"] = str((path.parent / raw["start"]).resolve())
    for part in ("language", "vision", "speech"):
        section = raw.get(part)
        if isinstance(section, dict) and str(section.get("part", "")).startswith("."):
            section["part"] = str((path.parent / section["part"]).resolve())
    return parse_recipe(raw, name=str(path))


def parse_recipe(raw: dict[str, Any], *, name: str = "the recipe") -> Recipe:
    """Validate a mapping as a recipe; `name` is its name in messages.

    Raises RecipeError with the nearest key or the valid range.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise explain(error, name) from error


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with phisense."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{Path(source).name.removesuffix('.yaml')}.yaml"
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    raise RecipeError(
        f"there is no recipe {source}",
        wanted=f"a YAML file or one of {', '.join(shipped_recipes())}",
    )


def _apply(raw: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise RecipeError(
            "--set takes key=value", got=repr(change), wanted="for example train.instruct.epochs=2"
        )
    at = raw
    *sections, last = key.split(".")
    for section in sections:
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            raise RecipeError(
                f"--set {key}: {section} is a value, not a section",
                wanted="a key such as train.instruct.epochs",
            )
    before = at.get(last)
    at[last] = safe_parsing.parse_yaml(value, f"the value of --set {safe_parsing.truncate(key)}")
    # a resolved recipe names the parts inside `start`, so they change with it
    if key == "start" and isinstance(before, str):
        for half in ("language", "vision"):
            its = raw.get(half)
            if isinstance(its, dict) and its.get("part") == before:
                its["part"] = at[last]
