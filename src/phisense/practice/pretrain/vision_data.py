"""What the practice vision part is trained on: rounds, groups of scenes, and the facts of their
corners.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from PIL import Image

from ..dialogue import noun_phrase
from ..draw import DigitSet, draw_scene
from ..world import COLOURS, CORNERS, DIGITS, SHAPES, SIZES, Scene, near_miss, sample_scene
from .vision_model import EMPTY, SIDE

NEAR_MISSES = 3


@dataclass(frozen=True)
class VisionRound:
    """Settings of one round; each step takes `groups` x (1 + NEAR_MISSES) images.

    `patches`: how many of a corner's 16 enter the loss per step. `digit_share`: of the things;
    handwriting is harder to distinguish than shapes, so its share exceeds that in the world.
    """

    groups_rendered: int = 32_000
    steps: int = 5_000
    groups: int = 32
    learning_rate: float = 1e-3
    seed: int = 11
    patches: int = 0
    digit_share: float = 0.5


VISION_ROUNDS = (
    VisionRound(),
    VisionRound(groups_rendered=20_000, steps=1_500, learning_rate=7e-4, seed=13, patches=1),
    VisionRound(
        groups_rendered=12_000,
        steps=1_500,
        groups=16,
        learning_rate=7e-4,
        seed=17,
        patches=16,
        digit_share=0.75,
    ),
)


def sample_group(rng: random.Random, plan: VisionRound) -> list[Scene]:
    """A scene and its near misses: scenes that differ from it in one fact."""
    scene = sample_scene(rng, digit_share=plan.digit_share)
    return [scene, *(near_miss(scene, rng) for _ in range(NEAR_MISSES))]


def render_pixels(scene: Scene, digits: DigitSet = "train") -> np.ndarray:
    """Render `(SIDE, SIDE, 3)` uint8, resized as the image processor does it."""
    return np.asarray(draw_scene(scene, digits).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _render_groups(seed: int, count: int, plan: VisionRound) -> tuple[list[Scene], np.ndarray]:
    rng = random.Random(seed)
    scenes = [scene for _ in range(count) for scene in sample_group(rng, plan)]
    return scenes, np.stack([render_pixels(scene) for scene in scenes])


def render_all(plan: VisionRound, chunk: int = 1000) -> tuple[list[Scene], np.ndarray]:
    """All scenes, group after group, and their images `(N, SIDE, SIDE, 3)` uint8."""
    seeds = [plan.seed * 1_000_003 + i for i in range(plan.groups_rendered // chunk)]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_render_groups, seeds, repeat(chunk), repeat(plan)))
    return [scene for scenes, _ in parts for scene in scenes], np.concatenate(
        [pictures for _, pictures in parts]
    )


#: Classes of the patch loss by fact: noun, color, size, position; the one for an empty corner
#: first.
CORNER_FACTS: tuple[tuple[str, ...], ...] = (
    (EMPTY, *(f"a {noun}" for noun in (*SHAPES, *DIGITS))),
    (EMPTY, *COLOURS),
    (EMPTY, *SIZES),
    CORNERS,
)


def corner_facts(scene: Scene) -> list[tuple[str, ...]]:
    """The true word of each of `CORNER_FACTS`, for each of the four corners."""
    facts: list[tuple[str, ...]] = [(EMPTY, EMPTY, EMPTY, corner) for corner in CORNERS]
    for thing in scene.things:
        facts[thing.corner] = (f"a {thing.noun}", thing.colour, thing.size, CORNERS[thing.corner])
    return facts


def region_phrases(scene: Scene) -> list[str]:
    """Phrases for the content of the four corners."""
    phrases = [EMPTY] * 4
    for thing in scene.things:
        phrases[thing.corner] = f"a {noun_phrase(thing)}"
    return phrases
