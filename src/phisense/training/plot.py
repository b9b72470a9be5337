"""The loss curves as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import orjson

from .. import artefact


def plot_losses(metrics: Path, out: Path) -> None:
    """One panel a stage: the logged losses, and their running mean."""
    from matplotlib.figure import Figure  # a second to import, and only needed here

    rows = [orjson.loads(line) for line in metrics.read_bytes().splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows)) or ["no stage"]
    figure = Figure(figsize=(5.2 * len(stages), 3.6), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        steps = [row["step"] for row in rows if row["stage"] == stage]
        losses = [row["loss"] for row in rows if row["stage"] == stage]
        smooth: list[float] = []
        for loss in losses:
            smooth.append(loss if not smooth else 0.8 * smooth[-1] + 0.2 * loss)
        axes.plot(steps, losses, color="#9db4c0", linewidth=1, label="logged")
        axes.plot(steps, smooth, color="#1f5f8b", linewidth=2, label="running mean")
        axes.set(title=stage, xlabel="optimizer step", ylabel="loss per supervised token")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    artefact.write_bytes(out, data.getvalue())
