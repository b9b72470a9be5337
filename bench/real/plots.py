"""Plots of the walk's figures for the documentation; nothing of the photographs is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .walk import Figures, Finished, Walk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A figure of an evaluation -> what the plot calls it.
ACCURACIES = {
    "ridge": "ridge on the features",
    "accuracy": "the model",
    "constant": "best constant",
    "shuffled": "another's image",
    "blind": "no image",
}
GROUPS = {"read": "read aloud", "talk": "spoken freely", "clips": "cut clips", "words": "words"}
TITLES = {"photographs": "photographs", "easy_vqa": "easy-VQA"}


def plot_all(walk: Walk, folder: Path) -> list[Path]:
    """Write a plot of each kind whose steps are finished; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    evaluated = {
        name: {**_figures(walk, f"{name}.probe"), **found}
        for name in TITLES
        if (found := _figures(walk, f"{name}.evaluate"))
    }
    if evaluated:
        written.append(_plot_accuracies(evaluated, folder / "real-parts-accuracy.png"))
    if heard := _figures(walk, "speech.english"):
        written.append(_plot_speech(heard, folder / "real-parts-speech.png"))
    return written


def _figures(walk: Walk, step: str) -> Figures:
    found = Finished.load(walk, step)
    return {} if found is None else found.figures


def _plot_accuracies(evaluated: dict[str, dict[str, object]], out: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 3 * len(evaluated), 2.6), layout="constrained")
    panels = figure.subplots(1, len(evaluated), sharey=True, squeeze=False)[0]
    for axes, (name, figures) in zip(panels, evaluated.items(), strict=True):
        shown = {label: figures[key] for key, label in ACCURACIES.items() if key in figures}
        _bars(axes, shown, percent=True)
        axes.set(xlabel=f"accuracy, {TITLES[name]}", xlim=(0, 1.12))
    figure.savefig(out, dpi=130)
    return out


def _plot_speech(figures: Figures, out: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axes = figure.subplots()
    _bars(axes, {label: figures[key] for key, label in GROUPS.items() if key in figures})
    axes.axvline(0.05, color="tab:orange", linewidth=1)
    axes.set(xlabel="word error rate; the line is what whole sentences must stay below")
    figure.savefig(out, dpi=130)
    return out


def _bars(axes: Axes, values: dict[str, object], *, percent: bool = False) -> None:
    numbers = [float(str(value)) for value in values.values()]
    bars = axes.barh(list(values), numbers, height=0.6)
    axes.bar_label(bars, [f"{one:.1%}" if percent else f"{one:.3f}" for one in numbers], padding=3)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
