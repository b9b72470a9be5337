r"""Conversations about the same pictures in one row: the pictures once, every conversation behind them.

    tag picture picture picture | question answer ... | question answer ...
    \_______ shared __________/   \__ first _______/   \__ second ______/

A token sees what is shared and what came before it in its own conversation; positions go on from the shared part in each. So the loss
is that of separate samples (tests/training/test_packing.py), without the pictures being computed again for each. LLaVA-Instruct-150K
has 1.94 conversations a picture, and a picture of 576 slots is most of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..prompt import IGNORED, Rendered


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation as the model reads it."""

    id: str
    rendered: Rendered
    images: tuple[str, ...]
    pool: int = 1


@dataclass(frozen=True, slots=True)
class Packed:
    """One row of a batch. The first `shared` tokens belong to each of its conversations, which end at `ends`.

    Its pictures' patches are averaged over `pool` x `pool` before the projector.
    """

    rendered: Rendered
    images: tuple[str, ...]
    shared: int
    ends: tuple[int, ...]
    pool: int = 1

    @property
    def tokens(self) -> int:
        """What the conversations would have by themselves; none if nothing is learned from them."""
        return len(self.rendered.ids) + (len(self.ends) - 1) * self.shared if self.rendered.supervised else 0

    def unsupervised(self) -> Packed:
        """With nothing to learn from it."""
        return replace(self, rendered=Rendered(self.rendered.ids, [IGNORED] * len(self.rendered.ids)))


def alone(sample: Sample) -> Packed:
    return Packed(sample.rendered, sample.images, 0, (len(sample.rendered.ids),), sample.pool)


def pack(samples: Sequence[Sample], image_id: int, length: int) -> list[Packed]:
    """Rows of at most `length` tokens. Only conversations that begin alike up to the end of their last picture share a row.

    One with something to learn before that end, an answer between two pictures, stays by itself: shared, it would count once.
    """
    rows: list[Packed] = []
    unfinished: dict[tuple[str, ...], list[_Row]] = {}
    for sample in samples:
        shared = _until_last_picture(sample.rendered, image_id) if sample.images else 0
        if not shared:
            rows.append(alone(sample))
            continue
        about = unfinished.setdefault(sample.images, [])
        fits = next((row for row in about if row.takes(sample, shared, length)), None)
        if fits is None:
            about.append(_Row(shared, [sample]))
        else:
            fits.samples.append(sample)
    return rows + [row.join() for about in unfinished.values() for row in about]


def _until_last_picture(rendered: Rendered, image_id: int) -> int:
    end = len(rendered.ids) - rendered.ids[::-1].index(image_id)
    return end if all(label == IGNORED for label in rendered.labels[:end]) else 0


@dataclass
class _Row:
    shared: int
    samples: list[Sample]

    def takes(self, sample: Sample, shared: int, length: int) -> bool:
        whole = self.shared + sum(len(one.rendered.ids) - self.shared for one in (*self.samples, sample))
        return shared == self.shared and whole <= length and sample.rendered.ids[:shared] == self.samples[0].rendered.ids[:shared]

    def join(self) -> Packed:
        first = self.samples[0]
        if len(self.samples) == 1:
            return alone(first)
        ids, labels = list(first.rendered.ids[: self.shared]), list(first.rendered.labels[: self.shared])
        ends = []
        for sample in self.samples:
            ids += sample.rendered.ids[self.shared :]
            labels += sample.rendered.labels[self.shared :]
            ends.append(len(ids))
        return Packed(Rendered(ids, labels), first.images, self.shared, tuple(ends), first.pool)


def positions_and_mask(rows: Sequence[Packed], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`position_ids` `(B, T)`, and which token sees which, `(B, 1, T, T)`. Padding sees itself alone, so that no row of it is empty."""
    segments = torch.full((len(rows), width), -1)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        segments[i, : row.shared], positions[i, : row.shared] = 0, torch.arange(row.shared)
        for number, (start, end) in enumerate(zip((row.shared, *row.ends), row.ends, strict=False), 1):
            segments[i, start:end], positions[i, start:end] = number, torch.arange(row.shared, row.shared + end - start)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    seen = causal & (keys >= 0) & ((keys == 0) | (keys == queries))
    return positions, (seen | torch.eye(width, dtype=torch.bool)).unsqueeze(1)
