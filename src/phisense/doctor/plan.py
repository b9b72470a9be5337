"""The plan of a recipe on a device: for each step its peak memory, its time, whether it fits, and what would make it fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..recipe import Recipe
from . import duration, memory
from .advice import Change, advise
from .devices import Device, cpu_memory
from .lengths import Lengths, lengths
from .memory import Peak
from .shapes import Shapes, shapes_of


@dataclass(frozen=True, slots=True)
class Step:
    """`seconds` is None where the data is not there to count; `tried` are the changes that were predicted, if it does not fit."""

    peak: Peak
    fits: bool
    lengths: Lengths | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    advice: str | None = None
    tried: tuple[Change, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        rest = {"fits": self.fits, "step_seconds": self.step_seconds, "seconds": self.seconds, "advice": self.advice}
        data = None
        if self.lengths is not None:
            data = asdict(self.lengths)
        return {**self.peak.as_dict(), **rest, "tokens": data, "tried": [change.as_dict() for change in self.tried]}


@dataclass(frozen=True, slots=True)
class Plan:
    device: Device
    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        about = {"name": self.device.name, "bytes": self.device.memory, "dtype": self.device.dtype, "attention": self.device.attention}
        return {
            "device": {**about, "rate": self.device.rate, "basis": self.device.basis},
            "steps": [step.as_dict() for step in self.steps],
            "notes": list(self.notes),
        }


def plan(recipe: Recipe, device: Device) -> Plan:
    """Raises PartError if the shapes of a part are not to be had."""
    s = shapes_of(recipe)
    steps = [_stage(recipe, name, s, device) for name in recipe.train.stages]
    merge = memory.merging(recipe, s, device)
    steps.append(Step(merge, merge.total <= device.memory, advice=_merge_elsewhere(recipe, s, merge, device)))
    using = (memory.evaluating(recipe, s, device), memory.chatting(recipe, s, device))
    steps += [Step(peak, peak.total <= device.memory, advice=_smaller(recipe, s, peak, device)) for peak in using]
    return Plan(device, tuple(steps), s.notes)


def _stage(recipe: Recipe, name: str, s: Shapes, device: Device) -> Step:
    asked = recipe.train.stages[name]
    found = lengths(recipe, name, s)
    peak = memory.training(recipe, name, s, device, found)
    each = duration.step_seconds(s, recipe, name, asked, device, found)
    count = duration.steps(asked, found)
    step = Step(peak, peak.total <= device.memory, found, each, None if count is None else count * each)
    if step.fits:
        return step

    def predict(changed: Recipe) -> float:
        """Other slots make rows longer or shorter by as many; a shorter limit cuts the longest."""
        other = s if changed.projector == recipe.projector else shapes_of(changed)
        stage = changed.train.stages[name]
        whole = found.longest if found.rows is None else found.longest - s.slots + other.slots
        longest = min(whole, stage.length)
        cut = replace(found, longest=longest, supervised=min(found.supervised, longest), scores=min(found.scores, longest**2))
        return memory.training(changed, name, other, device, cut).total

    best, tried = advise(recipe, name, device.memory, predict)
    told = f"--set {best.keys} ({best.cost}): {best.peak / 1e9:.1f} GB" if best else "no single change makes it fit"
    return replace(step, advice=told, tried=tuple(tried))


def _merge_elsewhere(recipe: Recipe, s: Shapes, peak: Peak, device: Device) -> str | None:
    if peak.total <= device.memory:
        return None
    if device.cuda:
        here = cpu_memory()
        return f"merge with --device cpu: it needs as much memory there, this machine has {here / 1e9:.0f} GB"
    return "no single change makes it fit"


def _smaller(recipe: Recipe, s: Shapes, peak: Peak, device: Device) -> str | None:
    """A smaller batch for an evaluation, a smaller window for a chat."""
    if peak.total <= device.memory:
        return None
    if peak.step == "evaluate":
        for rows in (n for n in (32, 16, 8, 4, 2, 1) if n < recipe.evaluate.batch):
            changed = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"batch": rows})})
            if memory.evaluating(changed, s, device).total <= device.memory:
                return f"--batch {rows} (the same result, somewhat slower)"
    return "no single change makes it fit"
