"""The page: one HTML file with everything in it, for a phone, a desk, the dark, and paper. It runs no script and fetches nothing.

figures.py    verdict, figures beside published ones, models beside each other
training.py   what was trained, on what, with which curves; what the merge measured
cards.py      answers with their pictures; where the model looked
measured.py   how it was measured
plots.py      bars, marks, curves, as SVG in the page's own colours
words.py      tables, numbers, escaping               style.py   the style sheet

Every text that comes from data, a model or a file name goes through `words.text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..beside import Group, groups
from ..shown import SHOWN
from .cards import answers, apart_cards, looked
from .figures import at_a_glance, figures
from .measured import measured
from .style import STYLE
from .training import trained
from .words import section, text

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["render"]

FEWER = 6  # of each sort, where a page has several tasks

_FOOT = (
    "<b>Real</b>: the question with its own picture. <b>Blind</b>: without a picture. <b>Shuffled</b>: with another question's picture. "
    "Intervals are 95 %. Those of figures and of differences come from drawing the independent units anew (bootstrap); a difference is "
    "paired, over the same draws. Those by kind of question are Wilson's. “Published” figures were not measured here: others' prompts, "
    "decoding and scorers may differ."
)


def render(title: str, reports: Sequence[Report], made: tuple[list[Group], list[str]] | None = None) -> str:
    """The page about one report, several of one model, or several models. `made` are its groups, if the caller has them already."""
    grouped, notes = made or groups(reports)
    several = len(grouped) > 1
    body = [f"<header><h1>{text(title)}</h1>{_contents(grouped, reports)}</header>"]
    body += [f"<p class='note'>{text(note)}</p>" for note in notes]
    if several:
        body.append(at_a_glance(grouped))
    for at, group in enumerate(grouped):
        shown = [
            figures(group),
            *([apart_cards(group, FEWER * 2 if several else SHOWN)] if len(group.reports) > 1 else []),
            *_cards(group, FEWER if several else SHOWN),
        ]
        body.append(section(group.title if several else "Figures", "".join(shown), f"task-{at}"))
    body.append(section("What was trained", "".join(trained(reports)), "trained"))
    body.append(section("How it was measured", measured(reports), "measured"))
    body.append(f"<footer>{_FOOT}</footer>")
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    return (
        f"<!doctype html>\n<html lang='en'><head>{head}<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{chr(10).join(part for part in body if part)}</body></html>\n"
    )


def _cards(group: Group, shown: int) -> list[str]:
    """Answers and overlays of one report; of several those in which they differ say more."""
    return [looked(group.reports[0]), answers(group.reports[0], shown)] if len(group.reports) == 1 else []


def _contents(grouped: Sequence[Group], reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(report.model for report in reports))
    tasks = [(f"task-{at}", group.title if len(grouped) > 1 else "Figures") for at, group in enumerate(grouped)]
    links = "".join(f"<a href='#{where}'>{text(name)}</a>" for where, name in [*tasks, ("trained", "Training"), ("measured", "Method")])
    return f"<p class='small'>{text(', '.join(names))}</p><nav>{links}</nav>"
