"""Option letters by the rule of lmms-eval 0.7 (`mcq_extract`), which MMStar and RealWorldQA use.

The first form that the answer has decides, and of several letters in that form the last:

    1. a letter begins the answer       B, B. A dog, B) dog; no other letter of a word behind it
    2. a letter ends it                 it must be B
    3. a letter behind a phrase         the answer is B: of every option letter the first place
                                        behind the first such phrase, even inside a word
    4. (B)   5. B.   6. B:   7. B)   8. B and a space   9. B anywhere

So "The answer is a Cat" names C, "A cat" names A, and "BREAD" names D. Figures of other programs
are of this rule, and only comparable by it; `parse_letter` is the one that reads with care.
"""

from __future__ import annotations

from itertools import product

_ENDS = ",.!?;:'\""  # taken off both ends, one after the other in this order
_NOUNS = ("answer", "correct answer", "best answer", "correct option", "best option")
_PHRASES = (
    *(f"{the}{noun} is" for the, noun in product(("", "the "), _NOUNS)),
    *(f"{the}{noun} is" for the, noun in product(("", "the "), ("choice", "correct choice"))),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_FORMS = (("(", ")"), ("", "."), ("", ":"), ("", ")"), ("", " "), ("", ""))


def parse_letter_ranked(answer: str, letters: str = "ABCD") -> str | None:
    """The option letter that the answer names, or None if none of `letters` occurs in it."""
    text = answer.strip()
    for mark in _ENDS:
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    if not bare:
        return None
    if bare[0] in letters and not bare[1:2].isalpha():
        return bare[0]
    if bare[-1] in letters and not bare[-2:-1].isalpha():
        return bare[-1]
    if (announced := _announced(text, letters)) is not None:
        return announced
    for left, right in _FORMS:
        at, letter = max((text.rfind(f"{left}{one}{right}"), one) for one in letters)
        if at >= 0:
            return letter
    return None


def _announced(text: str, letters: str) -> str | None:
    """The last of the places in which a letter stands first behind one of the phrases."""
    folded = text.lower()
    starts = [at + len(phrase) for phrase in _PHRASES if (at := folded.find(phrase)) >= 0]
    places = [(text.find(one, start), one) for start in starts for one in letters]
    at, letter = max(places, default=(-1, ""))
    return letter if at >= 0 else None
