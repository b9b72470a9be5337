"""Calibrates a fresh projector to the parts it joins, before any training.

A standard initialization fits neither side: CLIP features have channels that are far from zero and
far larger than others, and word embeddings are small (here a standard deviation of 0.03, where
fresh image embeddings had 2.2). Image embeddings that large dominate all that the language part
computes, and the projector learns little from it. So the first layer's weights are divided by the
standard deviation of its input channels, its bias subtracts their means, and the last layer is
scaled until image embeddings have the standard deviation of word embeddings. This is the
data-dependent initialization of Krähenbühl et al. 2016 (arXiv:1511.06856), with the embeddings'
scale as the target.

The last layer's columns start as the principal directions of the embedding table, scaled by the
table's standard deviation in each. Image embeddings then vary as word embeddings do from the first
step on, as Lester et al. 2021 (arXiv:2104.08691) found it better to initialize prompt embeddings
from the vocabulary. Columns that are randomly drawn word embeddings do as well or worse, depending
on the draw (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def calibrate(projector: Any, features: torch.Tensor, embeddings: torch.Tensor) -> dict[str, float]:
    """Calibrate `projector` in place, with stored `features` (N, P, D) of some images and the
    embedding table (V, H).

    Returns standard deviations: `embeddings` of the table, `before` and `after` of the image
    embeddings.
    """
    inputs = _first_inputs(projector, features)
    mean, spread = inputs.mean(0), inputs.std(0)
    first, last = projector.linear_1, projector.linear_2
    before = projector(features).std()
    # A constant channel carries no information; dividing by its deviation would only amplify noise.
    first.weight /= spread.clamp(min=0.01 * float(spread.mean()) or 1.0)
    first.bias -= first.weight @ mean
    words = embeddings.detach().float()
    words = words[words.norm(dim=1) > 0]  # unused rows are zero
    last.weight.copy_(_principal_directions(words, last.in_features).T)
    wanted = words.std().to(before.device)
    last.weight *= wanted / projector(features).std()
    return {
        "embeddings": float(wanted),
        "before": float(before),
        "after": float(projector(features).std()),
    }


def _principal_directions(table: torch.Tensor, count: int) -> torch.Tensor:
    """`(count, H)`: eigenvectors of the covariance of `table` `(V, H)`, times their standard
    deviations, largest first.

    If `count` exceeds H, they are repeated from the largest on.
    """
    variances, directions = torch.linalg.eigh(torch.cov(table.T))
    longest: torch.Tensor = (directions * variances.clamp(min=0).sqrt()).T.flip(0)
    return longest.repeat(-(-count // len(longest)), 1)[:count]


def _first_inputs(projector: Any, features: torch.Tensor) -> torch.Tensor:
    """Inputs of the first layer, `(rows, width)`: the features themselves, or their pooled
    concatenation.
    """
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.append(given[0].flatten(0, -2))

    hook = projector.linear_1.register_forward_pre_hook(keep)
    try:
        projector(features)
    finally:
        hook.remove()
    return seen[0]
