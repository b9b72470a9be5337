"""The plot of a run's loss curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from phisense.training.plot import plot_losses

STEPS = [
    {"stage": stage, "step": step, "loss": 3.0 / step}
    for stage in ("align", "instruct")
    for step in (1, 2, 3)
]
LOOKS = [
    {"stage": "align", "step": 3, "held_out": 0.25, "blind": None},
    {"stage": "instruct", "step": 3, "held_out": 0.75, "blind": 0.5},
]


@pytest.mark.parametrize(
    ("rows", "panels"), [([], 1), (STEPS[:3], 1), (STEPS, 2), ([*STEPS, *LOOKS], 2)]
)
def test_a_panel_for_each_stage(tmp_path: Path, rows: list[dict[str, object]], panels: int) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.size == (int(5.2 * panels * 130), int(3.6 * 130))
        assert len(drawn.convert("RGB").getcolors(2**20) or ()) > 10
