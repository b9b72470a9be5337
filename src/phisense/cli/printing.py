"""How the results of the steps are shown on the standard output, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..pipeline.results import (
    CheckResult,
    ConvertResult,
    DataFinding,
    FeaturesResult,
    MergeMeasurement,
    MergeResult,
    TrainingVerdict,
    TrainResult,
)

if TYPE_CHECKING:
    from ..intervals import Interval
    from ..pipeline.evaluate import EvaluationReport
    from ..practice.summary import DemoSummary


def print_result(result: object) -> None:
    """Shows the result of any step, as its own verb shows it."""
    from .. import console
    from ..pipeline.evaluate import EvaluationReport
    from ..practice.summary import DemoSummary

    match result:
        case CheckResult():
            print_check(result)
        case FeaturesResult():
            print_features(result)
        case TrainResult():
            print_training(result)
        case MergeResult():
            print_merge(result)
        case EvaluationReport():
            print_evaluation(result)
        case DemoSummary():
            print_demo(result)
        case tuple():  # conversations as the model reads them
            for row in result:
                console.out.print(row.as_text())


def print_training(trained: TrainResult) -> None:
    """The verdict, what was trained, and where the run is."""
    from .. import console

    print_verdict(trained.verdict, quiet=False)
    lora = trained.plain_weights is not None
    what = f"{len(trained.modules)} LoRA modules" if lora else "the language part"
    console.out.print(
        f"{trained.trainable:,} parameters trained, as the shapes say, in {what} and the projector"
    )
    console.out.print(f"the projector moved by {trained.projector_change:.1%}")
    console.out.print(f"run -> {trained.folder} (loss.png, metrics.jsonl, train.json)")


def print_verdict(verdict: TrainingVerdict, *, quiet: bool) -> None:
    """The verdict, among the results if it is good and unless `quiet`, else as a warning that
    cannot be missed.
    """
    from .. import console
    from ..training.verdict import describe_verdict

    if verdict.verdict == "looks":
        if not quiet:
            console.out.print(describe_verdict(verdict), style="green")
    elif verdict.verdict == "blind":
        console.print_warning("IT DOES NOT LOOK", describe_verdict(verdict))
    else:
        console.print_warning(
            "NOBODY KNOWS WHETHER IT LOOKS", describe_verdict(verdict), style="yellow"
        )


def print_merge(merged: MergeResult) -> None:
    """What was measured, model by model, and beside the gate's limits."""
    from .. import console

    reference = merged.reference_accuracy
    rows = [
        [
            "adapter, unmerged (reference)",
            f"{merged.reference_loss:.5f}",
            "",
            "" if reference is None else f"{reference.value:.1%}",
            "",
            "",
        ]
    ]
    rows += [
        [name.replace("_", " "), *_merge_cells(one)] for name, one in merged.measurements.items()
    ]
    console.print_table(
        f"{merged.probes} held-out questions, {merged.scored or 0} with short answers",
        ["model", "loss", "difference", "accuracy", "right -> wrong", "same answers"],
        rows,
    )
    console.print_table(
        "the gate",
        ["figure", "merged", "admitted", ""],
        [
            [one.figure, one.got, one.limit, "passes" if one.passes else "REFUSED"]
            for one in merged.gate.judge(merged.merged)
        ],
    )
    if not merged.tells:
        console.print_warning(
            "THE CONTROL PASSED, TOO",
            "With the adapter's layers in reverse order the model loses no more than the gate"
            " admits: these questions cannot tell a right merge from a wrong one. The adapter"
            " changed little, or merge.samples is too small.",
            style="yellow",
        )
    if merged.rejected is None:
        console.out.print(
            f"projector changed by {merged.projector_change}; model -> {merged.folder}"
        )


def _merge_cells(one: MergeMeasurement) -> list[str]:
    """The figures of one model, after its name."""
    fall = one.delta_accuracy
    return [
        f"{one.loss:.5f}",
        f"{one.delta_loss:+.5f}",
        ("" if one.accuracy is None else f"{one.accuracy.value:.1%}")
        + ("" if fall is None else f", {fall.value:+.1%} [{fall.low:+.1%}, {fall.high:+.1%}]"),
        "" if one.lost is None else f"{one.lost_answers} ({one.lost.value:.1%})",
        f"{one.same_answers:.1%}",
    ]


