"""The verdict, and the figures: of one model under each condition beside what others have published, or of several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..anchors import ANCHORS
from ..scores import CONDITIONS
from .plots import bars, marks
from .words import CONDITION, name_of, number, signed, span, table, text

if TYPE_CHECKING:
    from ..beside import Difference, Group
    from ..report import Report

_FEW = 14  # kinds of question in a plot


def figures(group: Group) -> str:
    """Verdict, table, plots."""
    if len(group.reports) == 1:
        report = group.reports[0]
        return "".join([verdict(report), _side_by_side(_conditions(report), _plots(report)), _published(group)])
    parts = [verdict(report, name) for name, report in zip(group.names, group.reports, strict=True)]
    told = [_beside(group), *(_difference(group, one) for one in group.differences)]
    return "".join([*parts, _side_by_side("".join(told), _plots_beside(group)), _published(group)])


def _side_by_side(tables: str, plots: str) -> str:
    """Where there is room; the plots below the tables where there is not."""
    return f"<div class='plots'><div>{tables}</div><div>{plots}</div></div>" if plots else tables


def verdict(report: Report, name: str = "") -> str:
    """Whether the model looks, and the paired intervals that say so."""
    who = f"{text(name)}: " if name else ""
    looks = report.scores.get("looks")
    if looks is None:
        told = "asked under one condition only: run all three to learn whether the model looks at the picture."
        return f"<p class='verdict'>{who}{told if name else told.capitalize()}</p>"
    figure, real = looks["figure"], report.scores["real"]["figures"][looks["figure"]]["value"]
    good = looks["verdict"] == "looks"
    words = "The model looks at the picture." if good else "The model is blind: its answers are no better with the picture than without."
    if looks["verdict"] == "too few":
        words = "Too few questions to say whether the model looks."
    lines = [
        f"{CONDITION[other]} {number(report.scores[other]['figures'][figure]['value'])} "
        f"(difference {signed(over['value'])}, interval {signed(over['low'])} to {signed(over['high'])})"
        for other, over in looks["over"].items()
    ]
    told = f"{name_of(figure).capitalize()} with its picture {number(real)}, {', '.join(lines)}."
    return f"<p class='verdict {looks['verdict'].replace(' ', '-')}'><b>{who}{words}</b> {told}</p>"


def at_a_glance(grouped: Sequence[Group]) -> str:
    """A line for each task: the headline of each model, and whether it looks."""
    names = list(dict.fromkeys(name for group in grouped for name in group.names))
    rows = []
    for at, group in enumerate(grouped):
        by = dict(zip(group.names, group.reports, strict=True))
        cells = [_headline(by[name]) if name in by else "–" for name in names]
        rows.append([f"<a href='#task-{at}'>{text(group.title)}</a>", name_of(group.headline), f"{group.questions:,}", *cells])
    return table(["task", "figure", "questions", *map(text, names)], rows)


def _headline(report: Report) -> str:
    looks = report.scores.get("looks", {}).get("verdict")
    mark = {"looks": "<span class='ci right'>looks</span>", "blind": "<span class='ci wrong'>blind</span>"}.get(looks, "")
    return span(report.scores[report.condition]["figures"][report.scores["headline"]]) + mark


def _ran(report: Report) -> list[str]:
    return [name for name in CONDITIONS if name in report.scores]


def _conditions(report: Report) -> str:
    ran = _ran(report)
    names = list(dict.fromkeys(figure for condition in ran for figure in report.scores[condition]["figures"]))
    rows = []
    for name in names:
        found = [report.scores[condition]["figures"].get(name) for condition in ran]
        rows.append([name_of(name), *("–" if one is None else span(one) for one in found)])
    losses = [report.scores[condition].get("loss") for condition in ran]
    if any(loss is not None for loss in losses):
        rows.append(["loss per token of the right answer", *("–" if loss is None else number(loss) for loss in losses)])
    return table([f"{report.scores['questions']:,} questions", *(f"{name}<span class='ci'>{CONDITION[name]}</span>" for name in ran)], rows)


def _published(group: Group) -> str:
    """Figure by figure, the headline first: the models here, then what others have published, with the source as a text to look up."""
    others = published(group.task)
    if not others:
        return ""
    rows = []
    for figure in dict.fromkeys([group.headline, *(one.figure for one in others)]):
        for name, report in zip(group.names, group.reports, strict=True):
            found = report.scores[report.condition]["figures"].get(figure)
            rows += [[f"<b>{text(name)}</b>", name_of(figure), span(found), "measured here"]] if found else []
        rows += [[text(one.model), name_of(one.figure), number(one.value), text(one.source)] for one in others if one.figure == figure]
    told = "<p class='small'>Published, not measured here: others' prompts, decoding and scorers may differ.</p>"
    return f"<h3>Beside published figures</h3>{table(['model', 'figure', 'value', 'published in'], rows, 'told')}{told}"


class Published(NamedTuple):
    """A figure that others have published of a model, and where; with what was otherwise."""

    model: str
    figure: str
    value: float
    source: str


def published(task: str) -> list[Published]:
    found = []
    for model, tasks in ANCHORS.items():
        if one := tasks.get(task):
            note = f"; {one['note']}" if "note" in one else ""
            found.append(Published(model, one["figure"], one["value"], one["source"].removeprefix("https://") + note))
    return found


def _plots(report: Report) -> str:
    ran, headline = _ran(report), report.scores["headline"]
    rows = [(name, [report.scores[name]["figures"].get(headline)]) for name in ran]
    about = f"{name_of(headline)}, 95 % interval"
    plots = []
    if len(ran) > 1:
        plots.append((bars(rows, [headline], about), "The same questions with their picture, without, and with another's."))
    if kinds := _kinds([report.scores[name] for name in ran]):
        plots.append((marks(kinds, ran, "mean credit, 95 % interval"), "By kind of question; behind each kind how many there are."))
    return _figures(plots)


def _kinds(scored: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """For each kind of question, the most frequent first, its figure in each of `scored`."""
    count: dict[str, int] = {}
    for one in scored:
        for kind, figure in one.get("kinds", {}).items():
            count.setdefault(kind, figure["n"])
    if len(count) < 2:
        return []
    often = sorted(count, key=lambda kind: -count[kind])[:_FEW]
    return [(f"{kind} ({count[kind]:,})", [one.get("kinds", {}).get(kind) for one in scored]) for kind in often]


def _figures(plots: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>" for svg, caption in plots)


def _beside(group: Group) -> str:
    """Figures of every model under the first condition they share, then each model's headline under the others."""
    first = group.reports[0].condition
    names = list(dict.fromkeys(name for report in group.reports for name in report.scores.get(first, {}).get("figures", {})))
    rows = [[name_of(name), *(_cell(report, first, name) for report in group.reports)] for name in names]
    others = [name for name in CONDITIONS if name != first and any(name in report.scores for report in group.reports)]
    rows += [
        [f"{name_of(group.headline)}, {other}", *(_cell(report, other, group.headline) for report in group.reports)] for other in others
    ]
    return table([f"{group.questions:,} questions, {first}", *map(text, group.names)], rows)


