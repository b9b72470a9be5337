"""Renders a scene as an image of 192 x 192 pixels: shapes as antialiased masks, digits as real
handwriting.

What a scene leaves open is sampled with its seed: the position within the corner, the exact tint,
the background. The same scene therefore always gives the same image.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .world import Scene, Thing

IMAGE_SIDE = 192  # pixels
_CORNER = IMAGE_SIDE // 2
_DIAMETER = {"small": (34, 42), "large": (62, 76)}  # pixels, minimum and maximum
_RGB = {
    "red": (214, 32, 36),
    "orange": (245, 136, 12),
    "yellow": (247, 222, 40),
    "green": (34, 158, 62),
    "blue": (34, 82, 214),
    "purple": (140, 46, 172),
    "white": (250, 250, 250),
    "black": (14, 14, 16),
}

DigitSet = Literal["train", "heldout"]


def draw_scene(scene: Scene, digits: DigitSet = "train") -> Image.Image:
    """Render an RGB image of 192 x 192 pixels; `digits` selects the set of handwritten digits."""
    rng = np.random.default_rng(scene.seed)
    picture = _background(rng)
    for thing in scene.things:
        mask = _mask(thing, digits, rng)
        ink = tuple(int(np.clip(c + rng.normal(0, 8), 0, 255)) for c in _RGB[thing.colour])
        slack = _CORNER - mask.width
        left = _CORNER * thing.column + int(rng.integers(2, max(3, slack - 1)))
        top = _CORNER * thing.row + int(rng.integers(2, max(3, slack - 1)))
        picture.paste(Image.new("RGB", mask.size, ink), (left, top), mask)
    return picture


def _background(rng: np.random.Generator) -> Image.Image:
    """A gray-brown gradient between four corner tints, with noise."""
    tints = rng.uniform(96, 168, size=(2, 2, 1)) + rng.normal(0, 7, size=(2, 2, 3))
    wash = Image.fromarray(tints.clip(0, 255).astype(np.uint8)).resize(
        (IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR
    )
    grain = (
        rng.normal(0, rng.uniform(3, 11), size=(IMAGE_SIDE // 2, IMAGE_SIDE // 2, 1))
        .repeat(2, 0)
        .repeat(2, 1)
    )
    return Image.fromarray((np.asarray(wash) + grain).clip(0, 255).astype(np.uint8))


def _mask(thing: Thing, digits: DigitSet, rng: np.random.Generator) -> Image.Image:
    """Coverage mask of the thing, mode L, square, of the thing's size."""
    low, high = _DIAMETER[thing.size]
    side = int(rng.integers(low, high + 1))
    if thing.is_digit:
        return _digit_mask(thing, digits, side, rng)
    big = side * 3
    mask = Image.new("L", (big, big), 0)
    pen = ImageDraw.Draw(mask)
    _SHAPE_DRAWERS[thing.noun](pen, big)
    if thing.noun not in ("circle", "ring"):
        mask = mask.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC)
    return mask.resize((side, side), Image.Resampling.BOX)


def _digit_mask(thing: Thing, digits: DigitSet, side: int, rng: np.random.Generator) -> Image.Image:
    images = digit_images(digits)[int(thing.noun)]
    image = images[int(rng.integers(len(images)))]
    mask = Image.fromarray((image * 255 / 16).clip(0, 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    mask = mask.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BICUBIC)
    return mask.filter(ImageFilter.GaussianBlur(0.5)).point(
        [min(255, max(0, int((v - 70) * 2.2))) for v in range(256)]
    )


@cache
def digit_images(digits: DigitSet) -> tuple[np.ndarray, ...]:
    """Scikit-learn's 1,797 handwritten digits: an `(n, 8, 8)` array of 0..16 per digit 0..9.

    Every fifth image of a digit is held out: the set mixes its 43 writers, so both splits contain
    all of them.
    """
    from sklearn.datasets import load_digits  # slow to import, and only used here

    data = load_digits()
    held_out = digits == "heldout"
    chosen = []
    for digit in range(10):
        images = data.images[data.target == digit]
        at = np.arange(len(images))
        chosen.append(images[(at % 5 == 4) == held_out])
    return tuple(chosen)


def _polygon(pen: ImageDraw.ImageDraw, side: int, points: list[tuple[float, float]]) -> None:
    pen.polygon([(x * (side - 1), y * (side - 1)) for x, y in points], fill=255)


def _circle(pen: ImageDraw.ImageDraw, side: int) -> None:
    pen.ellipse((0, 0, side - 1, side - 1), fill=255)


def _ring(pen: ImageDraw.ImageDraw, side: int) -> None:
    _circle(pen, side)
    hole = 0.27 * side
    pen.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)


def _square(pen: ImageDraw.ImageDraw, side: int) -> None:
    _polygon(pen, side, [(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)])


def _triangle(pen: ImageDraw.ImageDraw, side: int) -> None:
    _polygon(pen, side, [(0.5, 0.04), (0.98, 0.92), (0.02, 0.92)])


def _diamond(pen: ImageDraw.ImageDraw, side: int) -> None:
    _polygon(pen, side, [(0.5, 0), (0.86, 0.5), (0.5, 1), (0.14, 0.5)])


def _cross(pen: ImageDraw.ImageDraw, side: int) -> None:
    _polygon(pen, side, [(0.34, 0.02), (0.66, 0.02), (0.66, 0.98), (0.34, 0.98)])
    _polygon(pen, side, [(0.02, 0.34), (0.98, 0.34), (0.98, 0.66), (0.02, 0.66)])


def _star(pen: ImageDraw.ImageDraw, side: int) -> None:
    tips = []
    for tip in range(10):
        radius = 0.5 if tip % 2 == 0 else 0.2
        angle = math.pi * tip / 5 - math.pi / 2
        tips.append((0.5 + radius * math.cos(angle), 0.52 + radius * math.sin(angle)))
    _polygon(pen, side, tips)


def _heart(pen: ImageDraw.ImageDraw, side: int) -> None:
    outline = []
    for step in range(60):
        t = 2 * math.pi * step / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((0.5 + x / 34, 0.46 - y / 34))
    _polygon(pen, side, outline)


_SHAPE_DRAWERS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "heart": _heart,
}
