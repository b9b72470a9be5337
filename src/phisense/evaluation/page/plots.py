"""Plots as inline SVG: text stays text, and colors are the page's CSS variables, so that plots
follow dark mode and print styles.

Series differ in lightness and in hatching or marker shape, so that they can be told apart without
color.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from .markup import format_number

if TYPE_CHECKING:
    from ...intervals import Interval
    from ..training_facts import LossCurve

MAX_NAME_CHARS = 30  # longer labels are cut
WIDTH = 5.0  # inches: about the width of a phone, where plot text is then as large as the page's
_INK, _FAINT, _LINE, _PAPER = "#010101", "#020202", "#030303", "#040404"
_SERIES = ("#0a0a00", "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05")
_VARIABLES = {
    _INK: "ink",
    _FAINT: "faint",
    _LINE: "line",
    _PAPER: "paper",
    **{colour: f"s{i}" for i, colour in enumerate(_SERIES)},
}
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo")
_MARKS = "oDs^vP"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "phisense",
    "font.family": "sans-serif",
    "text.parse_math": False,  # names come from data, and may contain $
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


def bar_plot(
    rows: Sequence[tuple[str, Sequence[Interval | None]]], series: Sequence[str], what: str
) -> str:
    """Bar plot: for each of `rows` one bar per series, with its interval and value. `what` labels
    the value axis. A single series colors its bars differently.
    """
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


def interval_plot(
    rows: Sequence[tuple[str, Sequence[Interval | None]]], series: Sequence[str], what: str
) -> str:
    """Interval plot: for each of `rows` one point per series on one line, with its interval;
    compact for many kinds of question.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        plot, axes = _empty(0.95 + 0.34 * len(rows))
        for i, name in enumerate(series):
            places = [at + (i - (len(series) - 1) / 2) * 0.2 for at in range(len(rows))]
            known = [
                (place, its[i])
                for place, (_, its) in zip(places, rows, strict=True)
                if _known(its[i])
            ]
            values = [one.value for _, one in known if one]
            lows = [_below(one) for _, one in known if one]
            highs = [_above(one) for _, one in known if one]
            axes.errorbar(
                values,
                [place for place, _ in known],
                xerr=[lows, highs],
                fmt=_MARKS[i % len(_MARKS)],
                color=_colour(i),
                markersize=5,
                elinewidth=1.2,
                label=_short(name),
                markerfacecolor=_colour(i) if i % 2 == 0 else _PAPER,
            )
        axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        _scale(axes, [one for _, its in rows for one in its if one and _known(one)], room=1.02)
        axes.set_xlabel(what)
        if len(series) > 1:
            plot.legend(loc="outside upper center", ncols=min(3, len(series)), columnspacing=1.2)
        return _svg(plot)


def loss_curve(stage: LossCurve, title: str) -> str:
    """The logged losses of a stage, their running mean, and the accuracy on held-out questions if
    it was evaluated.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        plot, axes = _empty(2.9)
        steps, losses = stage.steps, stage.losses
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
        asked = stage.held_out
        if asked.steps:
            right = axes.twinx()
            right.spines.right.set_visible(True)
            right.plot(
                asked.steps,
                asked.accuracy,
                color=_colour(1),
                marker="o",
                linestyle="--",
                linewidth=1.5,
            )
            if asked.blind:
                right.plot(
                    asked.steps,
                    asked.blind,
                    color=_colour(3),
                    marker="s",
                    linestyle=":",
                    linewidth=1.5,
                )
                axes.plot(
                    [],
                    [],
                    color=_colour(3),
                    marker="s",
                    linestyle=":",
                    linewidth=1.5,
                    label="without the picture",
                )
            right.set(ylabel="held-out accuracy", ylim=(0, 1))
            right.yaxis.set_tick_params(labelcolor=_FAINT)
            axes.plot(
                [],
                [],
                color=_colour(1),
                marker="o",
                linestyle="--",
                linewidth=1.5,
                label="held-out accuracy",
            )
        plot.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
        return _svg(plot)


def _empty(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas  # imported here because it takes a second

    plot = Canvas(figsize=(WIDTH, height), layout="constrained")
    return plot, plot.add_subplot()


def _bar(axes: Any, at: float, figure: Interval, series: int) -> None:
    around = [[_below(figure)], [_above(figure)]]
    axes.barh(
        at,
        figure.value,
        height=0.82,
        color=_colour(series),
        edgecolor=_PAPER,
        linewidth=0,
        hatch=_HATCHES[series % len(_HATCHES)],
    )
    axes.errorbar(
        figure.value, at, xerr=around, fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5
    )
    axes.annotate(
        format_number(figure.value),
        (max(figure.high, figure.value), at),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )


def _known(figure: Interval | None) -> TypeGuard[Interval]:
    return figure is not None and all(map(math.isfinite, (figure.value, figure.low, figure.high)))


def _below(figure: Interval) -> float:
    """Length of the lower error bar, at least 0: rounding or bootstrap bias may put the lower end
    of an interval above its value.
    """
    return max(0.0, figure.value - figure.low)


def _above(figure: Interval) -> float:
    return max(0.0, figure.high - figure.value)


def _patch(series: int) -> Any:
    from matplotlib.patches import Patch

    return Patch(
        facecolor=_colour(series),
        edgecolor=_PAPER,
        linewidth=0,
        hatch=_HATCHES[series % len(_HATCHES)],
    )


def _scale(axes: Any, figures: Sequence[Interval], room: float = 1.13) -> None:
    """Set the value axis: zero to one for shares, else the range of the data, with room for the
    values printed after the bars.
    """
    most = max((one.high for one in figures), default=1.0)
    top = 1.0 if 0.25 < most <= 1.0 or most <= 0 else most
    axes.set_xlim(min(0.0, min((one.low for one in figures), default=0.0)), top * room)
    if top == 1.0:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"


def _colour(series: int) -> str:
    return _SERIES[series % len(_SERIES)]


def _svg(plot: Any) -> str:
    """The plot as an HTML element: without XML prologue, namespaces and metadata, with the page's
    CSS variables as colors.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # the font that only measures text here may lack glyphs that the reader's font has
        warnings.simplefilter("ignore")
        plot.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    whole = buffer.getvalue()
    made = whole[whole.index("<svg") :]
    made = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", made, flags=re.S)
    made = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", made)
    made = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", made, count=1)
    made = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", made, count=1)
    made = re.sub(r'<g id="[A-Za-z]\w*?(?:_|\.)\w*"', "<g", made).replace("xlink:href", "href")
    made = re.sub(r"font-family: [^;\"]*;?\s?", "", made)  # text uses the page's font
    for colour, variable in _VARIABLES.items():
        made = made.replace(colour, f"var(--{variable})")
    return re.sub(r">\s+<", "><", made.strip()).replace("\n", " ").replace("://", ":&#8203;//")
