"""What a merge may lose, judged by what matters: the loss, the accuracy on questions with short
answers, and the answers that changed from right to wrong. Answers that only differ are reported.

Accuracy and lost answers are judged by their 95 % intervals: a merge is rejected where the
questions show that it lost more than the limit, not where they are too few to show that it did not.
A merge that is rejected leaves its report in the run's folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import artifacts, safe_replace
from ..bootstrap import MIN_UNITS, paired_bootstrap, percentile_interval, wilson_interval
from ..console import json_bytes
from ..errors import ArtifactError, MergeError
from ..intervals import Interval
from ..model.agreement import Outputs, compare_outputs
from ..pipeline.results import (
    RUN_KIND,
    JudgedFigure,
    MergeGate,
    MergeMeasurement,
    MergeResult,
)
from ..recipe import Recipe

#: The advice offers to loosen a limit up to so many times.
MAX_LOOSER = 10


def gate_of(recipe: Recipe) -> MergeGate:
    """The limits that the recipe sets."""
    return MergeGate(
        max_delta_loss=recipe.merge.max_delta_loss,
        min_same_answers=recipe.merge.min_same_answers,
        max_lost_accuracy=recipe.merge.max_lost_accuracy,
        max_lost_answers=recipe.merge.max_lost_answers,
    )


def compare(reference: Outputs, other: Outputs) -> MergeMeasurement:
    """`other` beside `reference`, on the same probes."""
    found = compare_outputs(reference, other)
    measured = MergeMeasurement(
        loss=other.loss, same_answers=found.same_answers, delta_loss=found.delta_loss
    )
    pairs = list(zip(reference.right, other.right, strict=True))
    if not pairs:
        return measured
    lost = sum(was and not now for was, now in pairs)
    return replace(
        measured,
        accuracy=share_of(sum(other.right), len(pairs)),
        delta_accuracy=_fall(reference.right, other.right),
        lost=share_of(lost, len(pairs)),
        lost_answers=lost,
        gained_answers=sum(now and not was for was, now in pairs),
    )


def share_of(count: int, total: int) -> Interval:
    """A share with Wilson's interval, which holds for few questions, too."""
    return Interval(count / total, *wilson_interval(count, total))


def _fall(before: Sequence[bool], after: Sequence[bool]) -> Interval | None:
    """The paired difference of two accuracies; None with too few questions for an interval."""
    if len(before) < MIN_UNITS:
        return None
    ours, theirs = (
        sums[:, 0] / len(before)
        for sums in paired_bootstrap(
            [np.array(right, dtype=np.float64)[:, None] for right in (after, before)], seed=0
        )
    )
    return percentile_interval(ours - theirs)


def judge(result: MergeResult) -> tuple[str, ...]:
    """What the gate rejects in a merge, a sentence each; empty if it is admitted."""
    return tuple(
        f"{one.figure} {one.got}, wanted {one.limit}"
        for one in result.gate.judge(result.merged)
        if not one.passes
    )


def check_projector(change: float) -> None:
    """Raises MergeError unless the merge left the projector as it was trained."""
    if change != 0.0:
        raise MergeError(
            "the merge changed the projector",
            got=f"{change}",
            wanted="0.0",
            do="This is a fault of phisense; please report it",
        )


def rejection(
    result: MergeResult,
    run: Path,
    kept: Path | None,
    changes: Sequence[str] = (),
    others: Sequence[str] = (),
) -> MergeError:
    """The error of a rejected merge, with commands that can be run as they are. `kept` is the file
    of its report; `changes` are those of the recipe that the user asked for, `others` the words of
    other options.
    """
    failed = [one for one in result.gate.judge(result.merged) if not one.passes]
    where = "" if kept is None else f". What was measured is in {kept}"
    return MergeError(
        "the merged model is not what was trained, so it was not written",
        got=", ".join(f"{one.figure} {one.got}" for one in failed),
        wanted=", ".join(f"{one.figure} {one.limit}" for one in failed),
        do=f"{_advice(result, failed, run, changes, others)}{where}",
    )


def _advice(
    result: MergeResult,
    failed: Sequence[JudgedFigure],
    run: Path,
    changes: Sequence[str],
    others: Sequence[str],
) -> str:
    """What to do, as commands in backticks."""

    def command(dtype: str, **limits: float | None) -> str:
        keys = {"merge.dtype", *(f"merge.{name}" for name in limits)}
        words = ["phisense", "merge", str(run)]
        kept = [one for one in changes if one.partition("=")[0] not in keys]
        kept += [f"merge.{name}={value:g}" for name, value in limits.items()]
        words += [word for one in kept for word in ("--set", one)]
        return f"`{shlex.join([*words, '--dtype', dtype, *others])}`"

    ways = []
    if result.dtype != "float32":
        ways.append(f"keep more digits: {command('float32')}")
    if all(_is_near(one, result.gate) for one in failed):
        looser = {one.setting: one.needed for one in failed}
        ways.append(f"admit that much, if you mean to: {command(result.dtype, **looser)}")
    if not ways:
        return (
            "Rounding does not explain that: please report it with phisense doctor's output, or"
            " train again"
        )
    said = ", or ".join(ways)
    return f"{said[0].upper()}{said[1:]}"


def _is_near(figure: JudgedFigure, gate: MergeGate) -> bool:
    """Whether a figure is so near to its limit that somebody may want to admit it."""
    if figure.needed is None:
        return False
    limit: float = getattr(gate, figure.setting)
    return figure.setting == "min_same_answers" or figure.needed <= MAX_LOOSER * limit


def keep_report(run: Path, report: MergeResult) -> Path | None:
    """Write a rejected merge's report into the run's folder, listed in its manifest; the file, or
    None where that cannot be written. A file that phisense did not write there stays.
    """
    path = run / MergeResult.FILE
    try:
        if path.exists() and not has_report(run):
            path = safe_replace.unused_path(path)
        artifacts.replace_file(
            run, path.name, json_bytes(report.to_dict(), indent=True), kind=RUN_KIND
        )
    except ArtifactError:  # a folder that may only be read: the merge's own error says more
        return None
    return path


def has_report(run: Path) -> bool:
    """Whether the run's folder holds a report that a merge left there."""
    found = safe_replace.inspect_target(run, RUN_KIND)
    return (
        found is not None
        and Path(MergeResult.FILE) in found.own
        and (run / MergeResult.FILE).is_file()
    )
