"""The order of samples: each once, batches of like length, and no order of length over the
epoch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler as TransformersSampler

from phisense.training.sampler import LengthGroupedSampler

BATCH = 16
LENGTHS = [random.Random(i).randint(20, 300) for i in range(2000 + 5)]


def batches(order: Sequence[int]) -> list[list[int]]:
    return [list(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def padding(order: Sequence[int]) -> int:
    return sum(
        max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch)
        for batch in batches(order)
    )


def drift(order: Sequence[int]) -> float:
    """Share of neighbouring batches of which the later is the shorter: a half by chance."""
    longest = [max(LENGTHS[i] for i in batch) for batch in batches(order)]
    return sum(later <= earlier for earlier, later in itertools.pairwise(longest)) / (
        len(longest) - 1
    )


def test_each_sample_once_and_another_order_each_epoch() -> None:
    sampler = LengthGroupedSampler(LENGTHS, BATCH, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(sampler) == len(first)
    assert sorted(first) == sorted(second) == list(range(len(LENGTHS)))
    assert first != second
    sampler.set_epoch(0)
    assert (
        list(sampler)
        == first
        == list(LengthGroupedSampler(LENGTHS, BATCH, seed=3))
        != list(LengthGroupedSampler(LENGTHS, BATCH, seed=4))
    )


def test_little_padding_and_no_drift() -> None:
    plain: list[int] = torch.randperm(
        len(LENGTHS), generator=torch.Generator().manual_seed(0)
    ).tolist()
    ours = list(LengthGroupedSampler(LENGTHS, BATCH, seed=0))
    assert padding(ours) < padding(plain) / 3
    assert 0.35 < drift(ours) < 0.65
    theirs = list(
        TransformersSampler(BATCH, lengths=LENGTHS, generator=torch.Generator().manual_seed(0))
    )
    assert drift(theirs) > 0.9  # the control: what training was once given
    assert 0.35 < drift(plain) < 0.65


def test_fewer_samples_than_a_batch() -> None:
    assert sorted(LengthGroupedSampler([5, 3, 9], BATCH, seed=0)) == [0, 1, 2]
