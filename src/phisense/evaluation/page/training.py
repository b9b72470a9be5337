"""What was trained: parts, data, duration, stages, curves, the complete recipe; and what the merge
measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import yaml

from .markup import (
    arithmetic_rows,
    definition_list,
    escape_text,
    format_number,
    format_signed,
    html_table,
)
from .plots import loss_curve

if TYPE_CHECKING:
    from ...intervals import Interval
    from ...pipeline.results import MergeMeasurement, TrainingVerdict
    from ..model_facts import ModelFacts
    from ..report import Report
    from ..training_facts import MergeFacts, StageFacts

MERGE_LABELS = {
    "merged": "this model",
    "on_original": "onto the original base",
    "four_bit": "in 4 bits, as --quantize opens it",
    "back_to_nf4": "control: the merged weights back into 4 bits",
    "shuffled": "control: layers reversed",
}
_UNITS = {
    "layers": "layers",
    "width": "wide",
    "vocabulary": "tokens known",
    "picture_pixels": "pixels a side",
    "patch_pixels": "pixels a patch",
}
_PARTS = {
    "language": "language part",
    "vision": "vision part",
    "projector": "projector",
    "speech": "speech part",
    "whole": "whole",
}


def training_section(reports: Sequence[Report]) -> list[str]:
    """One section for each model, however many reports there are about it."""
    models: dict[str, tuple[str, ModelFacts]] = {}
    for report in reports:
        key = str(report.about.fingerprint or (report.model, repr(report.facts.document)))
        models.setdefault(key, (report.model, report.facts))
    return [
        (f"<h3>{escape_text(name)}</h3>" if len(models) > 1 else "") + _model(about)
        for name, about in models.values()
    ]


def _model(about: ModelFacts) -> str:
    if not about:
        return (
            "<p>Nothing is known of how this model was made: its folder tells nothing that phisense"
            " wrote.</p>"
        )
    parts = [(_PARTS.get(part, part), _described(told)) for part, told in about.parts.items()]
    if about.stages is None:
        return (
            "<p>phisense did not train this model, or merged it before it wrote down how.</p>"
            + definition_list(parts)
        )
    moved = about.projector_change
    pairs: list[tuple[str, object]] = [
        ("recipe", about.name),
        ("time of training", training_duration(about)),
        ("parameters trained", None if about.trainable is None else f"{about.trainable:,}"),
        ("the projector moved by", None if moved is None else f"{moved:.2f} times its length"),
    ]
    pairs += arithmetic_rows(about.arithmetic)
    told = (
        _looks(about.looks),
        _data(about),
        _stages(about.stages),
        _gradients(about.stages),
        _curves(about),
        _merge(about.merge),
    )
    return "".join([definition_list([*pairs, *parts]), *told, _recipe(about)])


def _looks(looks: TrainingVerdict | None) -> str:
    """The verdict of training itself, from its last evaluation on held-out questions."""
    if not looks:
        return ""
    words = {
        "looks": "When it was trained it looked at its pictures.",
        "blind": "When it was trained it was not shown to look at its pictures.",
        "too few": (
            "When it was trained too few questions were asked to say whether it looks at its"
            " pictures."
        ),
    }[looks.verdict]
    told = (
        f"{looks.questions} held-out questions about {looks.pictures} pictures were asked at"
        " its end"
    )
    if looks.difference is not None and looks.difference_shuffled is not None:
        told += (
            f": right with the picture {format_number(looks.real)},"
            f" {_less('without', looks.blind, looks.difference)}, "
        )
        told += _less("with another's", looks.shuffled, looks.difference_shuffled)
        if looks.difference_constant is not None:
            told += f", {_less('the commonest answer', looks.constant, looks.difference_constant)}"
    return (
        f"<p class='verdict {looks.verdict.replace(' ', '-')}'><b>{words}</b>"
        f" {escape_text(told)}.</p>"
    )


def _less(words: str, share: float | None, over: Interval) -> str:
    return (
        f"{words} {format_number(share)} (difference {format_signed(over.value)}, interval"
        f" {format_signed(over.low)} to {format_signed(over.high)})"
    )


def training_duration(about: ModelFacts) -> str:
    """The duration of training in words."""
    hours = about.hours
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _described(told: object) -> str:
    """A part in one line: its name and type, then its sizes."""
    if not isinstance(told, Mapping):
        return str(told)
    first = " · ".join(str(told[key]) for key in ("name", "kind") if told.get(key))
    rest = [
        f"{value:,} {_UNITS[key]}"
        for key, value in told.items()
        if key in _UNITS and isinstance(value, int)
    ]
    other = [
        f"{key} {value}"
        for key, value in told.items()
        if key not in (*_UNITS, "name", "kind") and value not in (None, [], False, 1)
    ]
    return ", ".join([first, *rest, *other])


def _data(about: ModelFacts) -> str:
    rows = [
        [
            escape_text(one.name),
            escape_text(one.stage),
            "–" if one.rows is None else f"{one.rows:,}",
            format_number(one.weight),
        ]
        for one in about.data
    ]
    held = ", ".join(about.held_out)
    kept = (
        "<p class='small'>Kept from training, for the merge and the watch:"
        f" {escape_text(held)}.</p>"
        if held
        else ""
    )
    return (
        f"<h3>Data</h3>{html_table(['file', 'stage', 'conversations', 'weight'], rows)}{kept}"
        if rows
        else kept
    )


def _stages(stages: Mapping[str, StageFacts]) -> str:
    head = [
        "stage",
        "conversations",
        "steps",
        "last loss",
        "held-out accuracy",
        "without picture",
        "tokens",
        "tokens a second",
    ]
    rows = [
        [
            escape_text(name),
            f"{stage.samples:,}",
            f"{stage.steps:,}",
            *map(format_number, (stage.last_loss, stage.held_out, stage.blind)),
            f"{stage.tokens:,}",
            f"{stage.tokens_per_second:,.0f}",
        ]
        for name, stage in stages.items()
    ]
    return f"<h3>Stages</h3>{html_table(head, rows)}"


def _gradients(stages: Mapping[str, StageFacts]) -> str:
    """Whether the gradient that training used is the derivative of the loss:
    training/gradient_check.py.
    """
    rows = [
        [
            escape_text(name),
            escape_text(f"{check.when} ({check.step:,})"),
            escape_text(part.part),
            "–" if part.cosine is None else f"{part.cosine:.4f}",
            "–" if part.norm_ratio is None else f"{part.norm_ratio:.3f}",
            "–" if part.error is None else f"{part.error:.2%}",
        ]
        for name, stage in stages.items()
        for check in stage.gradient_checks
        for part in check.parts
    ]
    if not rows:
        return ""
    told = (
        "Training's own gradient beside that of the same model in float32, and that one beside"
        " differences of the loss."
    )
    head = ["stage", "when (step)", "part", "cosine", "norm, times", "error by differences"]
    return f"<h3>The gradient, checked</h3><p class='small'>{told}</p>{html_table(head, rows)}"


def _curves(about: ModelFacts) -> str:
    plots = [
        f"<figure>{loss_curve(one, name)}</figure>"
        for name, one in about.curves.items()
        if one.steps
    ]
    return f"<div class='plots'>{''.join(plots)}</div>" if plots else ""


def _merge(report: MergeFacts | None) -> str:
    if not report:
        return ""
    reference = report.reference_accuracy
    rows = [
        [
            f"reference: {escape_text(report.reference)}",
            f"{report.reference_loss:.5f}",
            "",
            "" if reference is None else f"{reference.value:.1%}",
            "",
            "",
        ]
    ]
    for key, meaning in MERGE_LABELS.items():
        if found := report.weights.get(key):
            delta = f"{'+' if found.delta_loss >= 0 else '−'}{abs(found.delta_loss):.5f}"
            rows.append(
                [
                    meaning,
                    f"{found.loss:.5f}",
                    delta,
                    _accuracy_beside(found),
                    "" if found.lost is None else f"{found.lost_answers} ({found.lost.value:.1%})",
                    f"{found.same_answers:.1%}",
                ]
            )
    moved = (
        ""
        if report.projector_change is None
        else f"The projector moved by {report.projector_change} in it. "
    )
    head = ["weights", "loss", "difference", "accuracy", "right → wrong", "same answers"]
    words = (
        f"<p class='small'>On {report.probes:,} held-out questions, in"
        f" {escape_text(report.dtype or '?')}. {moved}</p>"
    )
    refused = (
        f"<p><strong>It was refused</strong>: {escape_text('; '.join(report.rejected))}.</p>"
        if report.rejected
        else ""
    )
    return f"<h3>The merge</h3>{refused}{html_table(head, rows)}{words}{_gate(report)}"


def _accuracy_beside(found: MergeMeasurement) -> str:
    """The accuracy with its paired difference to the reference's, if it was measured."""
    if found.accuracy is None:
        return ""
    fall = found.delta_accuracy
    beside = (
        ""
        if fall is None
        else f" ({100 * fall.value:+.1f} points [{100 * fall.low:+.1f}, {100 * fall.high:+.1f}])"
    )
    return f"{found.accuracy.value:.1%}{beside}"


def _gate(report: MergeFacts) -> str:
    """The figures of the merged weights beside the limits."""
    merged = report.weights.get("merged")
    if report.gate is None or merged is None:
        return ""
    rows = [
        [one.figure, escape_text(one.got), escape_text(one.limit), "yes" if one.passes else "no"]
        for one in report.gate.judge(merged)
    ]
    return html_table(["the gate", "found", "admitted", "passes"], rows)


def _recipe(about: ModelFacts) -> str:
    if not about.recipe:
        return ""
    recipe = yaml.safe_dump(dict(about.recipe), sort_keys=False, width=60)
    return f"<h3>The whole recipe</h3><pre>{escape_text(recipe)}</pre>"
