"""Recipes: every key checked, mistakes named with the nearest right key."""

from __future__ import annotations

from pathlib import Path

import pytest

from phisense.errors import RecipeError
from phisense.recipe import SHIPPED, load_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.train.align is not None
    assert recipe.train.instruct.batch % recipe.train.instruct.micro_batch == 0


def test_changes_are_applied_and_typed() -> None:
    recipe = load_recipe("practice", ("train.instruct.epochs=2.5", "seed=7", "root=/somewhere"))
    assert (recipe.train.instruct.epochs, recipe.seed, recipe.root) == (2.5, 7, Path("/somewhere"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.instruct.epoch=2", r"unknown key train.instruct.epoch; .*Did you mean epochs\?"),
        ("projector.pol=2", r"unknown key projector.pol; .*Did you mean pool\?"),
        ("train.instruct.epochs=lots", "train.instruct.epochs is wrong: .*got 'lots'"),
        ("train.instruct.learning_rate=-1", "greater than 0; got -1"),
        ("projector.kind=resampler", "'linear', 'mlp' or 'pixel_shuffle'; got 'resampler'"),
        ("name.x=1", "name is a value, not a section"),
        ("seed", "--set takes key=value; got 'seed'"),
    ],
)
def test_each_mistake_is_a_sentence(change: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe("practice", (change,))
    assert caught.value.exit_code == 2


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe nope; wanted a YAML file or one of .*practice"):
        load_recipe("nope")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- a")
    with pytest.raises(RecipeError, match="got list; wanted a mapping"):
        load_recipe(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("name: c")
    with pytest.raises(RecipeError, match="lacks the key language"):
        load_recipe(tmp_path / "c.yaml")


def test_a_change_of_what_yaml_names_twice_changes_one(tmp_path: Path) -> None:
    text = (SHIPPED / "practice.yaml").read_text()
    align = next(line for line in text.splitlines() if line.strip().startswith("align: {"))
    shared = text.replace(align, align.replace("align: ", "align: &both ")).splitlines()
    lines = ["  instruct: *both" if line.strip().startswith("instruct: {") else line for line in shared]
    (tmp_path / "both.yaml").write_text("\n".join(lines).replace("../practice", str(SHIPPED.parent / "practice")))
    recipe = load_recipe(tmp_path / "both.yaml", ("train.instruct.batch=3",))
    assert recipe.train.align is not None
    assert (recipe.train.align.batch, recipe.train.instruct.batch) == (8, 3)
