r"""Prefix sharing: conversations about the same images packed into one row, with the images encoded
once.

    tag image image image | question answer ... | question answer ...
    \______ shared _____/   \__ first _______/    \__ second ______/

A token attends to the shared prefix and to earlier tokens of its own conversation; each
conversation's positions continue from the prefix. So the loss equals that of separate samples
(tests/training/test_packing.py), without recomputing the images for each. LLaVA-Instruct-150K has
1.94 conversations per image, and an image of 576 tokens is most of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..prompt import IGNORE_INDEX, Rendered

MERGE_BELOW = 256  # tokens: up to here one larger matmul costs less than several small ones


@dataclass(frozen=True, slots=True)
class Sample:
    """One rendered conversation."""

    id: str
    rendered: Rendered
    images: tuple[str, ...]
    pool: int = 1


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row of a batch. The first `shared` tokens are the prefix of each of its conversations,
    which end at `ends`.

    The patches of its images are averaged over `pool` x `pool` before the projector.
    """

    rendered: Rendered
    images: tuple[str, ...]
    shared: int
    ends: tuple[int, ...]
    pool: int = 1
    ids: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Token count without sharing; 0 for an unsupervised row."""
        return (
            len(self.rendered.ids) + (len(self.ends) - 1) * self.shared
            if self.rendered.supervised
            else 0
        )

    def unsupervised(self) -> PackedRow:
        """The same row with all labels ignored."""
        return replace(
            self, rendered=Rendered(self.rendered.ids, [IGNORE_INDEX] * len(self.rendered.ids))
        )


def single_row(sample: Sample) -> PackedRow:
    """A packed row of one sample."""
    return PackedRow(
        sample.rendered, sample.images, 0, (len(sample.rendered.ids),), sample.pool, (sample.id,)
    )


def pack(samples: Sequence[Sample], image_id: int, max_length: int) -> list[PackedRow]:
    """Pack samples into rows of at most `max_length` tokens. Only samples with the same prefix up
    to their last image share a row.

    A sample with supervised tokens before that point, an answer between two images, gets its own
    row: in a shared prefix the answer would count only once.
    """
    rows: list[PackedRow] = []
    unfinished: dict[tuple[str, ...], list[_Row]] = {}
    for sample in samples:
        shared = _prefix_length(sample.rendered, image_id) if sample.images else 0
        if not shared:
            rows.append(single_row(sample))
            continue
        about = unfinished.setdefault(sample.images, [])
        fits = next((row for row in about if row.fits(sample, shared, max_length)), None)
        if fits is None:
            about.append(_Row(shared, [sample]))
        else:
            fits.samples.append(sample)
    return rows + [row.to_packed() for about in unfinished.values() for row in about]


def _prefix_length(rendered: Rendered, image_id: int) -> int:
    end = len(rendered.ids) - rendered.ids[::-1].index(image_id)
    return end if all(label == IGNORE_INDEX for label in rendered.labels[:end]) else 0


@dataclass
class _Row:
    shared: int
    samples: list[Sample]

    def fits(self, sample: Sample, shared: int, max_length: int) -> bool:
        whole = self.shared + sum(
            len(one.rendered.ids) - self.shared for one in (*self.samples, sample)
        )
        return (
            shared == self.shared
            and whole <= max_length
            and sample.rendered.ids[:shared] == self.samples[0].rendered.ids[:shared]
        )

    def to_packed(self) -> PackedRow:
        first = self.samples[0]
        if len(self.samples) == 1:
            return single_row(first)
        ids = list(first.rendered.ids[: self.shared])
        labels = list(first.rendered.labels[: self.shared])
        ends = []
        for sample in self.samples:
            ids += sample.rendered.ids[self.shared :]
            labels += sample.rendered.labels[self.shared :]
            ends.append(len(ids))
        return PackedRow(
            Rendered(ids, labels),
            first.images,
            self.shared,
            tuple(ends),
            first.pool,
            tuple(one.id for one in self.samples),
        )


def padded_masks(rows: Sequence[PackedRow], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`position_ids` `(B, T)` and the boolean attention mask `(B, 1, T, T)`.

    Padding attends to itself, so that no row of the mask is empty.
    """
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for i, row in enumerate(rows):
        length = row.ends[-1]
        positions[i, :length], seen[i, :length, :length] = _positions(row), _visible(row)
    return positions, seen.unsqueeze(1)


