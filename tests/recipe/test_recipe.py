"""Recipes: every key checked, mistakes named with the nearest right key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from phisense.errors import RecipeError
from phisense.recipe import SHIPPED, Recipe, load_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.train.align is not None
    assert recipe.train.instruct.batch_size % recipe.train.instruct.micro_batch_size == 0


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
    with pytest.raises(
        RecipeError, match=r"no recipe nope; wanted a YAML file or one of .*practice"
    ):
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
    lines = [
        "  instruct: *both" if line.strip().startswith("instruct: {") else line for line in shared
    ]
    (tmp_path / "both.yaml").write_text(
        "\n".join(lines).replace("../practice", str(SHIPPED.parent / "practice"))
    )
    recipe = load_recipe(tmp_path / "both.yaml", ("train.instruct.batch_size=3",))
    assert recipe.train.align is not None
    assert (recipe.train.align.batch_size, recipe.train.instruct.batch_size) == (8, 3)


@pytest.mark.parametrize(
    ("change", "of"),
    [
        ("data.align=x.json", lambda recipe: [one.path for one in recipe.data.align]),
        ("data.instruct=x.json", lambda recipe: [one.path for one in recipe.data.instruct]),
        ("data.held_out=x.json", lambda recipe: list(recipe.data.held_out)),
        ("data.images=x.json", lambda recipe: list(recipe.data.images)),
        (
            "data.align={path: x.json, weight: 2}",
            lambda recipe: [one.path for one in recipe.data.align if one.weight == 2],
        ),
        ("data.align=[x.json]", lambda recipe: [one.path for one in recipe.data.align]),
        (
            "train.further.more={data: x.json}",
            lambda recipe: [one.path for one in recipe.data_of("more")],
        ),
    ],
)
def test_one_where_a_list_is_wanted_is_a_list_of_one(
    tmp_path: Path, change: str, of: Callable[[Recipe], list[Path]]
) -> None:
    assert of(load_recipe("practice", (change,))) == [Path("x.json")]
    raw = yaml.safe_load((SHIPPED / "practice.yaml").read_text())
    key, _, value = change.partition("=")
    *sections, last = key.split(".")
    section = raw
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = yaml.safe_load(value)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    assert of(load_recipe(tmp_path / "own.yaml")) == [Path("x.json")]


@pytest.mark.parametrize(
    "change",
    [
        "data.align=7",
        "data.align=true",
        "data.images=null",
        "data.held_out=1.5",
        "data.align={x: 1}",
    ],
)
def test_what_is_no_path_is_still_refused(change: str) -> None:
    with pytest.raises(RecipeError, match="data"):
        load_recipe("practice", (change,))
