"""Numeric agreement of a model with its reference, and the gate that rejects what differs.

A merge, an import and an export each write a model that must compute what another one computes.
Each runs both on the same probes and compares their outputs here:

outputs    of a probe    figure                                                    compared by
logits     (T, V)        largest_difference, kl, top1                              import, export
answers    token ids     same_answers: the share of equal greedy answers           merge, export
loss       –             delta_loss: how much more the model loses per token       merge
right      bool          merging/gate.py: accuracy, and answers that became wrong  merge

All arithmetic is in float64, one probe at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

NOT_MEASURED = math.nan


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model computed on the probes of a comparison; what was not asked of it is left out.

    answers   the greedy answer to each probe, as token ids
    loss      per supervised token over all probes
    logits    of each probe, `(T, V)`, at the positions that are compared
    right     whether the answer is right, of each probe that can be scored
    """

    answers: Sequence[Sequence[int]] = ()
    loss: float = NOT_MEASURED
    logits: Sequence[torch.Tensor] = ()
    right: Sequence[bool] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a model's outputs are from its reference's; NaN for what was not measured.

    positions            number of positions whose logits were compared
    largest_difference   of a logit, in standard deviations of the reference's logits
    kl                   mean KL(reference || model) over the positions, in nats
    top1                 share of positions with the same likeliest token
    same_answers         share of probes with the same greedy answer
    delta_loss           the model's loss less the reference's
    """

    positions: int = 0
    largest_difference: float = NOT_MEASURED
    kl: float = NOT_MEASURED
    top1: float = NOT_MEASURED
    same_answers: float = NOT_MEASURED
    delta_loss: float = NOT_MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Limits of an agreement, each inclusive; None does not limit."""

    max_difference: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    min_same_answers: float | None = None
    max_delta_loss: float | None = None

    def admits(self, found: Agreement) -> bool:
        """Whether every limited figure is within its limit; one that is NaN never is."""
        at_most = (
            (found.largest_difference, self.max_difference),
            (found.kl, self.max_kl),
            (found.delta_loss, self.max_delta_loss),
        )
        at_least = ((found.top1, self.min_top1), (found.same_answers, self.min_same_answers))
        return all(limit is None or value <= limit for value, limit in at_most) and all(
            limit is None or value >= limit for value, limit in at_least
        )


def compare_outputs(reference: Outputs, other: Outputs) -> Agreement:
    """Measure the agreement of `other` with `reference`, on whatever outputs they have.

    Raises ValueError if they are not of the same number of probes.
    """
    same = [list(a) == list(b) for a, b in zip(reference.answers, other.answers, strict=True)]
    positions, largest_difference, kl, top1 = _compare_logits(reference.logits, other.logits)
    return Agreement(
        positions=positions,
        largest_difference=largest_difference,
        kl=kl,
        top1=top1,
        same_answers=sum(same) / len(same) if same else NOT_MEASURED,
        delta_loss=other.loss - reference.loss,
    )


def _compare_logits(
    reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]
) -> tuple[int, float, float, float]:
    """The figures of an Agreement that logits give, in its order."""
    differences, kl, same = [], [], []
    count, total, squares = 0, 0.0, 0.0
    for a, b in zip(reference, other, strict=True):
        a, b = a.double(), b.double()
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        kl.append((log_a.exp() * (log_a - log_b)).sum(-1))
        same.append(a.argmax(-1) == b.argmax(-1))
        differences.append((a - b).abs().max())
        count, total = count + a.numel(), total + float(a.sum())
        squares += float(a.square().sum())
    if not kl:
        return 0, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED
    deviation = math.sqrt(max((squares - total**2 / count) / (count - 1), 0.0))
    return (
        sum(map(len, kl)),
        float(torch.stack(differences).max() / deviation),
        float(torch.cat(kl).mean()),
        float(torch.cat(same).double().mean()),
    )
