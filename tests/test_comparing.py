"""`phisense compare`, on parts with random weights: a row for each variant, nothing made twice, a
plot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import PhisenseError, RecipeError, UsageError
from phisense.recipe import load_recipe

from .tiny import make_root

pytestmark = pytest.mark.slow

POOLED, NESTED = "projector.pool=2 train.lora.rank=2", "projector.nested=[1,2]"


def compare(root: Path, verb: Any, *tries: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = verb(
        "compare", root / "tiny.yaml", *(word for one in tries for word in ("--try", one))
    )["rows"]
    return rows


@pytest.mark.usefixtures("compute")
def test_variants_beside_the_recipe(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    rows = compare(tmp_path, verb, POOLED, NESTED)
    assert [(row["variant"], row["tokens"]) for row in rows] == [
        ("as it is", 16),
        (POOLED, 4),
        (NESTED, 16),
        (NESTED, 4),
    ]
    assert all(
        0 <= row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"] <= 1
        for row in rows
    )
    assert rows[1]["trainable"] < rows[0]["trainable"] + rows[2]["trainable"]
    folder = tmp_path / "comparisons" / "tiny"
    assert json.loads((folder / "comparison.json").read_text()) == rows
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "features").iterdir())) == 1  # all three see alike

    made = [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "models").glob("*/manifest.json"))
    ]
    assert compare(tmp_path, verb, POOLED, NESTED) == rows
    assert [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "models").glob("*/manifest.json"))
    ] == made
    # the control: in another variant's place it is made anew
    changed = compare(tmp_path, verb, "train.lora.rank=3")
    assert changed[1]["trainable"] != rows[1]["trainable"]


def test_a_variant_that_cannot_be_is_refused_before_any_is_trained(
    tmp_path: Path, verb: Any
) -> None:
    make_root(tmp_path)
    with pytest.raises(RecipeError, match="unknown key projector.pol"):
        compare(tmp_path, verb, "projector.pol=2")
    with pytest.raises(UsageError, match="there is nothing to compare by"):
        verb("compare", tmp_path / "tiny.yaml", "--set", "data.held_out=[]", "--try", POOLED)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.instruct=[lost.json]", "lost.json"),
        ("train.instruct.max_length=16", "is too long"),
        ("train.lora.target_modules=.*wqkv", "the LoRA pattern matches the wrong modules"),
        ("projector.pool=3", "3x3 pooling needs"),
        ("vision.layer=-9", "the vision part has no such layer"),
        ("data.held_out=[lost.json]", "lost.json"),
        ("train.report_to=[neptune]", "not installed, neptune"),
        ("vision.part=./lost", "lost"),
    ],
)
def test_a_variant_that_cannot_be_trained_is_told_before_the_first_is(
    tmp_path: Path, verb: Any, change: str, said: str
) -> None:
    """Each is good as a recipe; what it names is not there, or does not fit."""
    make_root(tmp_path)
    with pytest.raises(PhisenseError, match=said) as caught:
        compare(tmp_path, verb, POOLED, change)
    assert str(caught.value).startswith(f"{change}: ")
    for made in ("runs", "features", "models", "comparisons"):
        assert not (tmp_path / made).exists()


def test_pictures_of_a_later_variant_are_encoded_before_the_first_is_trained(
    tmp_path: Path, verb: Any
) -> None:
    make_root(tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    (tmp_path / "more.json").write_text(
        json.dumps([*rows, {**rows[0], "id": "torn", "image": "torn.png"}])
    )
    (tmp_path / "images" / "torn.png").write_bytes(
        (tmp_path / "images" / "red.png").read_bytes()[:60]
    )
    with pytest.raises(PhisenseError, match="torn.png"):
        compare(tmp_path, verb, "data.instruct=[more.json]")
    assert not (tmp_path / "runs").exists()


def test_data_that_is_rendered_alike_is_read_once(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phisense.training import preflight

    make_root(tmp_path)
    built: list[int] = []
    init = preflight.Samples.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        built.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(preflight.Samples, "__init__", counted)
    known: preflight.RowCounts = {}
    of_training = (
        "lora.rank=2",
        "instruct.learning_rate=0.5",
        "instruct.warmup_ratio=0.5",
        "align.batch_size=2",
        "align.micro_batch_size=1",
    )
    for change in (
        "seed=0",
        "features.dtype=float32",
        *(f"train.{setting}" for setting in of_training),
    ):
        preflight.check_variant(load_recipe(tmp_path / "tiny.yaml", (change,)), cache=known)
    assert len(built) == 2, "two stages, of one recipe"
    still = tuple(
        f"train.{stage}.{setting}"
        for stage in ("align", "instruct")
        for setting in ("max_steps=1", "warmup_ratio=0.5")
    )
    with pytest.raises(
        PhisenseError,
        match="training would not move the projector; got 1 step in align, 1 step in instruct",
    ):
        preflight.check_variant(load_recipe(tmp_path / "tiny.yaml", still), cache=known)
    assert len(built) == 2, "what is asked of a variant is asked without its data, too"
    preflight.check_variant(load_recipe(tmp_path / "tiny.yaml", ("projector.pool=2",)), cache=known)
    assert len(built) == 4, "the control: with other slots they are rendered anew"