def pad_to_multiple(rows: Sequence[PackedRow], pad_id: int, multiple: int) -> list[PackedRow]:
    """The rows and, if needed, an unsupervised row of `pad_id` that makes their token count a
    multiple of `multiple`.

    oneDNN compiles a kernel for each new shape: in bfloat16 a product with a new shape of 1,200
    rows took 5 ms, the next one of the same shape 0.1 to 0.9 ms (docs/log.md), and hardly any two
    batches have the same number of tokens.
    """
    lacking = -sum(len(row.rendered.ids) for row in rows) % multiple
    return (
        [
            *rows,
            PackedRow(Rendered([pad_id] * lacking, [IGNORE_INDEX] * lacking), (), 0, (lacking,)),
        ]
        if lacking
        else list(rows)
    )


def concatenate_rows(rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
    """Concatenate rows: `input_ids`, `labels`, `position_ids`, each `(1, T)`, with `spans` and
    `attn_bias` for model/varlen_attention.py.

    A row's first label is always ignored, so nothing is learned across the boundary.
    """
    spans: list[tuple[int, int]] = []
    attn_bias: list[torch.Tensor] = []
    for row in rows:
        cuts, first = _span_ends(row), len(spans)
        hidden = torch.zeros(row.ends[-1], row.ends[-1]).masked_fill_(~_visible(row), float("-inf"))
        for number, (start, end) in enumerate(zip((0, *cuts), cuts, strict=False)):
            behind = row.shared if number else 0
            spans.append((end - start, first if behind else -1))
            attn_bias.append(
                torch.cat([hidden[start:end, :behind], hidden[start:end, start:end]], 1).flatten()
            )
    return {
        "input_ids": torch.tensor([[one for row in rows for one in row.rendered.ids]]),
        "labels": torch.tensor([[one for row in rows for one in row.rendered.labels]]),
        "position_ids": torch.cat([_positions(row) for row in rows]).unsqueeze(0),
        "spans": torch.tensor(spans),
        "attn_bias": torch.cat(attn_bias),
    }


def count_scores(row: PackedRow) -> tuple[int, int]:
    """Number of attention scores in a row's spans, and number of keys of those spans that have a
    prefix.
    """
    cuts = _span_ends(row)
    first, *rest = (end - start for start, end in zip((0, *cuts), cuts, strict=False))
    found = first**2 + sum(count * (count + row.shared) for count in rest)
    return found, sum(count + row.shared for count in rest) if row.shared else 0


def _span_ends(row: PackedRow) -> list[int]:
    """Ends of the row's spans: a single one, or the prefix and then the conversations, with short
    ones merged.
    """
    if row.ends[-1] <= MERGE_BELOW:
        return [row.ends[-1]]
    cuts = [row.shared] if row.shared else []
    start = row.shared
    for before, end in zip((row.shared, *row.ends), row.ends, strict=False):
        if before > start and end - start <= MERGE_BELOW:
            cuts[-1] = end
        else:
            start = before
            cuts.append(end)
    return cuts


def _segments(row: PackedRow) -> torch.Tensor:
    """`(T,)`: 0 for the shared prefix, then the number of the conversation."""
    segments = torch.zeros(row.ends[-1], dtype=torch.long)
    for number, (start, end) in enumerate(zip((row.shared, *row.ends), row.ends, strict=False), 1):
        segments[start:end] = number
    return segments


def _positions(row: PackedRow) -> torch.Tensor:
    starts = (row.shared, *row.ends)
    parts = [
        torch.arange(row.shared),
        *(
            torch.arange(end - start) + row.shared
            for start, end in zip(starts, row.ends, strict=False)
        ),
    ]
    return torch.cat(parts)


def _visible(row: PackedRow) -> torch.Tensor:
    """Boolean `(T, T)`: whether each query token (row) attends to each key token (column)."""
    segments = _segments(row)
    keys, queries = segments[None, :], segments[:, None]
    return ((keys == 0) | (keys == queries)).tril()
