"""The plan of a recipe on a device: peak memory and time of each step, whether it fits, and what
would make it fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..pipeline.records import Record
from ..recipe import Recipe
from . import duration, memory
from .advice import Change, advise
from .devices import GB, Device, cpu_memory
from .findings import Finding
from .lengths import Lengths, measure_lengths
from .memory import Peak
from .shapes import Shapes, read_shapes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """`seconds` is None if the data is missing; `tried` are the changes whose peak was predicted,
    if the step does not fit.
    """

    peak: Peak
    fits: bool
    lengths: Lengths | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    advice: str | None = None
    tried: tuple[Change, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The JSON object of a step."""
        return {
            **self.peak.to_dict(),
            "fits": self.fits,
            "step_seconds": self.step_seconds,
            "seconds": self.seconds,
            "advice": self.advice,
            "tokens": None if self.lengths is None else self.lengths.to_dict(),
            "tried": [change.to_dict() for change in self.tried],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Memory and time of each step of a recipe on one device."""

    device: Device
    steps: tuple[StepPlan, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """An entry of `plans` in the JSON of `doctor RECIPE`."""
        about = {
            "name": self.device.name,
            "bytes": self.device.memory,
            "dtype": self.device.dtype,
            "attention": self.device.attention,
        }
        return {
            "device": {**about, "rate": self.device.rate, "basis": self.device.basis},
            "steps": [step.to_dict() for step in self.steps],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport(Record):
    """What `phisense doctor` found; `no_plan` is the reason if the memory could not be planned."""

    findings: tuple[Finding, ...]
    plans: tuple[Plan, ...] = ()
    no_plan: str | None = None


def make_plan(recipe: Recipe, device: Device) -> Plan:
    """Plan every step of a recipe. Raises PartError if the shapes of a part are unavailable."""
    s = read_shapes(recipe)
    steps = [_plan_stage(recipe, name, s, device) for name in recipe.train.stages]
    merge = memory.merging_peak(recipe, s, device)
    steps.append(
        StepPlan(
            merge, merge.total <= device.memory, advice=_merge_elsewhere(recipe, s, merge, device)
        )
    )
    using = (memory.evaluation_peak(recipe, s, device), memory.chat_peak(recipe, s, device))
    steps += [
        StepPlan(peak, peak.total <= device.memory, advice=_smaller(recipe, s, peak, device))
        for peak in using
    ]
    shared: tuple[str, ...] = ()
    if recipe.train.shard and device.processes > 1:
        shared = (f"training: one of {device.processes} processes that share the model",)
    return Plan(device, tuple(steps), (*s.notes, *shared))


def _plan_stage(recipe: Recipe, name: str, s: Shapes, device: Device) -> StepPlan:
    asked = recipe.train.stages[name]
    found = measure_lengths(recipe, name, s)
    peak = memory.training_peak(recipe, name, s, device, found)
    each = duration.step_seconds(s, recipe, name, asked, device, found)
    count = duration.count_steps(asked, found)
    step = StepPlan(
        peak, peak.total <= device.memory, found, each, None if count is None else count * each
    )
    if step.fits:
        return step

    measured: dict[int, Lengths] = {}  # by image token count

    def predict(changed: Recipe) -> float:
        """Peak with a changed recipe: with other image token counts the rows are measured again, a
        lower `max_length` caps them.
        """
        other, lengths = s, found
        if changed.projector != recipe.projector:
            other = read_shapes(changed)
            lengths = measured.setdefault(other.image_tokens, measure_lengths(recipe, name, other))
        longest = min(lengths.longest, changed.train.stages[name].max_length)
        cut = replace(
            lengths,
            longest=longest,
            supervised=min(lengths.supervised, longest),
            scores=min(lengths.scores, longest**2),
        )
        return memory.training_peak(changed, name, other, device, cut).total

    best, tried = advise(recipe, name, device.memory, predict)
    told = (
        f"--set {best.keys} ({best.cost}): {best.peak / GB:.1f} GB"
        if best
        else "no single change makes it fit"
    )
    return replace(step, advice=told, tried=tuple(tried))


def _merge_elsewhere(recipe: Recipe, s: Shapes, peak: Peak, device: Device) -> str | None:
    if peak.total <= device.memory:
        return None
    if device.cuda:
        here = cpu_memory()
        return (
            "merge with --device cpu: it needs as much memory there, this machine has"
            f" {here / GB:.0f} GB"
        )
    return "no single change makes it fit"


def _smaller(recipe: Recipe, s: Shapes, peak: Peak, device: Device) -> str | None:
    """A smaller batch that makes an evaluation fit; there is no such change for a chat."""
    if peak.total <= device.memory:
        return None
    if peak.step == "evaluate":
        for rows in (n for n in (32, 16, 8, 4, 2, 1) if n < recipe.evaluate.batch_size):
            changed = recipe.model_copy(
                update={"evaluate": recipe.evaluate.model_copy(update={"batch_size": rows})}
            )
            if memory.evaluation_peak(changed, s, device).total <= device.memory:
                return f"--batch-size {rows} (the same result, somewhat slower)"
    return "no single change makes it fit"
