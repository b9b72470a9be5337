"""What was trained: parts, data, hours, stages, curves, the whole recipe; and what the merge measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from .plots import curve
from .words import computed, facts, number, signed, table, text

if TYPE_CHECKING:
    from ..report import Report

MERGES = {
    "merged": "this model", "on_original": "onto the original base", "back_to_nf4": "back into 4 bits",
    "shuffled": "control: layers reversed",
}  # fmt: skip
_UNITS = {
    "layers": "layers", "width": "wide", "vocabulary": "tokens known", "picture_pixels": "pixels a side", "patch_pixels": "pixels a patch",
}  # fmt: skip
_PARTS = {"language": "language part", "vision": "vision part", "projector": "projector", "speech": "speech part", "whole": "whole"}


def trained(reports: Sequence[Report]) -> list[str]:
    """Once for each model, however many reports there are about it."""
    models: dict[str, tuple[str, dict[str, Any]]] = {}
    for report in reports:
        key = str(report.about.get("fingerprint") or (report.model, repr(report.facts)))
        models.setdefault(key, (report.model, report.facts))
    return [(f"<h3>{text(name)}</h3>" if len(models) > 1 else "") + _model(about) for name, about in models.values()]


def _model(about: dict[str, Any]) -> str:
    if not about:
        return "<p>Nothing is known of how this model was made: its folder tells nothing that phisense wrote.</p>"
    parts = [(_PARTS.get(part, part), _described(told)) for part, told in about.get("parts", {}).items()]
    if "stages" not in about:
        return "<p>phisense did not train this model, or merged it before it wrote down how.</p>" + facts(parts)
    pairs: list[tuple[str, object]] = [
        ("recipe", about.get("name")),
        ("time of training", hours_of(about)),
        ("parameters trained", f"{about['trainable']:,}" if "trainable" in about else None),
        ("the projector moved by", f"{about['projector_change']:.2f} times its length" if "projector_change" in about else None),
    ]
    pairs += computed(about.get("arithmetic"))
    told = (_looks(about.get("looks")), _data(about), _stages(about), _gradients(about), _curves(about), _merge(about.get("merge")))
    return "".join([facts([*pairs, *parts]), *told, _recipe(about)])


def _looks(looks: dict[str, Any] | None) -> str:
    """The training's own verdict, of its last look at held-out questions."""
    if not looks:
        return ""
    words = {
        "looks": "When it was trained it looked at its pictures.",
        "blind": "When it was trained it did not look at its pictures.",
        "too few": "When it was trained too few questions were asked to say whether it looks at its pictures.",
    }[looks["verdict"]]
    told = f"{looks['questions']} held-out questions about {looks['pictures']} pictures were asked at its end"
    if looks["difference"] is not None:
        told += f": right with the picture {number(looks['real'])}, {_less(looks, 'without', 'blind', 'difference')}, "
        told += _less(looks, "with another's", "shuffled", "difference_shuffled")
    return f"<p class='verdict {looks['verdict'].replace(' ', '-')}'><b>{words}</b> {text(told)}.</p>"


def _less(looks: dict[str, Any], words: str, condition: str, difference: str) -> str:
    over = looks[difference]
    return (
        f"{words} {number(looks[condition])} (difference {signed(over['value'])}, interval {signed(over['low'])} to {signed(over['high'])})"
    )


def hours_of(about: dict[str, Any]) -> str:
    hours = about.get("hours", 0.0)
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _described(told: Any) -> str:
    """A part in a line: its name and kind, then what is large about it."""
    if not isinstance(told, dict):
        return str(told)
    first = " · ".join(str(told[key]) for key in ("name", "kind") if told.get(key))
    rest = [f"{value:,} {_UNITS[key]}" for key, value in told.items() if key in _UNITS and isinstance(value, int)]
    other = [f"{key} {value}" for key, value in told.items() if key not in (*_UNITS, "name", "kind") and value not in (None, [], False, 1)]
    return ", ".join([first, *rest, *other])


