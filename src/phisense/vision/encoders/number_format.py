"""The number format in which a processor encodes images, where the recipe leaves it open: bfloat16
if it is faster and gives the same features, else float32.

Whether it is faster is measured, since processors without instructions for it emulate it, and since
with few threads the conversions may cost what the multiplications save. Whether the features are
the same is measured on the first images of the store, channel by channel: a few channels of an
encoder may be thousands of times as large as the others (massive activations), and the cosine of
the plain features would be theirs alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .encode import Encoder

MIN_COSINE = 0.999  # of a patch's features in the two formats, as a mean over the patches
MIN_SPEEDUP = 1.3
_PROBE_SECONDS = 0.25  # for each format, after one run that compiles
_PROBE_IMAGES = 4


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """The format's name, and why it was chosen."""

    name: str
    reason: str


def choose_encoding_format(
    encoder: Encoder,
    images: Sequence[Image.Image],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> FormatChoice:
    """Choose between bfloat16 and the float32 in which `encoder` was loaded on a processor, on the
    first of `images`; leaves the encoder as it was.
    """
    pixels = encoder.pixels(images[:_PROBE_IMAGES])
    plain = encoder.model
    short = copy.deepcopy(plain).to(torch.bfloat16)
    seconds, features = {}, {}
    try:
        for name, model in (("float32", plain), ("bfloat16", short)):
            encoder.model = model
            features[name] = encoder.read(pixels)
            seconds[name] = _time(lambda: encoder.read(pixels), clock)
    finally:
        encoder.model = plain
    speedup = seconds["float32"] / seconds["bfloat16"]
    if speedup < MIN_SPEEDUP:
        told = f"bfloat16 takes {1 / speedup:.2f} times as long as float32 here"
        return FormatChoice("float32", told)
    cosine = channel_cosine(features["float32"], features["bfloat16"])
    if not cosine >= MIN_COSINE:  # NaN is not
        return FormatChoice(
            "float32",
            f"the features in bfloat16 differ: a cosine of {cosine:.4f} to those in float32,"
            f" wanted {MIN_COSINE}",
        )
    return FormatChoice(
        "bfloat16",
        f"the processor encodes {speedup:.1f} times as fast in it, and the features are the same"
        f" (cosine {cosine:.5f})",
    )


def channel_cosine(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """The mean cosine of features `(B, P, D)`, each channel standardized by the spread that it has
    in `wanted`, so that every channel counts alike; NaN if either is not finite.
    """
    rows, others = (one.double().flatten(0, -2) for one in (wanted, got))
    center, spread = rows.mean(0), rows.std(0)
    alive = spread > spread.median() * 1e-3  # a constant channel tells nothing
    rows, others = (((one - center) / spread)[:, alive] for one in (rows, others))
    return float(torch.nn.functional.cosine_similarity(rows, others, dim=-1).mean())


def _time(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The shortest of the runs that begin within the time of the probe: others' work on the
    processor only makes it longer.
    """
    began, best = clock(), float("inf")
    while True:
        start = clock()
        work()
        now = clock()
        best = min(best, now - start)
        if now - began >= _PROBE_SECONDS:
            return best
