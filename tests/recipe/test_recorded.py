"""A recipe that an earlier run recorded is read under the names of today; a user's is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from phisense.errors import RecipeError
from phisense.recipe import (
    load_recipe,
    load_recorded_recipe,
    shipped_recipes,
    with_current_keys,
)
from phisense.recipe.lookup import section_at
from phisense.recipe.renamed import RENAMED

FURTHER = "train.further={more: {data: [a.json], clip: 0.5}}"


def with_old_keys(raw: Any, loc: tuple[str, ...] = ()) -> Any:
    """As phisense 0.1 wrote it."""
    if not isinstance(raw, dict):
        return raw
    table = {
        new: old
        for owner, names in RENAMED.items()
        if issubclass(section_at(loc), owner) and loc != ("train", "further")
        for old, new in names.items()
    }
    return {table.get(key, key): with_old_keys(value, (*loc, key)) for key, value in raw.items()}


@pytest.mark.parametrize("name", shipped_recipes())
def test_what_a_run_recorded_before_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ("train.further={more: {data: [a.json], max_grad_norm: 0.5}}",))
    now = recipe.model_dump(mode="json")
    before = with_old_keys(now)
    assert before != now
    assert with_current_keys(before) == now
    assert with_current_keys(now) == now
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(before))
    assert load_recorded_recipe(path) == recipe
    with pytest.raises(RecipeError, match="is not a key; it is now"):
        load_recipe(path)


def test_changes_have_the_names_of_today(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(load_recipe("practice").model_dump(mode="json")))
    with pytest.raises(RecipeError, match=r"train\.further\.more\.clip is not a key"):
        load_recorded_recipe(path, (FURTHER,))


def test_what_is_no_section_stays_as_it_is() -> None:
    assert with_current_keys({"name": "batch", "data": {"images": ["clip"]}}) == {
        "name": "batch",
        "data": {"images": ["clip"]},
    }
    assert with_current_keys(None) is None
