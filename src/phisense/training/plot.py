"""Plot of the loss curves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson

from .. import artifacts


def plot_losses(metrics: Path, out: Path) -> None:
    """One panel per stage: logged losses, their running mean, and held-out accuracy with and
    without images, if evaluated.
    """
    from matplotlib.figure import Figure  # a second to import, and only needed here

    rows = [orjson.loads(line) for line in metrics.read_bytes().splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows)) or ["no stage"]
    figure = Figure(figsize=(5.2 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        steps, losses = _series(rows, stage, "loss")
        smooth: list[float] = []
        for loss in losses:
            smooth.append(loss if not smooth else 0.8 * smooth[-1] + 0.2 * loss)
        axes.plot(steps, losses, color="#9db4c0", linewidth=1, label="logged")
        axes.plot(steps, smooth, color="#1f5f8b", linewidth=2, label="running mean")
        axes.set(title=stage, xlabel="optimizer step", ylabel="loss per supervised token")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        asked, accuracy = _series(rows, stage, "held_out")
        if asked:
            right = axes.twinx()
            right.plot(asked, accuracy, color="#c8553d", marker="o", linewidth=1.5)
            blind = [
                (step, share)
                for step, share in zip(*_series(rows, stage, "blind"), strict=True)
                if share is not None
            ]
            right.set(ylabel="held-out accuracy", ylim=(0, 1))
            axes.plot([], [], color="#c8553d", marker="o", linewidth=1.5, label="held-out accuracy")
            if blind:
                dashed = {"color": "#7a4a3d", "marker": "s", "linewidth": 1, "linestyle": "--"}
                right.plot(*zip(*blind, strict=True), **dashed)
                axes.plot([], [], label="without the picture", **dashed)
        axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    artifacts.write_bytes(out, data.getvalue())


def _series(rows: list[dict[str, Any]], stage: str, key: str) -> tuple[list[int], list[float]]:
    its = [row for row in rows if row["stage"] == stage and key in row]
    return [row["step"] for row in its], [row[key] for row in its]
