"""Typed records of what `train.json`, `training.json` and `merge_report.json` contain, as far as a
report shows it. Each class reads the current JSON; unknown keys are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..intervals import Interval
from ..pipeline.json_fields import JsonObject, objects, optional, required
from ..pipeline.results import GradientCheckResult, MergeGate, MergeMeasurement


@dataclass(frozen=True, slots=True)
class StageFacts:
    """A training stage: `samples` conversations in `steps` optimizer steps, the last logged loss,
    and the last accuracy on held-out questions, with the image (`held_out`) and without.
    """

    samples: int
    steps: int
    last_loss: float | None
    held_out: float | None
    blind: float | None
    tokens: int
    tokens_per_second: float
    gradient_checks: tuple[GradientCheckResult, ...]

    @classmethod
    def from_dict(cls, document: JsonObject, source: str) -> StageFacts:
        """Read an entry of `stages` of `train.json`."""
        return cls(
            required(document, "samples", int, source),
            required(document, "steps", int, source),
            optional(document, "last_loss", float, source),
            optional(document, "held_out", float, source),
            optional(document, "blind", float, source),
            optional(document, "tokens", int, source) or 0,
            optional(document, "tokens_per_second", float, source) or 0.0,
            tuple(
                GradientCheckResult.from_dict(one, source)
                for one in objects(document, "gradient_check", source)
            ),
        )


@dataclass(frozen=True, slots=True)
class HeldOutCurve:
    """Accuracy on held-out questions by optimizer step, with the image and without; `blind` is
    empty if it was not evaluated.
    """

    steps: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()
    blind: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The logged loss of a stage by optimizer step."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    held_out: HeldOutCurve = field(default_factory=HeldOutCurve)

    @classmethod
    def from_dict(cls, document: JsonObject, source: str) -> LossCurve:
        """Read an entry of `curves` of `training.json`."""
        held_out = optional(document, "held_out", dict, source) or {}
        return cls(
            tuple(optional(document, "step", list, source) or ()),
            tuple(optional(document, "loss", list, source) or ()),
            HeldOutCurve(
                *(
                    tuple(optional(held_out, key, list, source) or ())
                    for key in ("step", "accuracy", "blind")
                )
            ),
        )


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """A data set of a stage: its file name, `rows` (None if not recorded), and its weight."""

    name: str
    stage: str
    rows: int | None
    weight: float

    @classmethod
    def from_dict(cls, document: JsonObject, source: str) -> TrainingFile:
        """Read an entry of `data` of `training.json`."""
        weight = optional(document, "weight", float, source)
        return cls(
            required(document, "name", str, source),
            required(document, "stage", str, source),
            optional(document, "rows", int, source),
            1.0 if weight is None else weight,
        )


@dataclass(frozen=True, slots=True)
class MergeFacts:
    """`merge_report.json`: `weights` by what was measured ("merged", "on_original", "back_to_nf4",
    "four_bit", "shuffled"), each compared with `reference` on `probes` probes; `rejected` says why
    no model was written.
    """

    reference: str
    reference_loss: float
    probes: int
    dtype: str | None
    projector_change: float | None
    weights: Mapping[str, MergeMeasurement]
    gate: MergeGate | None
    reference_accuracy: Interval | None = None
    rejected: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, document: JsonObject, source: str) -> MergeFacts:
        """Read `merge_report.json`."""
        gate = optional(document, "gate", dict, source)
        accuracy = optional(document, "reference_accuracy", dict, source)
        return cls(
            required(document, "reference", str, source),
            required(document, "reference_loss", float, source),
            required(document, "probes", int, source),
            optional(document, "dtype", str, source),
            optional(document, "projector_change", float, source),
            {
                name: MergeMeasurement.from_dict(one, f"{source}: {name}")
                for name, one in document.items()
                if isinstance(one, Mapping) and all(key in one for key in _MEASURED)
            },
            MergeGate.from_dict(gate, f"{source}: gate") if gate else None,
            Interval.from_dict(accuracy, f"{source}: reference_accuracy") if accuracy else None,
            tuple(map(str, optional(document, "rejected", list, source) or ())),
        )


_MEASURED = ("loss", "delta_loss", "same_answers")


@dataclass(frozen=True, slots=True)
class ComputedIn:
    """The arithmetic of a step, as recorded by model/arithmetic.py: number format and why it was
    chosen, machine, relevant processor instructions, library versions.
    """

    format: str
    reason: str
    machine: str | None
    instructions: tuple[str, ...]
    libraries: Mapping[str, str]

    @classmethod
    def from_dict(cls, document: JsonObject, source: str) -> ComputedIn:
        """Read `arithmetic` of `train.json` or `scores.json`."""
        return cls(
            required(document, "format", str, source),
            required(document, "reason", str, source),
            optional(document, "gpu", str, source) or optional(document, "processor", str, source),
            tuple(map(str, optional(document, "instructions", list, source) or ())),
            {
                str(name): str(version)
                for name, version in (optional(document, "libraries", dict, source) or {}).items()
            },
        )
