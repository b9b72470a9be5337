"""Published results of other models, beside those that were measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..published_results import PUBLISHED_RESULTS
from .markup import escape_text, format_interval, format_number, html_table, metric_label

if TYPE_CHECKING:
    from ..comparison import ComparisonGroup


def published_section(group: ComparisonGroup) -> str:
    """One table per metric, the headline first: the models of this page, then published results
    with their source as plain text.
    """
    others = published_rows(group.task)
    if not others:
        return ""
    rows = []
    for figure in dict.fromkeys([group.headline, *(one.figure for one in others)]):
        for name, report in zip(group.names, group.reports, strict=True):
            found = report.scores.metric(report.condition, figure)
            rows += (
                [
                    [
                        f"<b>{escape_text(name)}</b>",
                        metric_label(figure),
                        format_interval(found),
                        "measured here",
                    ]
                ]
                if found
                else []
            )
        rows += [
            [
                escape_text(one.model),
                metric_label(one.figure),
                format_number(one.value),
                escape_text(one.source),
            ]
            for one in others
            if one.figure == figure
        ]
    told = (
        "<p class='small'>Published, not measured here: others' prompts, decoding and scorers may"
        " differ.</p>"
    )
    return (
        "<h3>Beside published"
        f" figures</h3>{html_table(['model', 'figure', 'value', 'published in'], rows, 'told')}"
        f"{told}"
    )


class PublishedRow(NamedTuple):
    """A published value, the model, its source, and a note on what was measured differently."""

    model: str
    figure: str
    value: float
    source: str


def published_rows(task: str) -> list[PublishedRow]:
    """The published results of a task, model by model."""
    found = []
    for model, tasks in PUBLISHED_RESULTS.items():
        if one := tasks.get(task):
            note = f"; {one.note}" if one.note else ""
            source = one.source.removeprefix("https://") + note
            found.append(PublishedRow(model, one.figure, one.value, source))
    return found
