"""How long a stage takes: operations from shapes, over the rate that a training step reaches on the device.

A product of N rows with a matrix of W weights costs 2 N W. A frozen matrix is multiplied forward and once backward (for its input's
gradient), a trained one once more (for its own). Checkpointing does the layers' forward pass once more. Attention in spans multiplies
all pairs within a span, fused attention half of all; both do so twice forward and four times backward.
"""

from __future__ import annotations

from ..recipe import Recipe, Stage
from .devices import Device
from .lengths import Lengths
from .shapes import Shapes


def training_flops(s: Shapes, recipe: Recipe, stage: str, device: Device, found: Lengths) -> float:
    """Operations for one row of the mean length with one picture; at most as many of its tokens as have a loss need logits."""
    tokens = found.mean
    tuned = recipe.train.lora if stage != "align" else None
    lora = s.lora(tuned.rank) if tuned else 0
    passes = 3 if recipe.train.checkpointing else 2
    own = s.matrix_weights if stage != "align" and recipe.train.lora is None else 0  # once more for their own gradients
    seen = 0 if recipe.features.dtype != "pixels" else s.vision_matrices * (passes if tuned and tuned.vision else 1)
    pairs = found.scores * (tokens / found.longest) ** 2 if device.spans else tokens**2 / 2
    attention = 4.0 * s.layers * s.heads * s.head * pairs
    layers = 2.0 * tokens * (s.matrix_weights * passes + own) + 2.0 * tokens * lora * (passes + 1) + attention * (passes + 1)
    return layers + 2.0 * (s.patches + 1) * seen + 2.0 * min(tokens, found.supervised) * s.output * 2 + 2.0 * s.slots * s.projector * 3


def step_seconds(s: Shapes, recipe: Recipe, stage: str, asked: Stage, device: Device, found: Lengths) -> float:
    """Seconds of one optimizer step over data of such lengths."""
    return found.rows_of(asked.batch) * training_flops(s, recipe, stage, device, found) / device.rate


def steps(asked: Stage, lengths: Lengths) -> int | None:
    """Optimizer steps of the stage; None if the data is not there to count."""
    if asked.max_steps > 0:
        return asked.max_steps
    return None if lengths.conversations is None else max(1, round(asked.epochs * lengths.conversations / asked.batch))
