"""When an answer is right: the VQA challenge's normalisation, then equality; and POPE's reading of yes and no.

The rules are those of the official VQA evaluation (Antol et al., 2015; visualqa.org/evaluation): lower case, no line breaks,
punctuation removed except inside numbers, number words as digits, articles dropped, contractions with their apostrophe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(i) for i, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`?!'
_CONTRACTED = (
    "aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'd i'm i've "
    "isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't not've o'clock she'd she's should've shouldn't "
    "somebody'd somebody's someone'd someone's something'd something's that'd that's there'd there're there's they'd they'll "
    "they're they've wasn't we'd we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
    "who's who've why'd why'll why're why's won't would've wouldn't y'all you'd you'll you're you've "
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")


def normalise(answer: str) -> str:
    """The form in which answers are compared."""
    text = _COMMA_IN_NUMBER.sub("", " ".join(answer.split()))
    for mark in _PUNCTUATION:
        # Between letters a mark becomes a space; beside a space it just goes.
        text = text.replace(mark, "" if f"{mark} " in text or f" {mark}" in text or text.endswith(mark) or text.startswith(mark) else " ")
    text = _PERIOD.sub("", text).replace(",", " ").replace(":", " ").lower()
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    said = normalise(answer)
    return any(said == normalise(one) for one in accepted)


def yes_or_no(answer: str) -> str:
    """POPE's reading (Li et al., 2023): of the first sentence, "no" if it says no or not, else "yes"."""
    words = re.findall(r"[a-z]+(?:'t)?", answer.split(".")[0].lower())
    return "no" if any(word in ("no", "not") or word.endswith("n't") for word in words) else "yes"