def print_evaluation(report: EvaluationReport) -> None:
    """The scores under each condition, and where the report is."""
    from .. import console

    _print_scores(report)
    console.out.print(f"report -> {report.page}")


def _print_scores(report: EvaluationReport) -> None:
    from .. import console
    from .common import print_caveats

    ran = list(report.conditions)
    first = report.conditions[ran[0]]
    rows = [
        [name, *(_format_figure(report.metric(condition, name)) for condition in ran)]
        for name in first.metrics
    ]
    rows += [
        [f"  {kind}", *(f"{report.conditions[name].kinds[kind].value:.3f}" for name in ran)]
        for kind in first.kinds
    ]
    console.print_table(f"{report.questions:,} questions, 95 % intervals", ["", *ran], rows)
    print_caveats(report.caveats)
    if report.looks is not None:
        over = ", ".join(
            f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}] over {name}"
            for name, one in report.looks.over.items()
        )
        largest = report.looks.hardest
        sees_less = report.looks.verdict == "blind" and largest == "constant"
        said, style = _VERDICTS["constant" if sees_less else report.looks.verdict]
        console.out.print(
            f"{said}: {report.looks.metric} {over}. The largest of these is {largest}"
            f" ({_format_figure(report.metric(largest, report.looks.metric))}).",
            style=style,
        )
    _print_measured_by(report)


def _print_measured_by(report: EvaluationReport) -> None:
    """Where the constant comes from, and of how many answers the content was scored."""
    from .. import console

    if (constant := report.conditions.get("constant")) is not None:
        console.out.print(
            f"constant: each question's commonest answer by the {constant.source}.", style="dim"
        )
    for name, scores in report.conditions.items():
        if scores.by_content:
            console.out.print(
                f"{name}: {scores.by_content:,} answers were none of the question's and count by"
                f" content ({report.about.by_content}).",
                style="dim",
            )


_VERDICTS = {
    "looks": ("The model looks at the picture", "green"),
    "blind": ("The model is BLIND: the picture does not help it", "red"),
    "constant": (
        "The model is NOT SHOWN TO LOOK: each question's commonest answer does as well",
        "red",
    ),
    "too few": ("There are too few questions to say whether the model looks", "yellow"),
}


def _format_figure(figure: Interval | None) -> str:
    return "" if figure is None else f"{figure.value:.3f} [{figure.low:.2f}-{figure.high:.2f}]"


def print_features(encoded: FeaturesResult) -> None:
    """One line of what the store holds."""
    from .. import console

    same = encoded.images - encoded.distinct
    repeated = f" ({same:,} of them the same as another)" if same else ""
    whole = "" if encoded.stored == encoded.images else f", which holds {encoded.stored:,}"
    console.out.print(
        f"{encoded.images:,} pictures{repeated}, {encoded.tokens} tokens of width {encoded.width}"
        f" each -> {encoded.folder}{whole}"
    )


def print_conversion(converted: ConvertResult) -> None:
    """Notes about the rows, how many were written and how many were left out."""
    from .. import console

    print_unread(converted.notes)
    written = converted.rows - converted.rejected
    console.out.print(
        f"{written:,} of {converted.rows:,} rows -> {converted.out}; {converted.rejected:,}"
        f" left out -> {Path(converted.out) / 'rejects.jsonl'}"
    )


def print_unread(found: Sequence[DataFinding], most: int = 20) -> None:
    """A line for each of the commonest notes that are counted over the set: keys that are not read,
    pictures found by a tail.
    """
    from .. import console

    notes = sorted((one for one in found if one.rows is not None), key=lambda one: -(one.rows or 0))
    for note in notes[:most]:
        console.out.print(
            console.escape_controls(f"{_sentence(note)}.", lines=False),
            style="yellow",
            soft_wrap=True,
        )
    if len(notes) > most:
        console.out.print(
            f"{len(notes) - most:,} more keys are not read (--json lists them).", style="yellow"
        )


def _sentence(finding: DataFinding) -> str:
    """What was found as a sentence without its full stop."""
    from ..conversations.defects import Defect

    rows = 1 if finding.rows is None else finding.rows
    return str(Defect(finding.row, finding.id, finding.code, finding.what, rows))


