"""Compare reports: group those about the same questions, and compute by how much one model is
better than another.

Differences use the paired bootstrap: both models are resampled over the same units
(../bootstrap.py), so that the difficulty of a question, which both share, cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..bootstrap import paired_bootstrap, paired_difference
from ..conversations import CAPTION_KINDS, Question
from ..intervals import PairedDifference
from ..pipeline.progress import OnEvent, Progress, ignore
from .scores import Prediction
from .task import ScoredAnswer, resolve_final_answers
from .tasks import TASKS

if TYPE_CHECKING:
    from .report import Report

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Difference:
    """`metrics` of the report at `index` minus those of the first; how many questions only the
    first and only the other model answered correctly.
    """

    index: int
    metrics: dict[str, PairedDifference] | None
    only_other: int
    only_first: int


@dataclass(frozen=True)
class ComparisonGroup:
    """Reports about the same questions of one task; `names` tell their models apart."""

    task: str
    title: str
    reports: Sequence[Report]
    names: Sequence[str]
    differences: Sequence[Difference]

    @property
    def questions(self) -> int:
        """The number of questions of each report."""
        return self.reports[0].scores.questions

    @property
    def headline(self) -> str:
        """The name of the headline metric."""
        return self.reports[0].scores.headline

    def to_dict(self) -> dict[str, object]:
        """An entry of `tasks` in the JSON of `phisense report`."""
        pairs = zip(self.names, self.reports, strict=True)
        return {
            "task": self.task,
            "title": self.title,
            "questions": self.questions,
            "headline": self.headline,
            "reports": [_report_entry(name, report) for name, report in pairs],
            "differences": [_difference_entry(self.names, one) for one in self.differences],
        }


def _report_entry(name: str, report: Report) -> dict[str, object]:
    conditions = report.scores.conditions.items()
    return {
        "name": name,
        "folder": str(report.folder),
        **{
            condition: {metric: found.to_dict() for metric, found in scores.metrics.items()}
            for condition, scores in conditions
        },
        "looks": report.scores.verdict,
    }


def _difference_entry(names: Sequence[str], one: Difference) -> dict[str, object]:
    figures = one.metrics
    return {
        "of": names[one.index],
        "minus": names[0],
        "figures": None if figures is None else {k: v.to_dict() for k, v in figures.items()},
        "only_it_right": one.only_other,
        "only_the_other_right": one.only_first,
    }


@dataclass(frozen=True)
class Comparison:
    """Reports grouped by task and questions, in their order; `notes` explains which cannot be
    compared.
    """

    groups: Sequence[ComparisonGroup]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, object]:
        """`{"tasks", "notes"}`: the content of the page as JSON."""
        return {"tasks": [group.to_dict() for group in self.groups], "notes": list(self.notes)}


def group_reports(reports: Sequence[Report], on_event: OnEvent = ignore) -> Comparison:
    """Group reports about the same questions of one task, and subtract the first of each group from
    the others.
    """
    found: dict[tuple[str, str, frozenset[tuple[str, str, str | None]]], list[Report]] = {}
    for report in reports:
        key = (report.scores.task, report.condition, _question_keys(report))
        found.setdefault(key, []).append(report)
    pairs = len(reports) - len(found)
    made: list[ComparisonGroup] = []
    for (task, _, _), its in found.items():
        differences = []
        for at, other in enumerate(its[1:], 1):
            row = disagreements([its[0], other])
            only = sum(pair[1].right for pair in row)
            differences.append(
                Difference(at, report_difference(its[0], other), only, len(row) - only)
            )
            on_event(
                Progress(
                    "comparing", sum(len(group.differences) for group in made) + at, pairs, "pairs"
                )
            )
        made.append(ComparisonGroup(task, _title(task, its), its, _names(its), differences))
    return Comparison(made, list(_notes(made)))


def _question_keys(report: Report) -> frozenset[tuple[str, str, str | None]]:
    return frozenset((p.id, p.question, p.image) for p in report.main_predictions)


def _title(task: str, reports: Sequence[Report]) -> str:
    """The title of the task; custom questions are titled by their files."""
    data = ", ".join(one.name for one in reports[0].about.data)
    known = TASKS[task].title if task in TASKS else task
    return (
        f"{known}: {data}"
        if data and task == "own"
        else reports[0].title
        if task == "own"
        else known
    )


def _names(reports: Sequence[Report]) -> list[str]:
    """Display names: the models' names; with their folders if names repeat, numbered if those
    repeat, too.
    """
    models = [report.model for report in reports]
    names = [
        m if models.count(m) == 1 or r.folder is None else f"{m} ({r.folder.name})"
        for m, r in zip(models, reports, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} {at + 1}" for at, name in enumerate(names)]


def _notes(made: Sequence[ComparisonGroup]) -> Iterator[str]:
    for i, one in enumerate(made):
        for other in made[i + 1 :]:
            if one.task != other.task or {r.model for r in one.reports} >= {
                r.model for r in other.reports
            }:
                # reports of one model on several question sets are expected to share its name
                continue
            if one.reports[0].condition != other.reports[0].condition:
                yield (
                    f"{one.names[0]} was asked under the condition {one.reports[0].condition} and"
                    f" {other.names[0]} under {other.reports[0].condition}, so neither is"
                    " subtracted from the other. Evaluate both with the same --condition."
                )
                continue
            common = len(_question_keys(one.reports[0]) & _question_keys(other.reports[0]))
            yield (
                f"{one.names[0]} and {other.names[0]} answered different questions of {one.task}"
                f" ({one.questions:,} and {other.questions:,}, {common:,} in common), so neither is"
                " subtracted from the other. Evaluate both on the same data with the same --limit."
            )


def report_difference(first: Report, other: Report) -> dict[str, PairedDifference] | None:
    """`other` minus `first` for each metric with the real image, with paired 95 % bootstrap
    intervals; both must have answered the same questions.

    None if recomputing the metrics from the stored answers does not reproduce the report: then its
    units are unknown, and a wrong interval is worse than none.
    """
    condition = first.condition
    if first.scores.task not in TASKS or condition != other.condition:
        return None
    task = TASKS[first.scores.task]
    order = [(p.id, p.image) for p in first.main_predictions]
    try:
        tallies = [task.aggregate(_scored_answers(report, order)) for report in (first, other)]
    except (KeyError, ValueError, IndexError):
        # the task needs question fields that the predictions do not store
        return None
    if len(tallies[0]) != len(tallies[1]):
        return None
    drawn = [task.metrics(sums) for sums in paired_bootstrap(tallies, first.about.seed)]
    for figures, report in zip(drawn, (first, other), strict=True):
        recorded = report.scores.conditions[condition].metrics
        if any(
            not abs(figures[name][0] - found.value) < _TOLERANCE
            for name, found in recorded.items()
            if name in figures and not math.isnan(found.value)
        ):
            return None
    return {
        name: paired_difference(drawn[1][name], drawn[0][name])
        for name in drawn[0]
        if name in drawn[1]
    }


def _scored_answers(report: Report, order: Sequence[tuple[str, str | None]]) -> list[ScoredAnswer]:
    by_question = {(p.id, p.image): p for p in report.main_predictions}
    return [_scored_answer(by_question[key]) for key in order]


def _scored_answer(p: Prediction) -> ScoredAnswer:
    question = Question(p.id, p.image, p.question, p.answers, p.kind, p.choices, p.group)
    return ScoredAnswer(*resolve_final_answers(question, p.counted), p.credit)


def disagreements(reports: Sequence[Report]) -> list[tuple[Prediction, ...]]:
    """The predictions, one for each report, of every question on which the reports disagree about
    correctness, in the order of the first report.
    """
    answers = [{(p.id, p.image): p for p in report.main_predictions} for report in reports]
    found = [
        tuple(by[(p.id, p.image)] for by in answers)
        for p in reports[0].main_predictions
        if p.kind not in CAPTION_KINDS
    ]
    return [row for row in found if len({p.right for p in row}) == 2]
