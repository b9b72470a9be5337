"""Estimate how long a stage takes: floating point operations from the shapes, divided by the
device's rate in training.

A matmul of N rows with W weights costs 2 N W. A frozen matrix is multiplied in the forward pass and
once in the backward pass (gradient of its input), a trained one once more (its own gradient).
Checkpointing repeats the layers' forward pass. Variable-length attention multiplies all pairs
within a span, fused attention half of all pairs; both do so twice in the forward and four times in
the backward pass.
"""

from __future__ import annotations

from ..recipe import Recipe, Stage
from .devices import Device
from .lengths import Lengths
from .shapes import Shapes


def training_flops(
    s: Shapes, recipe: Recipe, stage: str, device: Device, lengths: Lengths
) -> float:
    """Operations for one row of the mean length with the mean number of images; logits are
    computed for at most `lengths.supervised` of its tokens.
    """
    tokens = lengths.mean
    tuned = recipe.train.lora if stage != "align" else None
    lora = s.lora(tuned.rank) if tuned else 0
    passes = 3 if recipe.train.gradient_checkpointing else 2
    # one more matmul for their own gradients
    own = s.matrix_weights if stage != "align" and recipe.train.lora is None else 0
    seen = (
        0
        if recipe.features.dtype != "pixels"
        else s.vision_matrices * (passes if tuned and tuned.vision else 1)
    )
    pairs = lengths.scores * (tokens / lengths.longest) ** 2 if device.varlen else tokens**2 / 2
    attention = 4.0 * s.layers * s.heads * s.head * pairs
    layers = (
        2.0 * tokens * (s.matrix_weights * passes + own)
        + 2.0 * tokens * lora * (passes + 1)
        + attention * (passes + 1)
    )
    return (
        layers
        + 2.0 * (s.patches + 1) * seen * lengths.mean_pictures
        + 2.0 * min(tokens, lengths.supervised) * s.output * 2
        + 2.0 * s.image_tokens * s.projector * 3 * lengths.mean_pictures
    )


def step_seconds(
    s: Shapes, recipe: Recipe, stage: str, settings: Stage, device: Device, lengths: Lengths
) -> float:
    """Seconds per optimizer step for data of these lengths."""
    return (
        lengths.rows_of(settings.batch_size)
        * training_flops(s, recipe, stage, device, lengths)
        / device.rate
    )


def count_steps(settings: Stage, lengths: Lengths) -> int | None:
    """Optimizer steps of the stage; None if the data is missing."""
    if settings.max_steps > 0:
        return settings.max_steps
    return (
        None
        if lengths.conversations is None
        else max(1, round(settings.epochs * lengths.conversations / settings.batch_size))
    )
