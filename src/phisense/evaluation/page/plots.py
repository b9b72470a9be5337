"""Plots as SVG inside the page: its text is text, its colours are the page's variables, so it follows into the dark and onto paper.

Series differ in lightness and in hatching or in the shape of their marks, so that they can be told apart without colours.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, TypeGuard

from .words import number

LONGEST = 30  # characters of a name
WIDTH = 5.0  # inches: about a phone's, so that there its text is as large as the page's
_INK, _FAINT, _LINE, _PAPER = "#010101", "#020202", "#030303", "#040404"
_SERIES = ("#0a0a00", "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05")
_VARIABLES = {_INK: "ink", _FAINT: "faint", _LINE: "line", _PAPER: "paper", **{colour: f"s{i}" for i, colour in enumerate(_SERIES)}}
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo")
_MARKS = "oDs^vP"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "phisense",
    "font.family": "sans-serif",
    "text.parse_math": False,  # names come from data
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "xtick.labelcolor": _FAINT,
    "ytick.color": _LINE,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "hatch.color": _PAPER,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Figure = dict[str, float]  # value, low, high


def bars(rows: Sequence[tuple[str, Sequence[Figure | None]]], series: Sequence[str], what: str) -> str:
    """For each of `rows` a bar for each of `series`, with its interval and its value. `what` is measured. One series has many colours."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        plot, axes = _empty(0.75 + 0.26 * sum(len(its) for _, its in rows) + 0.12 * len(rows))
        at, ticks = 0.0, []
        for row, (_, its) in enumerate(rows):
            ticks.append(at + (len(its) - 1) / 2)
            for i, figure in enumerate(its):
                if _known(figure):
                    _bar(axes, at, figure, i if len(series) > 1 else row)
                at += 1
            at += 0.6 if len(series) > 1 else 0.1
        axes.set_yticks(ticks, [_short(name) for name, _ in rows])
        axes.invert_yaxis()
        _scale(axes, [one for _, its in rows for one in its if one and _known(one)])
        axes.set_xlabel(what)
        if len(series) > 1:
            handles = [_patch(i) for i in range(len(series))]
            plot.legend(
                handles,
                [_short(name) for name in series],
                loc="outside upper center",
                ncols=min(3, len(series)),
                handlelength=1.6,
                columnspacing=1.2,
            )
        return _svg(plot)


def marks(rows: Sequence[tuple[str, Sequence[Figure | None]]], series: Sequence[str], what: str) -> str:
    """For each of `rows` a mark for each of `series` on one line, with its interval: many kinds of question in little room."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        plot, axes = _empty(0.95 + 0.34 * len(rows))
        for i, name in enumerate(series):
            places = [at + (i - (len(series) - 1) / 2) * 0.2 for at in range(len(rows))]
            known = [(place, its[i]) for place, (_, its) in zip(places, rows, strict=True) if _known(its[i])]
            values = [one["value"] for _, one in known if one]
            lows = [_below(one) for _, one in known if one]
            highs = [_above(one) for _, one in known if one]
            axes.errorbar(
                values, [place for place, _ in known], xerr=[lows, highs], fmt=_MARKS[i % len(_MARKS)], color=_colour(i), markersize=5,
                elinewidth=1.2, label=_short(name), markerfacecolor=_colour(i) if i % 2 == 0 else _PAPER,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        _scale(axes, [one for _, its in rows for one in its if one and _known(one)], room=1.02)
        axes.set_xlabel(what)
        if len(series) > 1:
            plot.legend(loc="outside upper center", ncols=min(3, len(series)), columnspacing=1.2)
        return _svg(plot)


def curve(stage: dict[str, Any], title: str) -> str:
    """The logged losses of a stage, their running mean, and the accuracy on held-out questions if some were asked."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        plot, axes = _empty(2.9)
        steps, losses = stage["step"], stage["loss"]
        smooth: list[float] = []
        new = 1 / max(2.0, len(losses) / 12)
        for loss in losses:
            smooth.append(loss if not smooth else (1 - new) * smooth[-1] + new * loss)
        axes.plot(steps, losses, color=_colour(2), linewidth=1, label="loss, as logged")
        axes.plot(steps, smooth, color=_colour(0), linewidth=2, label="running mean")
        axes.set(title=title, xlabel="optimizer step", ylabel="loss per supervised token")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_tick_params(labelcolor=_FAINT)
        axes.grid()
        asked = stage.get("held_out") or {}
        if asked.get("step"):
            right = axes.twinx()
            right.spines.right.set_visible(True)
            right.plot(asked["step"], asked["accuracy"], color=_colour(1), marker="o", linestyle="--", linewidth=1.5)
            if asked.get("blind"):
                right.plot(asked["step"], asked["blind"], color=_colour(3), marker="s", linestyle=":", linewidth=1.5)
                axes.plot([], [], color=_colour(3), marker="s", linestyle=":", linewidth=1.5, label="without the picture")
            right.set(ylabel="held-out accuracy", ylim=(0, 1))
            right.yaxis.set_tick_params(labelcolor=_FAINT)
            axes.plot([], [], color=_colour(1), marker="o", linestyle="--", linewidth=1.5, label="held-out accuracy")
        plot.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
        return _svg(plot)