def print_warnings(result: object) -> None:
    """What must be seen on the standard error even where the standard output is JSON: a model that
    does not look, and caveats of an evaluation.
    """
    if isinstance(result, TrainResult):
        print_verdict(result.verdict, quiet=True)
    elif isinstance(result, EvaluationReport):
        from .common import print_caveats

        print_caveats(result.caveats)


def print_check(checked: CheckResult, most: int = 20) -> None:
    """Counts, a line for each class of defect, the first of the defects themselves, and where all
    of them are.
    """
    from .. import console
    from ..conversations.defects import DEFECT_KINDS

    shapes = sorted(checked.shapes.items(), key=lambda item: -item[1])
    told = ", ".join(f"{count:,} {shape}" for shape, count in shapes)
    console.out.print(f"{checked.format}: {checked.rows:,} rows ({told})")
    console.out.print(
        f"{checked.good:,} good, {checked.turns:,} answers, {checked.images:,} pictures,"
        f" {checked.without_image:,} rows without one"
    )
    rows = [
        [
            code,
            f"{count:,}",
            "rejected" if DEFECT_KINDS[code].rejects else "used",
            f"{DEFECT_KINDS[code].about}. {DEFECT_KINDS[code].do}.",
        ]
        for code, count in sorted(
            checked.counts.items(), key=lambda item: (not DEFECT_KINDS[item[0]].rejects, -item[1])
        )
    ]
    for finding in (*checked.defects, *checked.notes):
        if not finding.row:
            console.out.print(f"The file {finding.what}.", style="yellow")
    if rows:
        console.print_table(
            "What was found", ["class", "times", "rows are", "what it is, and what to do"], rows
        )
    print_unread(checked.notes)
    for finding in checked.defects[:most]:
        console.out.print(console.escape_controls(_sentence(finding), lines=False), style="red")
    if checked.rejected:
        where = f" -> {checked.rejects}" if checked.rejects else ""
        console.out.print(f"{len(checked.defects):,} defects in {checked.rejected:,} rows{where}")


def print_demo(summary: DemoSummary) -> None:
    """The figures, beside what is promised of them."""
    from .. import console
    from ..practice.thresholds import DEFAULT_SCENES

    accuracy, merge, speech = summary.accuracy, summary.merge, summary.speech
    rows = [
        ["held-out scenes", f"{accuracy.real:.3f}", _promise(summary, "accuracy.real")],
        ["  without the picture", f"{accuracy.blind:.3f}", _promise(summary, "accuracy.blind")],
        ["  with another picture", f"{accuracy.shuffled:.3f}", ""],
        [
            "unseen colour-shape pairs",
            f"{accuracy.unseen_combinations:.3f}",
            _promise(summary, "accuracy.unseen_combinations"),
        ],
        ["unseen handwriting", f"{accuracy.digits:.3f}", _promise(summary, "accuracy.digits")],
        ["verdict of the training", summary.train.looks, _promise(summary, "train.looks")],
        ["verdict of the evaluation", summary.looks, _promise(summary, "looks")],
        [
            "loss lost in the merge",
            f"{merge.delta_loss:+.5f}",
            _promise(summary, "merge.delta_loss"),
        ],
        [
            "same answers after the merge",
            f"{merge.same_answers:.1%}",
            _promise(summary, "merge.same_answers"),
        ],
        [
            "projector's change in the merge",
            f"{merge.projector_change}",
            _promise(summary, "merge.projector_change"),
        ],
        ["word error rate, new voices", f"{speech.wer:.3f}", ""],
        ["spoken questions answered right", f"{speech.answer_accuracy:.3f}", ""],
        ["seconds in all", f"{summary.seconds['total']:.0f}", ""],
    ]
    console.print_table("The road, walked", ["figure", "value", "promised"], rows)
    if any(floor.met is None for floor in summary.floors.values()):
        console.out.print(
            f"{summary.scenes:,} scenes: the accuracies are promised for {DEFAULT_SCENES:,} or"
            f" more, so"
            " they were not judged"
        )
    out = summary.folder
    console.out.print(
        f"summary -> {out / 'summary.json'}; pictures and answers ->"
        f" {out / 'reports' / 'heldout' / 'report.html'}"
    )


def _promise(summary: DemoSummary, figure: str) -> str:
    """The floor of a figure, and whether it is met; in words where it was not judged."""
    floor = summary.floors[figure]
    return {True: f"{floor.wanted} ✓", False: f"{floor.wanted} ✗", None: "not judged"}[floor.met]
