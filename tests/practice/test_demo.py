"""The road, walked by the demo with fewer scenes than a user's: every figure is there, and each points the right way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_the_summary_has_every_figure(road: tuple[Path, dict[str, Any]]) -> None:
    root, summary = road
    assert json.loads((root / "summary.json").read_text()) == summary
    assert set(summary["seconds"]) == {"world", "check", "features", "train", "merge", "evaluate", "speech", "total"}
    assert set(summary["accuracy"]) == {"real", "unseen_combinations", "digits", "blind", "shuffled", "questions"}
    assert summary["accuracy"]["questions"]["heldout"] == 1200


def test_fewer_scenes_already_teach_it_to_look(road: tuple[Path, dict[str, Any]]) -> None:
    """The full demo's figures are in docs/benchmarks.md; with 1,300 scenes it answers 0.90 with the picture, 0.34 without."""
    _, summary = road
    accuracy = summary["accuracy"]
    assert accuracy["real"] >= 0.75
    assert accuracy["real"] >= max(accuracy["blind"], accuracy["shuffled"]) + 0.25
    assert accuracy["unseen_combinations"] >= 0.55
    assert max(accuracy["blind"], accuracy["shuffled"]) <= 0.5
    assert summary["looks"] == "looks"


def test_nothing_is_lost_and_nothing_is_invented(road: tuple[Path, dict[str, Any]]) -> None:
    _, summary = road
    assert summary["merge"]["delta_loss"] <= 0.002
    assert summary["merge"]["same_answers"] >= 0.995
    assert summary["merge"]["projector_change"] == 0.0
    assert summary["train"]["projector_change"] > 0
    assert summary["train"]["trainable"] == summary["train"]["trainable_expected"]
    assert summary["speech"]["wer"] <= 0.1
    assert summary["speech"]["recordings"] >= 30
    assert summary["speech"]["answer_accuracy"] >= 0.5
