"""The practice world: scenes of one to four things, and everything that is true about them.

A scene is a 2 x 2 arrangement of *corners* (top left ... bottom right). A corner is empty or holds
one thing: a geometric shape or a handwritten digit, with a color and a size. This module neither
renders (`draw`) nor phrases (`dialogue`); a scene is plain data, so that a question can be answered
without its image.

Three things are held out of *all* training on images, including that of the shipped parts:

* scenes: training and evaluation scenes come from different seeds;
* `HELD_OUT_COMBINATIONS`: color-shape pairs that occur only in images of the `combinations` split.
  The language model has read of them, as a real one has read of red stars; the vision encoder,
  projector and adapter are never trained on one;
* handwritten digits: a fifth of scikit-learn's images (`draw.digit_images`) is used for evaluation
  only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
SIZES = ("small", "large")
CORNERS = ("top left", "top right", "bottom left", "bottom right")

#: Each shape and each color once; images of these pairs are never trained on.
HELD_OUT_COMBINATIONS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "star"),
        ("orange", "ring"),
        ("yellow", "square"),
        ("green", "circle"),
        ("blue", "heart"),
        ("purple", "triangle"),
        ("white", "diamond"),
        ("black", "cross"),
    }
)

Split = Literal["train", "heldout", "combinations", "read"]


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing: `noun` is a shape or a digit "0".."9"; `corner` indexes `CORNERS`."""

    noun: str
    colour: str
    size: str
    corner: int

    @property
    def is_digit(self) -> bool:
        """Whether it is a handwritten digit; else it is a shape."""
        return self.noun in DIGITS

    @property
    def row(self) -> int:
        """0 at the top, 1 at the bottom."""
        return self.corner // 2

    @property
    def column(self) -> int:
        """0 on the left, 1 on the right."""
        return self.corner % 2

    @property
    def held_out(self) -> bool:
        """Whether its color-shape pair is held out of training on images."""
        return (self.colour, self.noun) in HELD_OUT_COMBINATIONS


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: `things` are ordered by corner.

    `seed` determines everything else: positions, noise, handwriting.
    """

    things: tuple[Thing, ...]
    seed: int

    def find(self, matches: Callable[[Thing], bool]) -> list[Thing]:
        """Things for which `matches` is true, in the order of their corners."""
        return [thing for thing in self.things if matches(thing)]


def sample_scene(
    rng: random.Random,
    split: Split = "train",
    *,
    digit_share: float = 0.4,
    counts: tuple[int, ...] = (1, 2, 3, 4),
) -> Scene:
    """Sample a scene with a number of things from `counts`, `digit_share` of them digits.

    Split `combinations` has at least one held-out pair; `read`, for text only, may have any pairs;
    the others have none.
    """
    corners = sorted(rng.sample(range(4), rng.choice(counts)))
    things = [
        _sample_thing(rng, corner, digit_share, every_pair=split == "read") for corner in corners
    ]
    if split == "combinations":
        at = rng.randrange(len(things))
        colour, noun = rng.choice(sorted(HELD_OUT_COMBINATIONS))
        things[at] = replace(things[at], colour=colour, noun=noun)
    return Scene(tuple(things), rng.randrange(2**31))


def _sample_thing(
    rng: random.Random, corner: int, digit_share: float, *, every_pair: bool = False
) -> Thing:
    noun = rng.choice(DIGITS) if rng.random() < digit_share else rng.choice(SHAPES)
    colour = rng.choice(
        [c for c in COLOURS if every_pair or (c, noun) not in HELD_OUT_COMBINATIONS]
    )
    return Thing(noun, colour, rng.choice(SIZES), corner)


def near_miss(scene: Scene, rng: random.Random) -> Scene:
    """The same scene with one fact changed: a hard negative for contrastive training."""
    things = list(scene.things)
    at = rng.randrange(len(things))
    thing = things[at]
    free = sorted(set(range(4)) - {other.corner for other in things})
    change = rng.choice(["colour", "noun", "size", "corner", "swap"])
    if change == "colour":
        things[at] = replace(thing, colour=_other(rng, COLOURS, thing.colour))
    elif change == "noun":
        things[at] = replace(
            thing, noun=_other(rng, DIGITS if thing.is_digit else SHAPES, thing.noun)
        )
    elif change == "size":
        things[at] = replace(thing, size=_other(rng, SIZES, thing.size))
    elif change == "corner" and free:
        things[at] = replace(thing, corner=rng.choice(free))
    elif len(things) > 1:
        other = rng.choice([i for i in range(len(things)) if i != at])
        what = rng.choice(["colour", "noun"])
        mine, theirs = getattr(thing, what), getattr(things[other], what)
        things[at] = replace(thing, **{what: theirs})
        things[other] = replace(things[other], **{what: mine})
    if any(thing.held_out for thing in things) or things == list(scene.things):
        return near_miss(scene, rng)
    return Scene(tuple(sorted(things, key=lambda t: t.corner)), rng.randrange(2**31))


def _other(rng: random.Random, values: Iterable[str], current: str) -> str:
    return rng.choice([value for value in values if value != current])
