"""`phisense compare`, on parts with random weights: a row for each variant, nothing made twice, a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import RecipeError, UsageError

from .tiny import make_root

POOLED, NESTED = "projector.pool=2 train.lora.rank=2", "projector.nested=[1,2]"


def compare(root: Path, verb: Any, *tries: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = verb("compare", root / "tiny.yaml", *(word for one in tries for word in ("--try", one)))["rows"]
    return rows


@pytest.mark.usefixtures("compute")
def test_variants_beside_the_recipe(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    rows = compare(tmp_path, verb, POOLED, NESTED)
    assert [(row["variant"], row["tokens"]) for row in rows] == [("as it is", 16), (POOLED, 4), (NESTED, 16), (NESTED, 4)]
    assert all(0 <= row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"] <= 1 for row in rows)
    assert rows[1]["trainable"] < rows[0]["trainable"] + rows[2]["trainable"]
    folder = tmp_path / "comparisons" / "tiny"
    assert json.loads((folder / "comparison.json").read_text()) == rows
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "features").iterdir())) == 1  # all three see alike

    made = [path.stat().st_mtime_ns for path in sorted((tmp_path / "models").glob("*/manifest.json"))]
    assert compare(tmp_path, verb, POOLED, NESTED) == rows
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "models").glob("*/manifest.json"))] == made
    changed = compare(tmp_path, verb, "train.lora.rank=3")  # the control: in another variant's place it is made anew
    assert changed[1]["trainable"] != rows[1]["trainable"]


def test_a_variant_that_cannot_be_is_refused_before_any_is_trained(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    with pytest.raises(RecipeError, match="unknown key projector.pol"):
        compare(tmp_path, verb, "projector.pol=2")
    with pytest.raises(UsageError, match="there is nothing to compare by"):
        verb("compare", tmp_path / "tiny.yaml", "--set", "data.held_out=[]", "--try", POOLED)
    assert not (tmp_path / "runs").exists()
