r"""Training proves its gradient: what is about to move the weights is the derivative of the loss that the run reports.

On one small batch of the stage's own rows, for each part of what is trained, three gradients are compared:

    trained   backward of training's own loss, in its format, by its kernels, under its autocast and checkpointing
    twin      backward of the same loss in float32 by plain products (model/float32_twin.py)
    numeric   (L(w + e u) - L(w - e u)) / 2e of the twin's loss, which uses no backward at all

trained beside twin finds what computes wrongly: 4-bit layers that have no gradient, a kernel, a cast. Cosine and norm of whole gradients
are compared, since float32 is exact enough to be the measure. Dropout is off here: its mask may depend on the format.

twin beside numeric finds what both have in common: a detached tensor, a hook, a recomputation with another dropout mask. It is measured
along the gradient itself, which finds a wrong length, and along random directions, which find what is missing: over N weights, the
mean of N (numeric - predicted)^2 over random unit directions is the square of the gradient's error (Hutchinson's estimator). All of it is
float32, since a difference of two losses in bfloat16 is mostly rounding. Dropout is on, with the same random numbers each time.

Nothing is changed by it: weights are put back bit by bit, gradients and random numbers are as they were.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import PhisenseError, TrainingError
from ..model.float32_twin import computed_in_float32
from ..processes import Processes
from .data import Collator, Samples

Gradient = list[torch.Tensor]
Found = tuple[float | None, float]  # the ratio along a gradient, and the estimated error over its norm
Part = list[nn.Parameter]
DIRECTIONS = 2  # random ones for each part; one where there are more parts than two, of which a fault reaches several
MOST = 250_000_000  # weights of a part: two layers of Phi-3.5-mini, or all of its LoRA of rank 128 but three layers'
LOOKED_THROUGH = 1024  # rows, of which the shortest are taken
CHANGE = 1e-4  # of the loss, or of 1 if that is more, by which a difference moves it: above float32's rounding, below its curvature
STEPS = (1.0, 0.2, 5.0)  # times that; the others are tried where the first does not fit
ALIKE = 0.25  # by what share two steps may differ in how far a gradient is off, and it is the gradient that is wrong

#: What must hold, by the format that training computes in: least cosine and largest deviation of the norm, trained beside twin.
#: In bfloat16 an answer that is nearly certain has a gradient of one less its chance, which rounding changes by tenths; what was found
#: wrong in the wild had a cosine of 0.07 and a norm of 0.07.
LIMITS = {torch.float32: (0.98, 0.05), torch.bfloat16: (0.95, 0.20)}
NUMERIC = 0.02  # largest deviation along the gradient itself, twin beside numeric
MISSING = 0.05  # largest error of the twin's gradient, over its norm
UNMOVED = 1e-5  # of the loss: what has no gradient must not move it by more

_LANGUAGE, _TOWER = re.compile(r"language_model\.layers\.(\d+)\."), re.compile(r"vision_tower\..*?layers?\.(\d+)\.")
_WRONG_KERNEL = (
    "Likeliest: 4-bit layers laid out for inference, through which no gradient passes; a kernel that is wrong in this number format; or a "
    "library of a version that phisense does not know. Try --set compute_dtype=float32, and see phisense doctor"
)
_WRONG_GRAPH = (
    "Likeliest: a tensor that is detached on the way; a hook that changes a gradient; or a recomputation under checkpointing that draws "
    "other random numbers than the pass before it. Try --set train.checkpointing=false, and take out what was patched in"
)


@dataclass(frozen=True, slots=True)
class PartChecked:
    """One part's figures. `cosine` and `norm_ratio` are trained beside twin, None where neither has a gradient; `numeric_ratio` is numeric
    over twin along the gradient, `error` the norm of what is wrong in the twin's gradient over its norm, estimated. Both are None where the
    loss is too flat, or too sharply bent, to be measured by differences."""

    part: str
    weights: int
    norm: float
    cosine: float | None
    norm_ratio: float | None
    numeric_ratio: float | None
    error: float | None


class GradientCheck(TrainerCallback):
    """Checks before a stage's first step, after a resume, and after the stage's first look at held-out questions.

    `loss_of(batch)` is training's own loss of one batch; `looked()` whether held-out questions were asked already. `results` holds what
    was found, for train.json. Raises TrainingError if a gradient is wrong, in every process if in one.
    """

    def __init__(
        self,
        samples: Samples,
        collate: Collator,
        loss_of: Callable[[dict[str, Any]], torch.Tensor],
        dtype: torch.dtype,
        processes: Processes,
        looked: Callable[[], bool],
        seed: int,
    ) -> None:
        self.samples, self.collate, self.loss_of, self.dtype, self.looked = samples, collate, loss_of, dtype, looked
        self.processes, self.seed = processes, seed
        self.results: list[dict[str, Any]] = []
        self._after_look = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._check("after a resume" if state.global_step else "before the first step", state.global_step, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._after_look and self.looked():
            self._after_look = True
            self._check("after the first look", state.global_step, kwargs["model"])

    def _check(self, when: str, step: int, model: Any) -> None:
        started = time.monotonic()
        model = getattr(model, "module", model)  # not DistributedDataParallel's: its hooks would wait for the other processes
        rows = some_rows(self.samples, self.seed)
        before = self.collate.tokens
        batch = self.collate([self.samples[row] for row in rows])
        self.collate.tokens = before  # these were not trained on
        checked, failure = [], None
        try:
            checked = check_gradient(model, lambda: self.loss_of(batch), self.dtype, seed=self.seed)
        except PhisenseError as error:  # of any kind: the other processes wait for this one's word
            failure = error
        if self.processes.total(float(failure is not None)):
            raise failure or TrainingError("another process found its gradient wrong", do="See its message")
        self.results.append({
            "when": when, "step": step, "rows": len(rows), "seconds": time.monotonic() - started, "parts": [asdict(one) for one in checked],
        })  # fmt: skip


def some_rows(samples: Samples, seed: int) -> list[int]:
    """The shortest rows of each make among some that are drawn: several conversations about a picture, one, and none."""
    generator = torch.Generator().manual_seed(seed)
    lengths = samples.lengths
    drawn = torch.randperm(len(samples), generator=generator)[:LOOKED_THROUGH].tolist()
    chosen: dict[tuple[bool, bool], int] = {}
    for row in sorted(drawn, key=lambda i: lengths[i]):
        packed = samples.rows[row]
        chosen.setdefault((bool(packed.images), len(packed.ends) > 1), row)
    return sorted(chosen.values(), key=lambda i: lengths[i])


def parts_of(model: Any) -> dict[str, Part]:
    """What is trained, in parts: the projector; the first, middle and last layer of the language part; of the vision tower the first;
    and all the rest together. Of a larger part than `MOST` weights, as the rest is in full fine-tuning, those
    are taken that fit, since their gradients are held two or three times."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    language = sorted({int(found[1]) for name, _ in named if (found := _LANGUAGE.search(name))})
    tower = sorted({int(found[1]) for name, _ in named if (found := _TOWER.search(name))})
    chosen = {language[i] for i in (0, len(language) // 2, -1)} if language else set()
    parts: dict[str, Part] = {}
    for name, weight in named:
        kind = "LoRA of" if ".lora_" in name else "weights of"
        layer, seen = _LANGUAGE.search(name), _TOWER.search(name)
        if "multi_modal_projector" in name:
            part = "the projector"
        elif layer and int(layer[1]) in chosen:
            part = f"{kind} language layer {layer[1]}"
        elif seen and int(seen[1]) == tower[0]:
            part = f"{kind} vision layer {seen[1]}"
        else:
            part = "all other trained weights"
        held = parts.setdefault(part, [])
        if not held or sum(w.numel() for w in held) + weight.numel() <= MOST:
            held.append(weight)
    return parts


def check_gradient(model: Any, loss_of: Callable[[], torch.Tensor], dtype: torch.dtype, *, seed: int = 0) -> list[PartChecked]:
    """Compares the three gradients, part by part. `dtype` is the format that training computes in.

    Raises TrainingError for the first part whose gradient is wrong, with the figures and the likeliest causes.
    """
    parts = parts_of(model)
    checked = []
    with _undisturbed(model, seed) as drawn_alike:

        def loss() -> torch.Tensor:
            return drawn_alike(loss_of)

        with _without_dropout(model):
            trained = _gradients(model, parts, loss)
            with computed_in_float32(model):
                twin = _gradients(model, parts, loss)
        with computed_in_float32(model):
            as_drawn = _gradients(model, parts, loss) if _dropouts(model) else twin
            differences = _Differences(loss, DIRECTIONS if len(parts) <= 2 else 1)
            for number, (name, weights) in enumerate(parts.items()):
                cosine, ratio = _beside_twin(name, trained[name], twin[name], dtype)
                along, error = _beside_differences(name, differences.measure(weights, as_drawn[name], seed + number))
                checked.append(PartChecked(name, sum(w.numel() for w in weights), _norm(twin[name]), cosine, ratio, along, error))
    return checked


def _beside_twin(name: str, trained: Gradient, twin: Gradient, dtype: torch.dtype) -> tuple[float | None, float | None]:
    """Cosine and ratio of the norms of a part's two gradients, None if both are zero. Raises TrainingError unless they are alike."""
    least, most = LIMITS[dtype]
    ours, theirs = _norm(trained), _norm(twin)
    if ours == 0 and theirs == 0:
        return None, None
    cosine = _dot(trained, twin) / (ours * theirs) if ours > 0 and theirs > 0 else 0.0
    ratio = ours / theirs if theirs > 0 else math.inf
    if not (cosine >= least and abs(ratio - 1) <= most):
        raise TrainingError(
            f"the gradient of {name} is not what the same model gives in float32",
            got=f"cosine {cosine:.3f} and {ratio:.3f} times the norm",
            wanted=f"a cosine of at least {least} and a norm within {most:.0%}",
            do=_WRONG_KERNEL,
        )
    return cosine, ratio


def _beside_differences(name: str, measured: list[Found]) -> tuple[float | None, float | None]:
    """What `_Differences.measure` found of a part: that of the step that fits. Raises TrainingError if none does and two agree.

    A wrong gradient is wrong alike at every step; what a bend does goes with the square of the step, what rounding does with its inverse.
    """
    if _fits(measured[-1]):
        return measured[-1]
    first, *others = measured
    if not any(_alike(first, other) for other in others):
        return None, None
    along, error = first
    got = f"an error of {error:.1%} of its norm" + ("" if along is None else f", and {along:.3f} times it by differences along it")
    raise TrainingError(
        f"the gradient of {name} is not the derivative of the loss",
        got="no gradient, though the loss depends on it" if error == math.inf else got,
        wanted=f"an error of at most {MISSING:.0%}, and within {NUMERIC:.0%} along it",
        do=_WRONG_GRAPH,
    )


def _fits(found: Found) -> bool:
    along, error = found
    return error <= MISSING and (along is None or abs(along - 1) <= NUMERIC)


def _alike(one: Found, other: Found) -> bool:
    """Whether two steps found the gradient off by the same, along it or in all."""
    if one[0] is None or other[0] is None:
        return one[1] == other[1] == math.inf
    off, other_off = one[0] - 1, other[0] - 1
    along = min(abs(off), abs(other_off)) > NUMERIC and abs(off - other_off) <= ALIKE * max(abs(off), abs(other_off))
    missing = min(one[1], other[1]) > MISSING and abs(one[1] - other[1]) <= ALIKE * max(one[1], other[1])
    return along or missing


class _Differences:
    """A gradient of float32 beside differences of the loss: the derivative along it over its norm, None if it is zero; and its estimated
    error over its norm, by `directions` random ones."""

    def __init__(self, loss: Callable[[], torch.Tensor], directions: int) -> None:
        self.loss, self.directions = loss, directions
        with torch.no_grad():
            self.scale = max(abs(float(loss())), 1.0)  # float32 rounds the logits, however small the loss is

    def measure(self, weights: Part, gradient: Gradient, seed: int) -> list[Found]:
        """By steps of one length and, until one fits, of others."""
        found: list[Found] = []
        for factor in STEPS:
            found.append(self._at(weights, gradient, seed, factor * CHANGE * self.scale))
            if _fits(found[-1]):
                break
        return found

    def _at(self, weights: Part, gradient: Gradient, seed: int, change: float) -> Found:
        """With steps that move the loss by about `change`."""
        count, norm = sum(w.numel() for w in weights), _norm(gradient)
        generator = torch.Generator(weights[0].device).manual_seed(seed)
        randoms = [_random_like(weights, generator) for _ in range(self.directions)]
        if norm == 0:  # then the loss must not depend on these weights
            length = 0.01 * max(_norm(weights), count**0.5 * 1e-3)
            moved = max(2 * length * abs(_numeric(weights, u, length, self.loss)) for u in randoms)
            return None, 0.0 if moved <= UNMOVED * self.scale else math.inf
        unit = [g / norm for g in gradient]
        along = _numeric(weights, unit, change / (2 * norm), self.loss) / norm
        wrong = [_numeric(weights, u, change * count**0.5 / (2 * norm), self.loss) - _dot(gradient, u) for u in randoms]
        return along, math.sqrt(count * sum(one**2 for one in wrong) / len(wrong)) / norm


@torch.no_grad()
def _numeric(weights: Part, direction: Sequence[torch.Tensor], length: float, loss: Callable[[], torch.Tensor]) -> float:
    """The derivative of the loss along a unit direction, by a central difference; the weights are put back as they were."""
    before = [w.detach().clone() for w in weights]
    sides = []
    try:
        for sign in (1.0, -1.0):
            for w, old, d in zip(weights, before, direction, strict=True):
                w.copy_(old + sign * length * d)
            sides.append(float(loss()))
    finally:
        for w, old in zip(weights, before, strict=True):
            w.copy_(old)
    return (sides[0] - sides[1]) / (2 * length)


def _gradients(model: Any, parts: Mapping[str, Part], loss: Callable[[], torch.Tensor]) -> dict[str, Gradient]:
    """The backward pass as training does it, into `.grad`, which is empty before and after; zeros where nothing came."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    found = {name: [torch.zeros_like(w) if w.grad is None else w.grad.detach().float() for w in part] for name, part in parts.items()}
    model.zero_grad(set_to_none=True)
    return found


@contextmanager
def _undisturbed(model: Any, seed: int) -> Iterator[Callable[[Callable[[], torch.Tensor]], torch.Tensor]]:
    """Gives a function that computes a loss in training mode, always with the same random numbers; afterwards all is as it was."""
    weights = [p for p in model.parameters() if p.requires_grad]
    kept = [p.grad for p in weights]
    mode = {module: module.training for module in model.modules()}
    devices = [weights[0].device] if weights[0].device.type == "cuda" else []

    def loss(of: Callable[[], torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(seed)
        return of()

    with torch.random.fork_rng(devices=devices):
        model.train()
        try:
            yield loss
        finally:
            for module, training in mode.items():
                module.training = training
            for p, grad in zip(weights, kept, strict=True):
                p.grad = grad


def _dropouts(model: Any) -> list[nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    before = [(module, module.p) for module in _dropouts(model)]
    for module, _ in before:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in before:
            module.p = p


def _random_like(weights: Part, generator: torch.Generator) -> Gradient:
    """A direction of length 1, drawn evenly."""
    drawn = [torch.randn(w.shape, generator=generator, device=w.device) for w in weights]
    length = _norm(drawn)
    return [one / length for one in drawn]


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


def _dot(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(some, others, strict=True))
