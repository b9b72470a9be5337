"""What a run says of held-out questions while it trains, and that asking them changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.recipe import load_recipe
from phisense.training import Training

from ..tiny import make_root

CHANGES = (
    "train.align.max_steps=4",
    "train.instruct.max_steps=10",
    "train.log_every=1",
    "train.lora.dropout=0.1",
    "features.folder=features/tiny",
)


@pytest.fixture
def root(tmp_path: Path, verb: Any) -> Path:
    make_root(tmp_path)
    verb("features", tmp_path / "tiny.yaml")
    return tmp_path


def train(root: Path, name: str, *changes: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The rows that were reported of held-out questions, and the weights."""
    told: list[dict[str, Any]] = []
    Training(load_recipe(root / "tiny.yaml", (*CHANGES, f"name={name}", *changes)), told.append, device="cpu", **options)()
    return [row for row in told if "held_out" in row], load_file(root / "runs" / name / "adapter" / "adapter_model.safetensors")


def test_it_asks_and_changes_nothing(root: Path) -> None:
    asked, watched = train(root, "watched", judge=lambda said, right: True)
    silent, alone = train(root, "alone")
    assert [(row["stage"], row["step"]) for row in asked] == [
        *(("align", step) for step in (1, 2, 3, 4)),
        *(("instruct", step) for step in (2, 5, 8, 10)),
    ]
    assert all(row["held_out"] == 1.0 and row["questions"] == 12 and len(row["answers"]) == 3 for row in asked)
    assert {one["right"] for row in asked for one in row["answers"]} <= {"Red.", "Green.", "Blue.", "White."}
    assert silent == []
    assert all(torch.equal(watched[name], alone[name]) for name in watched), "also the dropout's random numbers are the same"
    written = [json.loads(line) for line in (root / "runs" / "watched" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written if "held_out" in row] == [1, 2, 3, 4, 2, 5, 8, 10]
    assert all(row["memory"] > 1e8 for row in written)


def test_the_judge_decides(root: Path) -> None:
    (row,), _ = train(
        root, "judged", "train.align=null", "train.watch.times=1", "train.watch.questions=4", judge=lambda said, right: "Red." in right
    )
    assert (row["held_out"], row["questions"]) == (0.25, 4)
    facts = json.loads((root / "runs" / "judged" / "train.json").read_text())
    assert facts["stages"]["instruct"]["held_out"] == 0.25


def test_what_cannot_be_asked_is_not(root: Path) -> None:
    rows = json.loads((root / "rows.json").read_text())
    for row in rows:
        row["image"] = "not-encoded.png"
    rows[0]["conversations"][1]["value"] = "A long description " * 8
    (root / "held-out.json").write_text(json.dumps(rows))
    for changes in (
        ("train.watch.questions=0",),
        ("data.held_out=[]",),
        ("data.held_out=[held-out.json]",),
        ("data.held_out=[none.json]",),
    ):
        assert train(root, "unasked", *changes, judge=lambda said, right: True)[0] == []
