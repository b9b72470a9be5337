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

TOGETHER = 256  # tokens: up to here one larger product costs less than several small ones


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
    ids: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """What the conversations would have by themselves; none if nothing is learned from them."""
        return len(self.rendered.ids) + (len(self.ends) - 1) * self.shared if self.rendered.supervised else 0

    def unsupervised(self) -> Packed:
        """With nothing to learn from it."""
        return replace(self, rendered=Rendered(self.rendered.ids, [IGNORED] * len(self.rendered.ids)))


def alone(sample: Sample) -> Packed:
    return Packed(sample.rendered, sample.images, 0, (len(sample.rendered.ids),), sample.pool, (sample.id,))


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
        return Packed(Rendered(ids, labels), first.images, self.shared, tuple(ends), first.pool, tuple(one.id for one in self.samples))


def padded(rows: Sequence[Packed], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`position_ids` `(B, T)`, and which token sees which, `(B, 1, T, T)`. Padding sees itself alone, so that no row of it is empty."""
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for i, row in enumerate(rows):
        length = row.ends[-1]
        positions[i, :length], seen[i, :length, :length] = _positions(row), _seen(row)
    return positions, seen.unsqueeze(1)


def filled(rows: Sequence[Packed], pad: int, multiple: int) -> list[Packed]:
    """The rows, and behind them one of `pad` tokens, from which nothing is learned, that makes their tokens a multiple.

    oneDNN compiles a kernel for each shape that it has not met: in bfloat16 a product of 1,200 new rows took 5 ms where the next of as many
    took 0.1 to 0.9 (docs/log.md), and hardly any two batches have as many tokens.
    """
    lacking = -sum(len(row.rendered.ids) for row in rows) % multiple
    return [*rows, Packed(Rendered([pad] * lacking, [IGNORED] * lacking), (), 0, (lacking,))] if lacking else list(rows)


def end_to_end(rows: Sequence[Packed]) -> dict[str, torch.Tensor]:
    """Rows in one: `input_ids`, `labels`, `position_ids`, each `(1, T)`, with the `spans` and `added` of model/spans.py.

    A row's first token is the answer to nothing, so no label is learned across the seam.
    """
    spans: list[tuple[int, int]] = []
    added: list[torch.Tensor] = []
    for row in rows:
        cuts, first = _cuts(row), len(spans)
        hidden = torch.zeros(row.ends[-1], row.ends[-1]).masked_fill_(~_seen(row), float("-inf"))
        for number, (start, end) in enumerate(zip((0, *cuts), cuts, strict=False)):
            behind = row.shared if number else 0
            spans.append((end - start, first if behind else -1))
            added.append(torch.cat([hidden[start:end, :behind], hidden[start:end, start:end]], 1).flatten())
    return {
        "input_ids": torch.tensor([[one for row in rows for one in row.rendered.ids]]),
        "labels": torch.tensor([[one for row in rows for one in row.rendered.labels]]),
        "position_ids": torch.cat([_positions(row) for row in rows]).unsqueeze(0),
        "spans": torch.tensor(spans),
        "added": torch.cat(added),
    }


def scores(row: Packed) -> tuple[int, int]:
    """How many scores the spans of a row have, and how many keys those of them that are behind another."""
    cuts = _cuts(row)
    first, *rest = (end - start for start, end in zip((0, *cuts), cuts, strict=False))
    found = first**2 + sum(count * (count + row.shared) for count in rest)
    return found, sum(count + row.shared for count in rest) if row.shared else 0


def _cuts(row: Packed) -> list[int]:
    """Where its spans end: one, or the shared part and then the conversations, short ones together."""
    if row.ends[-1] <= TOGETHER:
        return [row.ends[-1]]
    cuts = [row.shared] if row.shared else []
    start = row.shared
    for before, end in zip((row.shared, *row.ends), row.ends, strict=False):
        if before > start and end - start <= TOGETHER:
            cuts[-1] = end
        else:
            start = before
            cuts.append(end)
    return cuts


def _segments(row: Packed) -> torch.Tensor:
    """`(T,)`: 0 for what is shared, then the number of the conversation."""
    segments = torch.zeros(row.ends[-1], dtype=torch.long)
    for number, (start, end) in enumerate(zip((row.shared, *row.ends), row.ends, strict=False), 1):
        segments[start:end] = number
    return segments


def _positions(row: Packed) -> torch.Tensor:
    starts = (row.shared, *row.ends)
    parts = [torch.arange(row.shared), *(torch.arange(end - start) + row.shared for start, end in zip(starts, row.ends, strict=False))]
    return torch.cat(parts)


def _seen(row: Packed) -> torch.Tensor:
    """`(T, T)`: which token, down, sees which, across."""
    segments = _segments(row)
    keys, queries = segments[None, :], segments[:, None]
    return ((keys == 0) | (keys == queries)).tril()
