"""Fits a fresh projector to the parts it joins, before any training.

A projector drawn by the book knows neither side: CLIP features have channels that are far from zero and far larger than others,
and word embeddings are small (here a standard deviation of 0.03, where the fresh slots had 2.2). Slots that large drown whatever
the language part computes, and the projector learns little from them. So the first layer's weights are divided by what its
inputs' channels spread, its bias takes off their means, and the last layer is scaled until slots spread as embeddings do.
This is the data-dependent initialisation of Krähenbühl et al. 2016 (arXiv:1511.06856), aimed at the embeddings' scale.

The last layer's columns start as the principal directions of the embedding table, each as long as the table spreads that way.
Slots then vary as embeddings do from the first step on, as Lester et al. 2021 (arXiv:2104.08691) found it better to start learned
prompts from the vocabulary. Columns that are words drawn from the table do as well or worse, by the luck of the draw (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def calibrate(projector: Any, features: torch.Tensor, embeddings: torch.Tensor) -> dict[str, float]:
    """Changes `projector` in place, by stored `features` (N, P, D) of some pictures and the embedding table (V, H).

    The result has the standard deviations: `embeddings`, and the slots' `before` and `after`.
    """
    inputs = _first_inputs(projector, features)
    mean, spread = inputs.mean(0), inputs.std(0)
    first, last = projector.linear_1, projector.linear_2
    before = projector(features).std()
    # A channel that never changes carries nothing; dividing by its spread would only blow up noise.
    first.weight /= spread.clamp(min=0.01 * float(spread.mean()) or 1.0)
    first.bias -= first.weight @ mean
    words = embeddings.detach().float()
    words = words[words.norm(dim=1) > 0]  # rows of no word are zero
    last.weight.copy_(_principal_directions(words, last.in_features).T)
    wanted = words.std().to(before.device)
    last.weight *= wanted / projector(features).std()
    return {"embeddings": float(wanted), "before": float(before), "after": float(projector(features).std())}


def _principal_directions(table: torch.Tensor, count: int) -> torch.Tensor:
    """`(count, H)`: the eigenvectors of the covariance of `table` `(V, H)`, times their standard deviations, longest first.

    More than there are begin again from the longest.
    """
    variances, directions = torch.linalg.eigh(torch.cov(table.T))
    longest: torch.Tensor = (directions * variances.clamp(min=0).sqrt()).T.flip(0)
    return longest.repeat(-(-count // len(longest)), 1)[:count]


def _first_inputs(projector: Any, features: torch.Tensor) -> torch.Tensor:
    """What reaches the first layer, `(rows, width)`: the features themselves, or what the pooling makes of them."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.append(given[0].flatten(0, -2))

    hook = projector.linear_1.register_forward_pre_hook(keep)
    try:
        projector(features)
    finally:
        hook.remove()
    return seen[0]
