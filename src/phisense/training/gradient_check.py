r"""Gradient check: verifies that the gradient used in training is the derivative of the reported
loss.

On one small batch of the stage's own rows, three gradients of each group of trained parameters are
compared:

    trained   backward of training's own loss, in its dtype, with its kernels, autocast and
              checkpointing
    twin      backward of the same loss in float32 by plain products (model/float32_twin.py)
    numeric   (L(w + e u) - L(w - e u)) / 2e of the twin's loss, which uses no backward at all

trained against twin finds wrong computation: 4-bit layers without a gradient, a kernel, a cast.
Cosine and norm of whole gradients are compared, since float32 is precise enough to be the
reference. Dropout is off here: its mask may depend on the dtype.

twin against numeric finds errors that both backward passes share: a detached tensor, a hook, a
recomputation with another dropout mask. It is measured along the gradient itself, which detects a
wrong length, and along random directions, which detect missing parts: over N weights, the mean of N
(numeric - predicted)^2 over random unit directions is the squared error of the gradient
(Hutchinson's estimator). All of it is in float32, since a difference of two losses in bfloat16 is
mostly rounding. Dropout is on, with the same random numbers each time.

The check has no side effects: weights are restored bit by bit (finite_differences.py), and so are
gradients and RNG state (loss_gradients.py).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distributed import ProcessGroup
from ..errors import PhisenseError, TrainingError
from ..malloc import release_free_memory
from ..model.float32_twin import computed_in_float32
from ..pipeline.results import GradientCheckResult, GradientComparison
from ..prompt import IGNORE_INDEX
from .data import Collator, Samples
from .finite_differences import (
    MAX_DEVIATION,
    MAX_ERROR,
    Differences,
    Gradient,
    NumericResult,
    Weights,
    agree,
    dot,
    fits,
    norm_of,
)
from .loss_gradients import dropouts, gradients, preserved_state, without_dropout

# random directions per part; one if there are more than two parts, since a fault shows in several
NUM_DIRECTIONS = 2
# per part: two layers of Phi-3.5-mini, or its LoRA of rank 128 in all but three layers
MAX_WEIGHTS = 250_000_000
MAX_ROWS = 1024  # rows to draw, of which the shortest are taken
#: Minimum number of supervised tokens in a check, if the data and the memory have them. In bfloat16
#: one of twelve draws of two rows with two labels each had a cosine of 0.90; eight draws of eight
#: rows, with 16 to 21 labels, had at least 0.984.
MIN_LABELS = 16
#: Draws of labels, and of rows where there are more than `MAX_ROWS`, each of which has to disagree
#: with the twin before a run is stopped. A wrong kernel is wrong on any; rounding is not.
DRAWS = {torch.float32: 1, torch.bfloat16: 3}

#: Minimum cosine and maximum deviation of the norm, trained against twin, by compute dtype. In
#: bfloat16 the gradient of a nearly certain token is one minus its probability, which rounding
#: changes by tenths; a real fault that was found had a cosine of 0.07 and a norm ratio of 0.07.
TOLERANCES = {torch.float32: (0.98, 0.05), torch.bfloat16: (0.95, 0.20)}

_LANGUAGE = re.compile(r"language_model\.layers\.(\d+)\.")
_TOWER = re.compile(r"vision_tower\..*?layers?\.(\d+)\.")
_WRONG_KERNEL = (
    "Likeliest: 4-bit layers laid out for inference, through which no gradient passes; a kernel"
    " that is wrong in this number format; or a library of a version that phisense does not know."
    " Try --set compute_dtype=float32, and see phisense doctor"
)
_WRONG_GRAPH = (
    "Likeliest: a tensor that is detached on the way; a hook that changes a gradient; or a"
    " recomputation under checkpointing that draws other random numbers than the pass before it."
    " Try --set train.gradient_checkpointing=false, and take out what was patched in"
)


class TwinError(TrainingError):
    """The gradient that is used in training is not that of the float32 twin."""


class GradientCheck(TrainerCallback):
    """Checks before a stage's first step, after a resume, and after the stage's first evaluation.

    `loss_of(batch)` is training's own loss of one batch; `evaluated()` whether held-out questions
    were evaluated already; `max_tokens` how many the rows that are checked may have together, but
    for one of each kind. `results` are those of train.json. Raises TrainingError if a
    gradient is wrong, in every process if in one.
    """

    def __init__(
        self,
        samples: Samples,
        collate: Collator,
        loss_of: Callable[[dict[str, Any]], torch.Tensor],
        dtype: torch.dtype,
        processes: ProcessGroup,
        evaluated: Callable[[], bool],
        seed: int,
        max_tokens: int,
    ) -> None:
        self.samples = samples
        self.collate = collate
        self.loss_of = loss_of
        self.dtype = dtype
        self.evaluated = evaluated
        self.processes, self.seed, self.max_tokens = processes, seed, max_tokens
        self.results: list[GradientCheckResult] = []
        self._checked_after_eval = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check before the first step, and after a resume. Raises TrainingError."""
        self._check(
            "after a resume" if state.global_step else "before the first step",
            state.global_step,
            kwargs["model"],
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check once more after the first evaluation. Raises TrainingError."""
        if not self._checked_after_eval and self.evaluated():
            self._checked_after_eval = True
            self._check("after the first look", state.global_step, kwargs["model"])

    def _check(self, when: str, step: int, model: Any) -> None:
        started = time.monotonic()
        # without the DistributedDataParallel wrapper, whose hooks would wait for other processes
        model = getattr(model, "module", model)
        rows = draw = 0
        checked: tuple[GradientComparison, ...] = ()
        failure: PhisenseError | None = None
        for draw in range(DRAWS[self.dtype]):
            try:
                rows, checked = self._check_drawn(model, self.seed + draw)
                failure = None
                break
            except TwinError as error:
                failure = error.with_traceback(None)  # it holds the gradients
            except PhisenseError as error:  # of any kind: the other processes wait for this result
                failure = error
                break
        if self.processes.all_reduce_sum(float(failure is not None)):
            raise failure or TrainingError(
                "another process found its gradient wrong", do="See its message"
            )
        release_free_memory()
        self.results.append(
            GradientCheckResult(
                when=when,
                step=step,
                rows=rows,
                draws=draw + 1,
                seconds=time.monotonic() - started,
                parts=checked,
            )
        )

    def _check_drawn(self, model: Any, seed: int) -> tuple[int, tuple[GradientComparison, ...]]:
        """The number of rows that are drawn with `seed`, and what `check_gradient` finds on them
        and on labels that are drawn with it, too.
        """
        rows = sample_rows(self.samples, seed, self.max_tokens)
        before = self.collate.tokens
        batch = self.collate([self.samples[row] for row in rows])
        self.collate.tokens = before  # these were not trained on
        vocabulary = model.get_output_embeddings().out_features
        batch = {**batch, "labels": drawn_labels(batch["labels"], vocabulary, seed)}
        found = check_gradient(model, lambda: self.loss_of(batch), self.dtype, seed=seed)
        return len(rows), tuple(found)


def drawn_labels(labels: torch.Tensor, vocabulary: int, seed: int) -> torch.Tensor:
    """Labels `(B, T)` with every one that counts replaced by a random token.

    The gradient of an answer that the model is sure of is what is left of one less its probability,
    mostly rounding in bfloat16: a sound run on easy-VQA, at a loss of 0.27, was stopped at a cosine
    of 0.946. Of a token that it does not expect the gradient is large, however much was learned.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(vocabulary, labels.shape, generator=generator).to(labels)
    return torch.where(labels == IGNORE_INDEX, labels, drawn)


def sample_rows(samples: Samples, seed: int, max_tokens: int) -> list[int]:
    """The shortest row of each kind among some drawn at random: one or several conversations about
    no image, one, or several; and the next shortest of any, until `MIN_LABELS` tokens have a loss
    or there would be more than `max_tokens` tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = samples.lengths
    drawn = torch.randperm(len(samples), generator=generator)[:MAX_ROWS].tolist()
    by_length = sorted(drawn, key=lambda i: lengths[i])
    kinds: dict[tuple[int, bool], int] = {}
    for row in by_length:
        packed = samples.rows[row]
        kinds.setdefault((min(len(packed.images), 2), len(packed.ends) > 1), row)
    rows = list(kinds.values())

    def labels() -> int:
        found = (samples.rows[row].rendered.labels for row in rows)
        return sum(label != IGNORE_INDEX for one in found for label in one)

    for row in by_length:
        if labels() >= MIN_LABELS or sum(lengths[i] for i in (*rows, row)) > max_tokens:
            break
        if row not in rows:
            rows.append(row)
    return rows


def group_parameters(model: Any) -> dict[str, Weights]:
    """The trained parameters in groups: projector; first, middle and last language layer; first
    vision layer; all others.

    A group of more than `MAX_WEIGHTS` weights, as the others are in full fine-tuning, is cut to the
    weights that fit, since their gradients are held two or three times.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    language = sorted({int(found[1]) for name, _ in named if (found := _LANGUAGE.search(name))})
    tower = sorted({int(found[1]) for name, _ in named if (found := _TOWER.search(name))})
    chosen = {language[i] for i in (0, len(language) // 2, -1)} if language else set()
    parts: dict[str, Weights] = {}
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
        if not held or sum(w.numel() for w in held) + weight.numel() <= MAX_WEIGHTS:
            held.append(weight)
    return parts


def check_gradient(
    model: Any, loss_of: Callable[[], torch.Tensor], dtype: torch.dtype, *, seed: int = 0
) -> list[GradientComparison]:
    """Compare the three gradients, part by part. `dtype` is the compute dtype of training.

    Raises TrainingError for the first part whose gradient is wrong, with the figures and the
    likeliest causes.
    """
    parts = group_parameters(model)
    checked = []
    with preserved_state(model, seed) as drawn_alike:

        def loss() -> torch.Tensor:
            return drawn_alike(loss_of)

        with without_dropout(model):
            trained = gradients(model, parts, loss)
            with computed_in_float32(model):
                twin = gradients(model, parts, loss)
        with computed_in_float32(model):
            as_drawn = gradients(model, parts, loss) if dropouts(model) else twin
            differences = Differences(loss, NUM_DIRECTIONS if len(parts) <= 2 else 1)
            for number, (name, weights) in enumerate(parts.items()):
                cosine, ratio = _compare_to_twin(name, trained[name], twin[name], dtype)
                along, error = _compare_to_differences(
                    name, differences.measure(weights, as_drawn[name], seed + number)
                )
                checked.append(
                    GradientComparison(
                        part=name,
                        weights=sum(w.numel() for w in weights),
                        norm=norm_of(twin[name]),
                        cosine=cosine,
                        norm_ratio=ratio,
                        numeric_ratio=along,
                        error=error,
                    )
                )
    return checked


def _compare_to_twin(
    name: str, trained: Gradient, twin: Gradient, dtype: torch.dtype
) -> tuple[float | None, float | None]:
    """Cosine and norm ratio of a part's trained and twin gradients, None if both are zero.

    Raises TrainingError if they differ by more than `TOLERANCES`.
    """
    least, most = TOLERANCES[dtype]
    ours, theirs = norm_of(trained), norm_of(twin)
    if ours == 0 and theirs == 0:
        return None, None
    cosine = dot(trained, twin) / (ours * theirs) if ours > 0 and theirs > 0 else 0.0
    ratio = ours / theirs if theirs > 0 else math.inf
    if not (cosine >= least and abs(ratio - 1) <= most):
        raise TwinError(
            f"the gradient of {name} is not what the same model gives in float32",
            got=f"cosine {cosine:.3f} and {ratio:.3f} times the norm",
            wanted=f"a cosine of at least {least} and a norm within {most:.0%}",
            do=_WRONG_KERNEL,
        )
    return cosine, ratio


def _compare_to_differences(
    name: str, measured: list[NumericResult]
) -> tuple[float | None, float | None]:
    """The result of `Differences.measure` that fits, None if none does. Raises TrainingError if
    none does and two agree.

    A wrong gradient has the same error at every step length; the error by curvature grows with the
    square of the step, that by rounding with its inverse.
    """
    if fits(measured[-1]):
        return measured[-1]
    first, *others = measured
    if not any(agree(first, other) for other in others):
        return None, None
    along, error = first
    got = f"an error of {error:.1%} of its norm" + (
        "" if along is None else f", and {along:.3f} times it by differences along it"
    )
    raise TrainingError(
        f"the gradient of {name} is not the derivative of the loss",
        got="no gradient, though the loss depends on it" if error == math.inf else got,
        wanted=f"an error of at most {MAX_ERROR:.0%}, and within {MAX_DEVIATION:.0%} along it",
        do=_WRONG_GRAPH,
    )
