"""Memory of one of several processes that share a model (model/sharding.py), in bytes.

Weights, gradients and moments are divided. What is gathered comes on top: the root's group, and
twice the largest of the others, since the next one is gathered while one computes; in its backward
pass the whole gradient of a group, and the copy of it that is summed over the processes.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..recipe import Recipe
from .shapes import Shapes

_DIVIDED = ("weights", "trained", "optimizer", "gradients")


def gathered_bytes(recipe: Recipe, s: Shapes, itemsize: int, rank: int | None) -> float:
    """The most that one process holds of what is not its own. `itemsize` is that of the frozen
    weights; `rank` that of the adapter, None without.
    """
    full = recipe.train.lora is None
    lora = s.lora(rank) / s.layers if rank is not None else 0.0
    layer = (s.matrix_weights + s.norms) / s.layers
    tables = (s.embeddings, s.output) if s.embeddings else ()  # one tensor is the root's
    root = itemsize * (0 if tables else s.output) + 4 * s.projector * (1 if full else 2)
    largest = max(layer * itemsize + 4 * lora, *(itemsize * one for one in tables))
    trained = max(layer, *tables) if full else lora
    return float(root + 2 * largest + 2 * 4 * max(trained, s.projector))


def divide(
    terms: Mapping[str, float], moment: str, processes: int, gathered: float
) -> dict[str, float]:
    """The components of a process's peak, given those of one process that does it all."""
    # in the optimizer's step, its temporaries, too
    names = (*_DIVIDED, "backward") if moment == "optimizer" else _DIVIDED
    own = {name: size / processes if name in names else size for name, size in terms.items()}
    return own if moment == "optimizer" else {**own, "gathered": gathered}
