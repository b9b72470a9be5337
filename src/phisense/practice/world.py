"""The practice world: scenes of one to four things, and everything that is true about them.

A scene is a 2x2 arrangement of *corners* (top left ... bottom right). A corner is empty or holds one thing: a geometric
shape or a handwritten digit, in a colour and a size. Nothing here draws (`draw`) or talks (`talk`); a scene is plain data,
so that a question can be answered from it without looking at its picture.

Three things are held out of *all* training on pictures, that of the shipped parts included:

* scenes: training and evaluation scenes come from different seeds;
* `HELD_OUT_COMBINATIONS`: colour-shape pairs that occur only in pictures of the `combinations` split. The language part has read of
  them, as a real one has read of red stars; neither the vision part nor the projector nor the adapter ever meets one;
* handwritten digits: a fifth of scikit-learn's images (`draw.digit_images`) is used for evaluation only.
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

#: One colour of every shape, every colour once: no picture of one of these pairs is ever trained on.
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
        return (self.colour, self.noun) in HELD_OUT_COMBINATIONS


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in the order of their corners. `seed` fixes everything the words do not say: positions, noise, handwriting."""

    things: tuple[Thing, ...]
    seed: int

    def find(self, matches: Callable[[Thing], bool]) -> list[Thing]:
        return [thing for thing in self.things if matches(thing)]


def sample_scene(rng: random.Random, split: Split = "train", *, digit_share: float = 0.4, counts: tuple[int, ...] = (1, 2, 3, 4)) -> Scene:
    """As many things as one of `counts` says, `digit_share` of them digits.

    Split `combinations` holds at least one held-out pair; `read`, for text only, any pairs; the others none.
    """
    corners = sorted(rng.sample(range(4), rng.choice(counts)))
    things = [_sample_thing(rng, corner, digit_share, every_pair=split == "read") for corner in corners]
    if split == "combinations":
        at = rng.randrange(len(things))
        colour, noun = rng.choice(sorted(HELD_OUT_COMBINATIONS))
        things[at] = replace(things[at], colour=colour, noun=noun)
    return Scene(tuple(things), rng.randrange(2**31))


def _sample_thing(rng: random.Random, corner: int, digit_share: float, *, every_pair: bool = False) -> Thing:
    noun = rng.choice(DIGITS) if rng.random() < digit_share else rng.choice(SHAPES)
    colour = rng.choice([c for c in COLOURS if every_pair or (c, noun) not in HELD_OUT_COMBINATIONS])
    return Thing(noun, colour, rng.choice(SIZES), corner)


def near_miss(scene: Scene, rng: random.Random) -> Scene:
    """The same scene with one thing about it changed: the hard negatives that a contrastive model has to tell apart."""
    things = list(scene.things)
    at = rng.randrange(len(things))
    thing = things[at]
    free = sorted(set(range(4)) - {other.corner for other in things})
    change = rng.choice(["colour", "noun", "size", "corner", "swap"])
    if change == "colour":
        things[at] = replace(thing, colour=_other(rng, COLOURS, thing.colour))
    elif change == "noun":
        things[at] = replace(thing, noun=_other(rng, DIGITS if thing.is_digit else SHAPES, thing.noun))
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
