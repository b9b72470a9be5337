"""The rounds in which the practice language part is trained, and why there are several.

In the first, a cell does not say where it is, and the model has to find columns by position
encoding, which it learns slowly; from the second on, the bag also holds the words of its corner
("top", "left"), as CLIP features encode their position. "Which colour does the ring have?" requires
finding one cell among many, which only such questions teach: a round of them alone does in minutes
what the mixture did not in an hour. The next round restores the rest. A part trained only on those
color-shape pairs that have images had learned that the others do not exist: with the words "red
star" in a cell it answered that there was no star. So the last four rounds use all pairs, as the
training text of a real language model does. In the last two a thing mostly fills its whole corner,
like the content of the vision part's patches. The very last asks for the content of a named corner
in scenes half full of digits: with mostly one digit per scene, that digit could be found without
its corner.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..world import Split


@dataclass(frozen=True)
class LanguageRound:
    """Settings of one round.

    `steps` is the length of the learning rate schedule; `until` ends the round earlier. `placed`:
    cells also hold the words of their corner. `together`: probability that all of a thing's words
    share a cell. `finding`: share of conversations that have cells and only questions of `kinds`,
    those that require finding a thing by its name. `split`: of the scenes; "read" includes the
    color-shape pairs that have no training images. `whole`: probability that a thing's words are in
    all cells of its corner, not in a part of it. `corners`: these questions ask for the content of
    a named corner.
    """

    conversations: int
    steps: int
    learning_rate: float
    placed: bool
    together: float
    seed: int
    batch: int = 64
    finding: float = 0.0
    kinds: tuple[str, ...] = ("colour", "place", "size", "relation", "comparison")
    until: int | None = None
    split: Split = "train"
    whole: float = 0.0
    corners: bool = False


LANGUAGE_ROUNDS = (
    LanguageRound(
        conversations=50_000,
        steps=1_100,
        learning_rate=1.5e-3,
        placed=False,
        together=0.65,
        seed=12,
    ),
    LanguageRound(
        conversations=40_000, steps=1_400, learning_rate=1.2e-3, placed=True, together=0.9, seed=14
    ),
    LanguageRound(
        conversations=60_000,
        steps=4_000,
        until=2_100,
        learning_rate=1e-3,
        placed=True,
        together=1.0,
        seed=15,
        batch=32,
    ),
    LanguageRound(
        conversations=50_000,
        steps=1_700,
        until=900,
        learning_rate=1e-3,
        placed=True,
        together=1.0,
        seed=16,
        batch=32,
        finding=1.0,
    ),
    LanguageRound(
        conversations=26_000,
        steps=800,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=17,
        batch=32,
    ),
    LanguageRound(
        conversations=58_000,
        steps=900,
        learning_rate=8e-4,
        placed=True,
        together=1.0,
        seed=18,
        finding=0.3,
        split="read",
    ),
    LanguageRound(
        conversations=58_000,
        steps=900,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=19,
        finding=0.5,
        kinds=("colour", "relation", "comparison", "count", "exists"),
        split="read",
    ),
    LanguageRound(
        conversations=24_000,
        steps=700,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=20,
        batch=32,
        finding=0.5,
        kinds=("comparison", "count", "exists", "shape", "digit"),
        split="read",
        whole=0.75,
    ),
    LanguageRound(
        conversations=15_000,
        steps=400,
        learning_rate=7e-4,
        placed=True,
        together=1.0,
        seed=21,
        finding=0.4,
        kinds=("digit", "shape", "colour"),
        split="read",
        whole=0.75,
        corners=True,
        batch=32,
    ),
)