def _cell(report: Report, condition: str, name: str) -> str:
    found = report.scores.get(condition, {}).get("figures", {}).get(name)
    return "–" if found is None else span(found)


def _difference(group: Group, one: Difference) -> str:
    first, other = text(group.names[0]), text(group.names[one.of])
    counts = f"{one.only_it:,} questions only {other} got right, {one.only_the_first:,} only {first}."
    if one.figures is None:
        return (
            f"<h3>{other} minus {first}</h3><p>{counts} No paired interval: which answers of this task belong together is not in the "
            "predictions, so compare the intervals above.</p>"
        )
    head = one.figures.get(group.headline) or next(iter(one.figures.values()))
    better = head["low"] > 0 or head["high"] < 0  # false for NaN
    told = f"{other if head['value'] > 0 else first} is better." if better else "No difference shows: the interval holds zero."
    rows = [[name_of(name), span(figure, signed)] for name, figure in one.figures.items()]
    return f"<h3>{other} minus {first}</h3><p class='verdict'><b>{told}</b> {counts}</p>{table(['figure', 'paired difference'], rows)}"


def _plots_beside(group: Group) -> str:
    ran = [name for name in CONDITIONS if any(name in report.scores for report in group.reports)]
    figures = [(name, [report.scores.get(name, {}).get("figures", {}).get(group.headline) for report in group.reports]) for name in ran]
    plots = [(bars(figures, group.names, f"{name_of(group.headline)}, 95 % interval"), "Each model under each condition.")]
    if kinds := _kinds([report.scores.get(ran[0], {}) for report in group.reports]):
        plots.append((marks(kinds, group.names, "mean credit, 95 % interval"), f"By kind of question, {CONDITION[ran[0]]}."))
    return _figures(plots)
