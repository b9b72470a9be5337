"""The report page: one self-contained HTML file, responsive, with a dark mode and print styles. It
has no scripts and loads nothing.

results.py      verdict, metrics beside published ones, comparison of models
training.py     what was trained, on what, with loss curves; what the merge measured
cards.py        answers with their images; attention maps
methodology.py  how the evaluation was measured
plots.py        bars, points, curves, as SVG in the page's own colors
markup.py       tables, numbers, escaping
style.py        the style sheet

Every text that comes from data, a model or a file name is escaped by `markup.escape_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..comparison import Comparison, ComparisonGroup, group_reports
from ..gallery import MAX_SHOWN
from .cards import answer_gallery, attention_gallery, disagreement_gallery
from .markup import escape_text, html_section
from .methodology import methodology_section
from .results import overview_table, results_section
from .style import STYLE
from .training import training_section

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["PAGE_SIGNATURE", "render_page"]

PAGE_SIGNATURE = (
    "<!doctype html><!-- a page of phisense evaluate and report -->"  # marks pages of phisense
)

MAX_SHOWN_PER_TASK = 6  # of each outcome, on a page about several tasks

_FOOT = (
    "<b>Real</b>: the question with its own picture. <b>Blind</b>: without a picture."
    " <b>Shuffled</b>: with another question's picture. <b>Constant</b>: no model, but the"
    " commonest answer to each question, counted in the training data, or, where these are not"
    " known, in the questions, among answers that another picture has, too. Without its own"
    " picture an answer that is none of the question's (“There is no picture.”) is replaced by the"
    " likeliest of them, so that content is measured and not form. Intervals are 95 %. Those of"
    " figures and of"
    " differences come from drawing the independent units anew (bootstrap); a difference is paired,"
    " over the same draws. Those by kind of question are Wilson's. “Published” figures were not"
    " measured here: others' prompts, decoding and scorers may differ."
)


def render_page(title: str, reports: Sequence[Report], comparison: Comparison | None = None) -> str:
    """Render the page about one report, several of one model, or several models. `comparison` is
    that of `reports`, if the caller has computed it already.
    """
    found = comparison or group_reports(reports)
    grouped, notes = found.groups, found.notes
    several = len(grouped) > 1
    body = [f"<header><h1>{escape_text(title)}</h1>{_contents(grouped, reports)}</header>"]
    body += [f"<p class='note'>{escape_text(note)}</p>" for note in notes]
    if several:
        body.append(overview_table(grouped))
    for at, group in enumerate(grouped):
        shown = [
            results_section(group),
            *(
                [disagreement_gallery(group, MAX_SHOWN_PER_TASK * 2 if several else MAX_SHOWN)]
                if len(group.reports) > 1
                else []
            ),
            *_cards(group, MAX_SHOWN_PER_TASK if several else MAX_SHOWN),
        ]
        body.append(
            html_section(group.title if several else "Figures", "".join(shown), f"task-{at}")
        )
    body.append(html_section("What was trained", "".join(training_section(reports)), "trained"))
    body.append(html_section("How it was measured", methodology_section(reports), "measured"))
    body.append(f"<footer>{_FOOT}</footer>")
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    )
    return (
        f"{PAGE_SIGNATURE}\n<html lang='en'>"
        f"<head>{head}<title>{escape_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{chr(10).join(part for part in body if part)}</body></html>\n"
    )


def _cards(group: ComparisonGroup, shown: int) -> list[str]:
    """Answers and attention maps of one report; for several reports the answers on which they
    disagree.
    """
    return (
        [attention_gallery(group.reports[0]), answer_gallery(group.reports[0], shown)]
        if len(group.reports) == 1
        else []
    )


def _contents(grouped: Sequence[ComparisonGroup], reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(report.model for report in reports))
    tasks = [
        (f"task-{at}", group.title if len(grouped) > 1 else "Figures")
        for at, group in enumerate(grouped)
    ]
    links = "".join(
        f"<a href='#{where}'>{escape_text(name)}</a>"
        for where, name in [*tasks, ("trained", "Training"), ("measured", "Method")]
    )
    return f"<p class='small'>{escape_text(', '.join(names))}</p><nav>{links}</nav>"
