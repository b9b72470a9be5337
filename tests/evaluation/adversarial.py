"""Random answers that scoring rules stumble over: empty ones, letters inside words, numbers in many
notations, several options, refusals, other scripts.
"""

from __future__ import annotations

import random

WORDS = """
    red Blue cat the answer is B A C D (A) (B) B. A: C) option choice correct best DNA BREAD pick
    stem 12 3.5 50% 1,000 -7 0 yes No not eyes İstanbul straße ＡＢＣ １２ π 红色 答案是 정답은
    nan inf 1e3 1_000 = therefore so result final could be thus % 5%% $5 . ! ' " , ; : ? E F sorry
    I cannot
"""
EDGES = (
    *(
        "",
        " ",
        ".",
        "...",
        "''",
        "\n",
        "%",
        "0",
        "0.0",
        "A",
        "a",
        "Ａ",
        "(b)",
        "B.",
        "B. dog",
        "A,.",
    ),
    *(
        "The answer is (B).",
        "the answer is a Cat",
        "I cannot answer.",
        "ABCD",
        "A or B",
        "Yes.",
        "NO",
    ),
)
LETTERS = "ABCDEFGH"


def text(chance: random.Random, most: int = 8) -> str:
    """Up to `most` words, an edge case, or a heap of characters."""
    kind = chance.random()
    if kind < 0.2:
        return chance.choice(EDGES)
    if kind < 0.3:
        heap = "ABCDabcd().,:;!? '\"\n%0123456789-=éİß红"
        return "".join(chance.choice(heap) for _ in range(chance.randrange(14)))
    words = [chance.choice(WORDS.split()) for _ in range(chance.randrange(most))]
    return chance.choice((" ", "  ", "\n", "")).join(words)


def spoilt(chance: random.Random, answer: str) -> str:
    """`answer` with up to two other characters."""
    letters = list(answer)
    for _ in range(chance.randrange(3)):
        if letters:
            letters[chance.randrange(len(letters))] = chance.choice("abcXYZ 19.")
    return "".join(letters)


def number(chance: random.Random) -> str:
    value = chance.choice((chance.randrange(2000), round(chance.uniform(-5, 100), 2), 0))
    form = chance.choice(("{}", "{}", "{}%", "{} ", " {}", "{}.", "{},000", "${}"))
    return form.format(value)


def lettered(chance: random.Random, phrases: tuple[str, ...] = ("the answer is", "I pick")) -> str:
    """An answer to a multiple-choice question."""
    kind, letter = chance.random(), chance.choice("ABCDEabcd")
    if kind < 0.4:
        form = chance.choice(
            (
                *("{}", "({})", "{}.", "{}:", "{})", "{} dog", "so {}", "It is {}.", "Option {}"),
                *("**{}**", "{}\n", " {} ", '"{}"', "{}, because A is a Cat", "A or {}", "{}. (B)"),
                *("({}) and not (C), ({})", "{0}) B) {0})"),
            )
        )
        return form.format(letter, letter)
    if kind < 0.65:
        said, tail = chance.choice(phrases), chance.choice(("", ")", ".", " because D is wrong"))
        said = said.capitalize() if chance.random() < 0.5 else said
        return f"{text(chance, 4)} {said} {chance.choice(('', '(', 'option '))}{letter}{tail}"
    return text(chance)


def polar(chance: random.Random) -> str:
    """An answer to a question whose answer is yes or no; never empty, which would be none."""
    said = (
        *("Yes", "No", "yes, it is", "No.", "It is not.", "yesterday", "I cannot tell", "none"),
        *("Yes and no", "NO", " ", "The eyes", "YES!", "There is a dog.", "not yes"),
    )
    return chance.choice((*said, text(chance) or " "))
