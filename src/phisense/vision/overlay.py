"""Overlay of a weight grid on an image, such as an attention map."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

STRENGTH = 0.6  # opacity of the overlay at the largest weight


def overlay(picture: Image.Image, grid: Any) -> Image.Image:
    """Overlay `grid` `(rows, columns)`, which covers the padded square, as a heat map.

    The largest weight is the brightest.
    """
    weights = np.asarray(grid, np.float32)
    weights = (weights - weights.min()) / max(float(np.ptp(weights)), 1e-12)
    width, height = picture.size
    side = max(picture.size)
    spread = Image.fromarray((weights * 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    left, top = (side - width) // 2, (side - height) // 2
    level = np.asarray(spread.crop((left, top, left + width, top + height)), np.float32) / 255
    colours = mpl.colormaps["inferno"](level)[..., :3] * 255
    share = STRENGTH * (0.35 + 0.65 * level[..., None])
    return Image.fromarray(
        (np.asarray(picture, np.float32) * (1 - share) + colours * share).astype(np.uint8)
    )
