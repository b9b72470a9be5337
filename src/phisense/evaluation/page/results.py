"""The verdict and the metrics: of one model under each condition beside published results, or of
several models beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..results import SCORED, ConditionScores, KindScore
from .markup import (
    CONDITION_LABELS,
    NO_BETTER,
    escape_text,
    format_interval,
    format_number,
    format_signed,
    html_table,
    metric_label,
)
from .plots import bar_plot, interval_plot
from .published import published_section

if TYPE_CHECKING:
    from ..comparison import ComparisonGroup, Difference
    from ..report import Report

_MAX_KINDS = 14  # kinds of question in one plot


def results_section(group: ComparisonGroup) -> str:
    """The verdict, the table and the plots."""
    if len(group.reports) == 1:
        report = group.reports[0]
        return "".join(
            [
                verdict(report),
                caveats_section(report),
                _side_by_side(_conditions(report), _plots(report)),
                published_section(group),
            ]
        )
    named = list(zip(group.names, group.reports, strict=True))
    parts = [
        *(verdict(report, name) for name, report in named),
        *(caveats_section(report, name) for name, report in named),
    ]
    told = [_comparison_table(group), *(_difference(group, one) for one in group.differences)]
    return "".join(
        [*parts, _side_by_side("".join(told), _comparison_plots(group)), published_section(group)]
    )


def _side_by_side(tables: str, plots: str) -> str:
    """Tables and plots in two columns, or one above the other on a narrow page."""
    return f"<div class='plots'><div>{tables}</div><div>{plots}</div></div>" if plots else tables


def verdict(report: Report, name: str = "") -> str:
    """Whether the model uses the image, with the paired intervals behind the verdict."""
    who = f"{escape_text(name)}: " if name else ""
    looks = report.scores.looks
    if looks is None:
        told = (
            "asked under one condition only: run all three to learn whether the model looks at the"
            " picture."
        )
        return f"<p class='verdict'>{who}{told if name else told.capitalize()}</p>"
    words = {
        "looks": "The model looks at the picture.",
        "blind": f"{NO_BETTER[looks.hardest]}.",
        "too few": "Too few questions to say whether the model looks.",
    }[looks.verdict]
    figure = looks.metric
    lines = [
        f"{CONDITION_LABELS[other]} {_value(report, other, figure)} (difference"
        f" {format_signed(over.value)}, interval {format_signed(over.low)} to"
        f" {format_signed(over.high)})"
        for other, over in looks.over.items()
    ]
    real = _value(report, "real", figure)
    told = (
        f"{metric_label(figure).capitalize()} with its picture {real}, {', '.join(lines)}. The"
        f" largest of the others is that {CONDITION_LABELS[looks.hardest]}."
    )
    return f"<p class='verdict {looks.verdict.replace(' ', '-')}'><b>{who}{words}</b> {told}</p>"


def _value(report: Report, condition: str, figure: str) -> str:
    found = report.scores.metric(condition, figure)
    return format_number(None if found is None else found.value)


def caveats_section(report: Report, name: str = "") -> str:
    """Notes on answers and questions to which the scoring rule does not fully apply."""
    who = f"{name}: " if name else ""
    told = [f"{who}{one}." for one in report.scores.caveats]
    return "".join(f"<p class='note'>{escape_text(one)}</p>" for one in told)


def overview_table(grouped: Sequence[ComparisonGroup]) -> str:
    """One row for each task: the headline metric of each model, and whether it uses the image."""
    names = list(dict.fromkeys(name for group in grouped for name in group.names))
    rows = []
    for at, group in enumerate(grouped):
        by = dict(zip(group.names, group.reports, strict=True))
        cells = [_headline(by[name]) if name in by else "–" for name in names]
        rows.append(
            [
                f"<a href='#task-{at}'>{escape_text(group.title)}</a>",
                metric_label(group.headline),
                f"{group.questions:,}",
                *cells,
            ]
        )
    return html_table(["task", "figure", "questions", *map(escape_text, names)], rows)


def _headline(report: Report) -> str:
    mark = {
        "looks": "<span class='ci right'>looks</span>",
        "blind": "<span class='ci wrong'>blind</span>",
    }.get(report.scores.verdict or "", "")
    return _cell(report, report.condition, report.scores.headline) + mark


def _conditions(report: Report) -> str:
    scores = report.scores
    ran = list(scores.conditions)
    rows = [
        [metric_label(name), *(_cell(report, condition, name) for condition in ran)]
        for name in scores.metric_names()
    ]
    losses = [one.loss for one in scores.conditions.values()]
    if any(loss is not None for loss in losses):
        rows.append(
            [
                "loss per token of the right answer",
                *("–" if loss is None else format_number(loss) for loss in losses),
            ]
        )
    return html_table(
        [
            f"{scores.questions:,} questions",
            *(f"{name}<span class='ci'>{CONDITION_LABELS[name]}</span>" for name in ran),
        ],
        rows,
    )


def _plots(report: Report) -> str:
    ran, headline = list(report.scores.conditions), report.scores.headline
    rows = [(name, [report.scores.metric(name, headline)]) for name in ran]
    about = f"{metric_label(headline)}, 95 % interval"
    plots = []
    if len(ran) > 1:
        plots.append(
            (
                bar_plot(rows, [headline], about),
                "The same questions with their picture, without, and with another's; and the"
                " commonest answer to each.",
            )
        )
    if kinds := _kinds(list(report.scores.conditions.values())):
        plots.append(
            (
                interval_plot(kinds, ran, "mean credit, 95 % interval"),
                "By kind of question; behind each kind how many there are.",
            )
        )
    return _figures(plots)


def _kinds(
    scored: Sequence[ConditionScores | None],
) -> list[tuple[str, list[KindScore | None]]]:
    """For each kind of question, the most frequent first, its score in each of `scored`."""
    by_kind = [{} if one is None else one.kinds for one in scored]
    count: dict[str, int] = {}
    for kinds in by_kind:
        for kind, figure in kinds.items():
            count.setdefault(kind, figure.n)
    if len(count) < 2:
        return []
    often = sorted(count, key=lambda kind: -count[kind])[:_MAX_KINDS]
    return [(f"{kind} ({count[kind]:,})", [kinds.get(kind) for kinds in by_kind]) for kind in often]


def _figures(plots: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f"<figure>{svg}<figcaption>{escape_text(caption)}</figcaption></figure>"
        for svg, caption in plots
    )


def _comparison_table(group: ComparisonGroup) -> str:
    """All metrics of every model under the first condition that they share, then each model's
    headline metric under the other conditions.
    """
    first = group.reports[0].condition
    names = list(
        dict.fromkeys(
            name
            for report in group.reports
            if first in report.scores.conditions
            for name in report.scores.conditions[first].metrics
        )
    )
    rows = [
        [metric_label(name), *(_cell(report, first, name) for report in group.reports)]
        for name in names
    ]
    others = [
        name
        for name in SCORED
        if name != first and any(name in report.scores.conditions for report in group.reports)
    ]
    rows += [
        [
            f"{metric_label(group.headline)}, {other}",
            *(_cell(report, other, group.headline) for report in group.reports),
        ]
        for other in others
    ]
    return html_table(
        [f"{group.questions:,} questions, {first}", *map(escape_text, group.names)], rows
    )


def _cell(report: Report, condition: str, name: str) -> str:
    found = report.scores.metric(condition, name)
    return "–" if found is None else format_interval(found)


def _difference(group: ComparisonGroup, one: Difference) -> str:
    first, other = escape_text(group.names[0]), escape_text(group.names[one.index])
    counts = (
        f"{one.only_other:,} questions only {other} got right, {one.only_first:,} only {first}."
    )
    if one.metrics is None:
        return (
            f"<h3>{other} minus {first}</h3><p>{counts} No paired interval: which answers of this"
            " task belong together is not in the predictions, so compare the intervals above.</p>"
        )
    head = one.metrics.get(group.headline) or next(iter(one.metrics.values()))
    better = head.low > 0 or head.high < 0  # false for NaN
    told = (
        f"{other if head.value > 0 else first} is better."
        if better
        else "No difference shows: the interval holds zero."
    )
    rows = [
        [metric_label(name), format_interval(figure, format_signed)]
        for name, figure in one.metrics.items()
    ]
    return (
        f"<h3>{other} minus {first}</h3><p class='verdict'><b>{told}</b>"
        f" {counts}</p>{html_table(['figure', 'paired difference'], rows)}"
    )


def _comparison_plots(group: ComparisonGroup) -> str:
    ran = [
        name for name in SCORED if any(name in report.scores.conditions for report in group.reports)
    ]
    figures = [
        (name, [report.scores.metric(name, group.headline) for report in group.reports])
        for name in ran
    ]
    plots = [
        (
            bar_plot(figures, group.names, f"{metric_label(group.headline)}, 95 % interval"),
            "Each model under each condition.",
        )
    ]
    if kinds := _kinds([report.scores.conditions.get(ran[0]) for report in group.reports]):
        plots.append(
            (
                interval_plot(kinds, group.names, "mean credit, 95 % interval"),
                f"By kind of question, {CONDITION_LABELS[ran[0]]}.",
            )
        )
    return _figures(plots)
