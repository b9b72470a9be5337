"""Several reports beside each other: which were about the same questions, and by how much one model is better than another.

A difference is that of a figure over the same units, drawn anew together (../intervals.py), so what is hard for both models falls out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..conversations import CAPTION_KINDS, Question
from ..intervals import above, drawn_together
from .scores import CONDITIONS, Prediction
from .task import Marked

if TYPE_CHECKING:
    from .report import Report

Progress = Callable[[str, int, int], None]
_NEAR = 1e-9


@dataclass(frozen=True)
class Difference:
    """`figures` of the report at place `of` minus those of the first; how many questions only the one and only the other got right."""

    of: int
    figures: dict[str, dict[str, Any]] | None
    only_it: int
    only_the_first: int


@dataclass(frozen=True)
class Group:
    """Reports about the same questions of one task; `names` tell their models apart."""

    task: str
    title: str
    reports: Sequence[Report]
    names: Sequence[str]
    differences: Sequence[Difference]

    @property
    def questions(self) -> int:
        return int(self.reports[0].scores["questions"])

    @property
    def headline(self) -> str:
        return str(self.reports[0].scores["headline"])


def groups(reports: Sequence[Report], progress: Progress = lambda what, done, total: None) -> tuple[list[Group], list[str]]:
    """The reports by task and questions, in their order; and sentences about what cannot be laid side by side."""
    found: dict[tuple[str, str, frozenset[tuple[str, str, str | None]]], list[Report]] = {}
    for report in reports:
        found.setdefault((report.scores["task"], report.condition, _asked(report)), []).append(report)
    pairs = len(reports) - len(found)
    made: list[Group] = []
    for (task, _, _), its in found.items():
        differences = []
        for at, other in enumerate(its[1:], 1):
            row = apart([its[0], other])
            only = sum(pair[1].right for pair in row)
            differences.append(Difference(at, difference(its[0], other), only, len(row) - only))
            progress("comparing", sum(len(group.differences) for group in made) + at, pairs)
        made.append(Group(task, _title(task, its), its, _names(its), differences))
    return made, list(_notes(made))


def _asked(report: Report) -> frozenset[tuple[str, str, str | None]]:
    return frozenset((p.id, p.question, p.image) for p in report.main)


def _title(task: str, reports: Sequence[Report]) -> str:
    """What the task is called; your own questions are called after their files."""
    from .tasks import TASKS

    data = ", ".join(one["name"] for one in reports[0].about.get("data", ()))
    known = TASKS[task].title if task in TASKS else task
    return f"{known}: {data}" if data and task == "own" else reports[0].title if task == "own" else known


def _names(reports: Sequence[Report]) -> list[str]:
    """The models' names; folders where several are called alike, numbers where those are, too."""
    models = [report.model for report in reports]
    names = [m if models.count(m) == 1 or r.folder is None else f"{m} ({r.folder.name})" for m, r in zip(models, reports, strict=True)]
    return [name if names.count(name) == 1 else f"{name} {at + 1}" for at, name in enumerate(names)]


def _notes(made: Sequence[Group]) -> Iterator[str]:
    for i, one in enumerate(made):
        for other in made[i + 1 :]:
            if one.task != other.task or {r.model for r in one.reports} >= {r.model for r in other.reports}:
                continue  # one model's several sets of questions are meant to stand one below the other
            if one.reports[0].condition != other.reports[0].condition:
                yield (
                    f"{one.names[0]} was asked under the condition {one.reports[0].condition} and {other.names[0]} under "
                    f"{other.reports[0].condition}, so neither is subtracted from the other. Evaluate both with the same --image."
                )
                continue
            common = len(_asked(one.reports[0]) & _asked(other.reports[0]))
            yield (
                f"{one.names[0]} and {other.names[0]} answered different questions of {one.task} ({one.questions:,} and "
                f"{other.questions:,}, {common:,} in common), so neither is subtracted from the other. Evaluate both on the same data "
                "with the same --limit."
            )


def difference(first: Report, other: Report) -> dict[str, dict[str, Any]] | None:
    """`other` minus `first` for each figure with the real picture, with paired 95 % intervals; both must have answered the same questions.

    None where the answers alone do not give the report's figure again: then its units cannot be known, and a wrong interval is worse.
    """
    from .tasks import TASKS

    task = TASKS.get(first.scores["task"])
    condition = first.condition
    if task is None or condition != other.condition:
        return None
    order = [(p.id, p.image) for p in first.main]
    try:
        tallies = [task.tally(_marked(report, order)) for report in (first, other)]
    except (KeyError, ValueError, IndexError):  # a task that needs of a question what the predictions do not tell
        return None
    if len(tallies[0]) != len(tallies[1]):
        return None
    drawn = [task.figures(sums) for sums in drawn_together(tallies, int(first.about.get("seed") or 0))]
    for figures, report in zip(drawn, (first, other), strict=True):
        told = {name: figure["value"] for name, figure in report.scores[condition]["figures"].items() if figure["value"] is not None}
        if any(not abs(figures[name][0] - value) < _NEAR for name, value in told.items() if name in figures):
            return None
    return {name: above(drawn[1][name], drawn[0][name]) for name in drawn[0] if name in drawn[1]}


def _marked(report: Report, order: Sequence[tuple[str, str | None]]) -> list[Marked]:
    told = {(line["id"], line["image"]): line for line in report.told if line["condition"] == report.condition}
    return [_mark(told[key]) for key in order]


def _mark(line: dict[str, Any]) -> Marked:
    choices, group = tuple(line.get("choices") or ()), str(line.get("group") or "")
    question = Question(line["id"], line["image"], line["question"], tuple(line["answers"]), line["kind"], choices, group)
    return Marked(question, line["answer"], line["credit"])


def apart(reports: Sequence[Report]) -> list[tuple[Prediction, ...]]:
    """The answers, one for each report, to every question that some got right and some wrong, in the first's order."""
    answers = [{(p.id, p.image): p for p in report.main} for report in reports]
    found = [tuple(by[(p.id, p.image)] for by in answers) for p in reports[0].main if p.kind not in CAPTION_KINDS]
    return [row for row in found if len({p.right for p in row}) == 2]


def compared(made: Sequence[Group], notes: Sequence[str]) -> dict[str, Any]:
    """What the page says of several reports, for programs."""
    return {"tasks": [_compared(group) for group in made], "notes": list(notes)}


def _compared(group: Group) -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "folder": str(report.folder),
            **{condition: report.scores[condition]["figures"] for condition in CONDITIONS if condition in report.scores},
            "looks": report.scores.get("looks", {}).get("verdict"),
        }
        for name, report in zip(group.names, group.reports, strict=True)
    ]
    differences = [
        {
            "of": group.names[one.of], "minus": group.names[0], "figures": one.figures,
            "only_it_right": one.only_it, "only_the_other_right": one.only_the_first,
        }
        for one in group.differences
    ]  # fmt: skip
    return {
        "task": group.task, "title": group.title, "questions": group.questions, "headline": group.headline,
        "reports": rows, "differences": differences,
    }  # fmt: skip