def _empty(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas  # a second to import, and only needed here

    plot = Canvas(figsize=(WIDTH, height), layout="constrained")
    return plot, plot.add_subplot()


def _bar(axes: Any, at: float, figure: Figure, series: int) -> None:
    around = [[_below(figure)], [_above(figure)]]
    axes.barh(
        at, figure["value"], height=0.82, color=_colour(series), edgecolor=_PAPER, linewidth=0, hatch=_HATCHES[series % len(_HATCHES)]
    )
    axes.errorbar(figure["value"], at, xerr=around, fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5)
    axes.annotate(
        number(figure["value"]),
        (max(figure["high"], figure["value"]), at),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _known(figure: Figure | None) -> TypeGuard[Figure]:
    return figure is not None and all(figure[key] is not None and math.isfinite(figure[key]) for key in ("value", "low", "high"))


def _below(figure: Figure) -> float:
    """An interval's end may lie a rounding on the wrong side of its figure, or more where drawing anew is biased."""
    return max(0.0, figure["value"] - figure["low"])


def _above(figure: Figure) -> float:
    return max(0.0, figure["high"] - figure["value"])


def _patch(series: int) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=_colour(series), edgecolor=_PAPER, linewidth=0, hatch=_HATCHES[series % len(_HATCHES)])


def _scale(axes: Any, figures: Sequence[Figure], room: float = 1.13) -> None:
    """From zero to one for shares, else as far as the figures go, with room for the values written behind the bars."""
    most = max((one["high"] for one in figures), default=1.0)
    top = 1.0 if 0.25 < most <= 1.0 or most <= 0 else most
    axes.set_xlim(min(0.0, min((one["low"] for one in figures), default=0.0)), top * room)
    if top == 1.0:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _colour(series: int) -> str:
    return _SERIES[series % len(_SERIES)]


def _svg(plot: Any) -> str:
    """The figure as an element of HTML: no prologue, no names of namespaces, no metadata, the page's variables for the colours."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font which only measures the text lacks; the reader's has them
        plot.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    whole = buffer.getvalue()
    made = whole[whole.index("<svg") :]
    made = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", made, flags=re.S)
    made = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", made)
    made = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", made, count=1)
    made = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", made, count=1)
    made = re.sub(r'<g id="[A-Za-z]\w*?(?:_|\.)\w*"', "<g", made).replace("xlink:href", "href")
    made = re.sub(r"font-family: [^;\"]*;?\s?", "", made)  # the page's own
    for colour, variable in _VARIABLES.items():
        made = made.replace(colour, f"var(--{variable})")
    return re.sub(r">\s+<", "><", made.strip()).replace("\n", " ").replace("://", ":&#8203;//")
