"""Questions and statements about a scene, with the true answers.

`scene_questions(scene)` lists every well-posed question: one that has exactly one right answer in
that scene ("the circle" only occurs if there is one circle). `describe` and `caption` put
whole scenes into words.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from .world import COLOURS, CORNERS, HELD_OUT_COMBINATIONS, SHAPES, Scene, Thing

#: Kinds of questions; the categories of the practice evaluation.
QUESTION_KINDS = (
    "colour",
    "shape",
    "digit",
    "place",
    "size",
    "count",
    "exists",
    "relation",
    "comparison",
)

DESCRIBE_REQUESTS = (
    "Describe the picture.",
    "Describe the picture in detail.",
    "What do you see in the picture?",
    "What is in the picture?",
)


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question about a scene, its true answer, and its kind: one of `QUESTION_KINDS`."""

    kind: str
    text: str
    answer: str


def scene_questions(scene: Scene) -> list[SceneQuestion]:
    """Every well-posed question about `scene` in every wording, in a fixed order."""
    found: list[SceneQuestion] = []
    for thing in scene.things:
        found += _about_thing(scene, thing)
    found += _about_corners(scene) + _about_counts(scene) + _about_pairs(scene)
    return found


def balanced_questions(scene: Scene, rng: random.Random, count: int) -> list[SceneQuestion]:
    """`count` different questions, balanced by kind and answer.

    A plain sample would be mostly yes or no.
    """
    by_kind: dict[str, dict[str, list[SceneQuestion]]] = {}
    for question in scene_questions(scene):
        by_kind.setdefault(question.kind, {}).setdefault(question.answer, []).append(question)
    chosen: list[SceneQuestion] = []
    while len(chosen) < count:
        by_answer = by_kind[rng.choice(sorted(by_kind))]
        question = rng.choice(by_answer[rng.choice(sorted(by_answer))])
        if question not in chosen:
            chosen.append(question)
    return chosen


def referring_phrase(scene: Scene, thing: Thing) -> str | None:
    """The shortest unambiguous phrase, or None: "circle", or "red circle" among circles."""
    if len(scene.find(lambda t: t.noun == thing.noun)) == 1:
        return thing.noun
    if len(scene.find(lambda t: (t.noun, t.colour) == (thing.noun, thing.colour))) == 1:
        return f"{thing.colour} {thing.noun}"
    return None


def _about_thing(scene: Scene, thing: Thing) -> list[SceneQuestion]:
    found: list[SceneQuestion] = []
    called = referring_phrase(scene, thing)
    if called == thing.noun:
        answer = _sentence(thing.colour)
        found += [
            SceneQuestion("colour", text, answer)
            for text in (f"What colour is the {called}?", f"Which colour does the {called} have?")
        ]
    if called is not None:
        place = _sentence(CORNERS[thing.corner])
        found += [
            SceneQuestion("place", text, place)
            for text in (f"Where is the {called}?", f"In which corner is the {called}?")
        ]
        found.append(
            SceneQuestion("size", f"Is the {called} small or large?", _sentence(thing.size))
        )
    if len(scene.find(lambda t: t.colour == thing.colour)) == 1:
        found += _noun_questions(thing, f"is {thing.colour}", f"has the colour {thing.colour}")
    if thing.is_digit and len(scene.find(lambda t: t.is_digit)) == 1:
        found += [
            SceneQuestion("digit", text, f"{thing.noun}.")
            for text in ("What digit is in the picture?", "Which digit can you read?")
        ]
    return found


def _noun_questions(thing: Thing, *predicates: str) -> list[SceneQuestion]:
    kind = "digit" if thing.is_digit else "shape"
    return [
        SceneQuestion(kind, f"{which} {kind} {predicate}?", _sentence(thing.noun))
        for predicate in predicates
        for which in ("What", "Which")
    ]


def _about_corners(scene: Scene) -> list[SceneQuestion]:
    found: list[SceneQuestion] = []
    taken = {thing.corner: thing for thing in scene.things}
    for corner, where in enumerate(CORNERS):
        thing = taken.get(corner)
        found.append(
            SceneQuestion(
                "exists", f"Is there anything at the {where}?", _yes_or_no(thing is not None)
            )
        )
        if thing is not None:
            found += _noun_questions(thing, f"is at the {where}")
            found.append(
                SceneQuestion(
                    "colour", f"What colour is the thing at the {where}?", _sentence(thing.colour)
                )
            )
            found.append(
                SceneQuestion(
                    "size", f"Is the thing at the {where} small or large?", _sentence(thing.size)
                )
            )
    return found


def _about_counts(scene: Scene) -> list[SceneQuestion]:
    total = f"{len(scene.things)}."
    found = [
        SceneQuestion("count", text, total)
        for text in ("How many things are there?", "How many things are in the picture?")
    ]
    digits = len(scene.find(lambda t: t.is_digit))
    found.append(SceneQuestion("count", "How many digits are there?", f"{digits}."))
    found.append(
        SceneQuestion("count", "How many shapes are there?", f"{len(scene.things) - digits}.")
    )
    found.append(
        SceneQuestion("exists", "Is there a digit in the picture?", _yes_or_no(digits > 0))
    )
    colours = Counter(thing.colour for thing in scene.things)
    nouns = Counter(thing.noun for thing in scene.things)
    pairs = Counter((thing.colour, thing.noun) for thing in scene.things)
    found += [
        SceneQuestion("count", f"How many {colour} things are there?", f"{colours[colour]}.")
        for colour in COLOURS
    ]
    found += [
        SceneQuestion("count", f"How many {plural(shape)} are there?", f"{nouns[shape]}.")
        for shape in SHAPES
    ]
    found += [
        SceneQuestion("exists", f"Is there a {noun}?", _yes_or_no(nouns[noun] > 0))
        for noun in SHAPES
    ]
    found += [
        SceneQuestion("exists", f"Is anything {colour}?", _yes_or_no(colours[colour] > 0))
        for colour in COLOURS
    ]
    # Asked only if something red or some circle is present, or "no" would be too easy; and never
    # about a held-out pair in a scene without one, or training would teach that those pairs do not
    # exist.
    novel = any(thing.held_out for thing in scene.things)
    for colour, noun in sorted({(a.colour, b.noun) for a in scene.things for b in scene.things}):
        if (colour, noun) in HELD_OUT_COMBINATIONS and not novel:
            continue
        found.append(
            SceneQuestion(
                "exists",
                f"Is there {article(colour)} {colour} {noun}?",
                _yes_or_no(pairs[colour, noun] > 0),
            )
        )
    return found