def _data(about: dict[str, Any]) -> str:
    rows = [
        [text(one["name"]), text(one["stage"]), f"{one['rows']:,}" if "rows" in one else "–", number(one.get("weight", 1.0))]
        for one in about.get("data", ())
    ]
    held = ", ".join(about.get("held_out", ()))
    kept = f"<p class='small'>Kept from training, for the merge and the watch: {text(held)}.</p>" if held else ""
    return f"<h3>Data</h3>{table(['file', 'stage', 'conversations', 'weight'], rows)}{kept}" if rows else kept


def _stages(about: dict[str, Any]) -> str:
    head = ["stage", "conversations", "steps", "last loss", "held-out accuracy", "without picture", "tokens", "tokens a second"]
    rows = []
    for name, stage in about["stages"].items():
        rows.append([
            text(name), f"{stage['samples']:,}", f"{stage['steps']:,}",
            *(number(stage.get(key)) for key in ("last_loss", "held_out", "blind")),
            f"{stage.get('tokens', 0):,}", f"{stage.get('tokens_per_second', 0):,.0f}",
        ])  # fmt: skip
    return f"<h3>Stages</h3>{table(head, rows)}"


def _gradients(about: dict[str, Any]) -> str:
    """That what moved the weights was the derivative of the loss: training/gradient_check.py."""
    rows = [
        [
            text(name), text(f"{one['when']} ({one['step']:,})"), text(part["part"]),
            "–" if part["cosine"] is None else f"{part['cosine']:.4f}", "–" if part["norm_ratio"] is None else f"{part['norm_ratio']:.3f}",
            "–" if part["error"] is None else f"{part['error']:.2%}",
        ]
        for name, stage in about["stages"].items() for one in stage.get("gradient_check", ()) for part in one["parts"]
    ]  # fmt: skip
    if not rows:
        return ""
    told = "Training's own gradient beside that of the same model in float32, and that one beside differences of the loss."
    head = ["stage", "when (step)", "part", "cosine", "norm, times", "error by differences"]
    return f"<h3>The gradient, checked</h3><p class='small'>{told}</p>{table(head, rows)}"


def _curves(about: dict[str, Any]) -> str:
    plots = [f"<figure>{curve(one, name)}</figure>" for name, one in about.get("curves", {}).items() if one.get("step")]
    return f"<div class='plots'>{''.join(plots)}</div>" if plots else ""


def _merge(report: dict[str, Any] | None) -> str:
    if not report:
        return ""
    rows = [[f"reference: {text(report['reference'])}", f"{report['reference_loss']:.5f}", "", ""]]
    for key, meaning in MERGES.items():
        if isinstance(found := report.get(key), dict):
            delta = f"{'+' if found['delta_loss'] >= 0 else '−'}{abs(found['delta_loss']):.5f}"
            rows.append([meaning, f"{found['loss']:.5f}", delta, f"{found['same_answers']:.1%}"])
    moved = f"The projector moved by {report['projector_change']} in it. " if "projector_change" in report else ""
    gate = report.get("gate")
    gated = (
        f"A loss of more than {signed(gate['most_delta_loss'])}, or fewer than {gate['least_same_answers']:.1%} equal answers, would have "
        "been refused."
        if gate
        else ""
    )
    words = f"<p class='small'>On {report['probes']:,} held-out questions, in {text(report.get('dtype', '?'))}. {moved}{gated}</p>"
    return f"<h3>The merge</h3>{table(['weights', 'loss', 'difference', 'same answers'], rows)}{words}"


def _recipe(about: dict[str, Any]) -> str:
    recipe = about.get("recipe")
    return f"<h3>The whole recipe</h3><pre>{text(yaml.safe_dump(recipe, sort_keys=False, width=60))}</pre>" if recipe else ""
