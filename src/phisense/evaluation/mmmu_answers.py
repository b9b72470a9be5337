"""MMMU's reading of answers (Yue et al., 2024; eval_utils.py of github.com/MMMU-Benchmark/MMMU,
which lmms-eval carries), including its quirks, because figures of MMMU are by this rule.

Multiple choice, by the first form in which any letter occurs: "(B)"; a letter and a space, which
may end a word ("DNA " is A); "B."; in answers of more than five words, the text of an option. Of
several letters the one whose last place is last; if the letters stand in words only, the first of
the alphabet. If nothing is found MMMU draws an option at random; here the draw is a hash of the
question's id, so that it is always the same. (Where MMMU draws for an empty answer, too, it is
wrong here.)

Open questions: of each line the shortest text behind words such as "is" or "therefore" (behind "="
in the last line, too), or the whole answer if there are none, and every number in these texts. One
that is a number must equal a reference, rounded to two digits; of others one must contain a
reference. So "not 12" is correct where "12" is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import sha256

from .answer_metrics import OPTION_LETTERS

_TRIMMED = ",.!?;:'"  # taken off both ends, one after the other in this order
_SHORT = 5  # words: a shorter answer is not searched for an option's text
_CUES = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)
_TRIVIAL = frozenset(":,.!?;'")
_THOUSANDS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")


def drawn_letter(question: str, options: int) -> str:
    """The letter that stands for an answer which names none: a hash of the question's id."""
    digest = sha256(question.encode("utf-8", errors="surrogatepass")).digest()
    return OPTION_LETTERS[int.from_bytes(digest[:8]) % options]


def parse_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The option letter that an answer names, or None where MMMU draws one."""
    for mark in _TRIMMED:
        answer = answer.strip(mark)
    text = f" {answer} "
    letters = OPTION_LETTERS[: len(choices)]
    # what makes an option a candidate, and by what the last of several is found
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if named := [one for one in letters if form.format(one) in text]:
            return max(named, key=lambda one: text.rfind(place.format(one)))
    if len(text.split()) <= _SHORT:
        return None
    folded = text.lower()
    texts = {letter: choice.lower() for letter, choice in zip(letters, choices, strict=False)}
    return max(
        (letter for letter in letters if texts[letter] in folded),
        key=lambda letter: folded.rfind(texts[letter]),
        default=None,
    )


def open_answer_is_correct(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer to an open question holds one of the references."""
    right = [form for one in accepted for form in _forms(one)]
    texts = [form for form in right if isinstance(form, str)]
    return any(
        any(text in said for text in texts) if isinstance(said, str) else said in right
        for said in _candidates(answer)
    )


def _candidates(answer: str) -> Iterator[str | float]:
    for text in _key_texts(answer.strip().strip(".").lower()):
        yield from _forms(text)
        for pattern in (_THOUSANDS, _SCIENTIFIC, _PLAIN):
            for number in pattern.findall(text):
                yield from _forms(number)


def _key_texts(answer: str) -> list[str]:
    """Of each line what stands behind the last cue, or the whole answer if no line has one."""
    *lines, last = answer.split("\n")
    tails = [*(_tail(line, _CUES) for line in lines), _tail(last, (*_CUES, "="))]
    return [tail for tail in tails if tail and tail not in _TRIVIAL] or [answer]


def _tail(line: str, cues: Sequence[str]) -> str:
    """The shortest text behind the last place of any cue in the line. An empty one is replaced by
    that of the next cue, whatever its length.
    """
    shortest = ""
    for cue in cues:
        if cue in line:
            tail = line.rpartition(cue)[2].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _forms(text: str) -> list[str | float]:
    """A number rounded to two digits; a text in lower case, a single character with a space before
    and one behind, so that it is not found inside words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