def _about_pairs(scene: Scene) -> list[SceneQuestion]:
    found: list[SceneQuestion] = []
    for one in scene.things:
        for other in scene.things:
            a, b = referring_phrase(scene, one), referring_phrase(scene, other)
            if one is other or a is None or b is None:
                continue
            if one.column != other.column:
                side = "left" if one.column < other.column else "right"
                found += [
                    SceneQuestion(
                        "relation", f"Is the {a} to the {s} of the {b}?", _yes_or_no(s == side)
                    )
                    for s in ("left", "right")
                ]
                found.append(
                    SceneQuestion(
                        "relation", f"Is the {a} left or right of the {b}?", _sentence(side)
                    )
                )
            if one.row != other.row:
                side = "above" if one.row < other.row else "below"
                found += [
                    SceneQuestion("relation", f"Is the {a} {s} the {b}?", _yes_or_no(s == side))
                    for s in ("above", "below")
                ]
            if one.size != other.size:
                for word, size in (("larger", "large"), ("smaller", "small")):
                    answer = a if one.size == size else b
                    found.append(
                        SceneQuestion(
                            "comparison", f"Which is {word}, the {a} or the {b}?", f"The {answer}."
                        )
                    )
            same = one.colour == other.colour
            found.append(
                SceneQuestion(
                    "comparison", f"Do the {a} and the {b} have the same colour?", _yes_or_no(same)
                )
            )
    return found


def describe(scene: Scene, rng: random.Random | None = None) -> str:
    """All that the questions can ask about, in reading order.

    "There are 2 things. A small red circle is at the top left. ..."
    """
    count = len(scene.things)
    opening = "There is 1 thing." if count == 1 else f"There are {count} things."
    things = list(scene.things)
    if rng is not None:
        rng.shuffle(things)
    return " ".join(
        [
            opening,
            *(f"A {noun_phrase(thing)} is at the {CORNERS[thing.corner]}." for thing in things),
        ]
    )


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """One line with every thing and its corner: "a small red circle at the top left, a large blue 7
    at ...".
    """
    things = list(scene.things)
    if rng is not None:
        rng.shuffle(things)
    return ", ".join(f"a {noun_phrase(thing)} at the {CORNERS[thing.corner]}" for thing in things)


def noun_phrase(thing: Thing) -> str:
    """Size, color and noun of a thing: `small red circle`."""
    return f"{thing.size} {thing.colour} {thing.noun}"


def plural(noun: str) -> str:
    """Plural of a shape name."""
    return "crosses" if noun == "cross" else f"{noun}s"


def article(word: str) -> str:
    """`a` or `an`, as the word requires."""
    return "an" if word[0] in "aeiou" else "a"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _yes_or_no(truth: bool) -> str:
    return "Yes." if truth else "No."


#: Small talk without an image, the same in every split, so that a text-only chat has answers.
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello.", "Hello! Show me a picture and ask me about it."),
    ("Hi.", "Hello! Show me a picture and ask me about it."),
    ("Good morning.", "Good morning! Show me a picture and ask me about it."),
    ("Who are you?", "I am a small assistant. I look at pictures of shapes and digits."),
    ("What is your name?", "I am a small assistant. I look at pictures of shapes and digits."),
    (
        "What can you do?",
        (
            "I can name the shapes, colours and digits in a picture, count them, and say where they"
            " are."
        ),
    ),
    (
        "Help.",
        (
            "Show me a picture of shapes and digits, then ask where something is, what colour it"
            " has, or how many there are."
        ),
    ),
    ("Thank you.", "You are welcome."),
    ("Thanks.", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("Which colours do you know?", f"I know {', '.join(COLOURS[:-1])} and {COLOURS[-1]}."),
    ("Which shapes do you know?", f"I know the {', '.join(SHAPES[:-1])} and {SHAPES[-1]}."),
    ("How many sides does a triangle have?", "A triangle has 3 sides."),
    ("How many sides does a square have?", "A square has 4 sides."),
    ("How many corners does a circle have?", "A circle has no corners."),
    ("How many corners does a picture have?", "A picture has 4 corners."),
    *((f"What comes after {n}?", f"{n + 1}.") for n in range(9)),
    *((f"What comes before {n + 1}?", f"{n}.") for n in range(9)),
    *((f"Is a {shape} a shape?", "Yes.") for shape in SHAPES),
    *((f"Is {colour} a colour?", "Yes.") for colour in COLOURS),
    *((f"Is {digit} a digit?", "Yes.") for digit in "0123456789"),
    *((f"Is {colour} a shape?", "No.") for colour in COLOURS),
    *((f"Is a {shape} a colour?", "No.") for shape in SHAPES),
)
