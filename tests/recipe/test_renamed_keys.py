"""A key that has another name now is rejected, and the message names the new one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from phisense.errors import RecipeError
from phisense.recipe import (
    SHIPPED,
    Evaluate,
    Features,
    FurtherStage,
    Lora,
    Merge,
    Stage,
    Train,
    load_recipe,
)
from phisense.recipe.renamed import RENAMED

PLACES = {
    Features: ("features",),
    Lora: ("train.lora",),
    Stage: ("train.align", "train.instruct", "train.further.more"),
    Train: ("train",),
    Merge: ("merge",),
    Evaluate: ("evaluate",),
}
CASES = [
    (f"{place}.{old}", f"{place}.{new}")
    for section, table in RENAMED.items()
    for place in PLACES[section]
    for old, new in table.items()
]
FURTHER = "train.further={more: {data: [a.json]}}"


def test_the_table_is_whole_and_leads_to_keys_that_exist() -> None:
    assert set(PLACES) == set(RENAMED)
    assert len(CASES) >= 24
    for section, table in RENAMED.items():
        assert set(table.values()) <= set(section.model_fields)
        assert not set(table) & set(section.model_fields)
    assert issubclass(FurtherStage, Stage)


@pytest.mark.parametrize(("old", "new"), CASES)
def test_an_old_key_names_its_successor(old: str, new: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("practice", (FURTHER, f"{old}=1"))
    assert f"{old} is not a key; it is now {new}. Rename it." in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("old", "new"), CASES)
def test_so_it_does_in_a_file_such_as_the_recipe_of_an_earlier_run(
    old: str, new: str, tmp_path: Path
) -> None:
    raw = yaml.safe_load((SHIPPED / "practice.yaml").read_text())
    raw["train"]["further"] = {"more": {"data": ["a.json"]}}
    section = raw
    *steps, last = old.split(".")
    for step in steps:
        section = section[step]
    section[last] = section.pop(new.rpartition(".")[2], 1)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: {old} is not a key; it is now {new}. Rename it."


def test_a_name_of_one_section_is_no_successor_in_another() -> None:
    with pytest.raises(RecipeError, match=r"unknown key merge\.batch; .*Did you mean"):
        load_recipe("practice", ("merge.batch=1",))
