"""When an answer is right: the VQA challenge's normalisation and its accuracy over ten answers, TextVQA's, and option letters.

`normalise` is the official evaluation's (github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py), with all that is
odd about it, for figures are only comparable if they are odd alike: a mark beside a space vanishes and one between letters becomes a
space, unless the text holds a number with a comma, when all vanish; of the periods that no digit follows the first 32 go; "let's" stays
and "somebody'd" loses its apostrophe. Yes and no are read in `yes_no.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(i) for i, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the official code hands re.UNICODE to `sub` as its count

# Words whose apostrophe was left out, by the official table: its entries that lack all of them, then those that lack one of two.
_LACKING_ALL = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd it'll "
    "ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's "
    "someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've 'twas "
    "wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're "
    "why's won't would've wouldn't y'all you'd you'll you're you've"
)
_LACKING_ONE = (
    "couldn'tve couldnt've hadnt've hadn'tve hed've he'dve itd've it'dve mightnt've mightn'tve shed've she'dve shouldnt've "
    "shouldn'tve somebodyd've somebody'dve someoned've someone'dve somethingd've something'dve thered've there'dve theyd've they'dve "
    "wed've we'dve whod've who'dve wouldnt've wouldn'tve yall'd've y'alld've y'all'dve youd've you'dve"
)
_HALVES = re.compile(r"(y)'?(all)'?(d)'?(ve)|(\w+?)'?(n't|nt|d)'?(ve)")
_ODD = {
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
}


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _LACKING_ALL.split()} | _ODD
    for word in _LACKING_ONE.split():
        match = _HALVES.fullmatch(word)
        assert match is not None
        parts = [part for part in match.groups() if part]
        table[word] = "'".join(parts) if parts[-2] == "d" else f"{parts[0]}n't've"
    return table


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)  # people give the same short answers over and over
def normalise(answer: str) -> str:
    """The form in which answers are compared: lower case, without articles and punctuation, numbers as digits."""
    text = _one_line(answer)
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    cleared = text
    for mark in _PUNCTUATION:
        cleared = cleared.replace(mark, "" if drop_all or f"{mark} " in text or f" {mark}" in text else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleared, count=_MOST_PERIODS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    said = normalise(answer)
    return any(said == normalise(one) for one in accepted)


def agreement(answer: str, accepted: Sequence[str]) -> float:
    """The share of 3 people who said the same, at most 1, averaged over each choice of all but one of them (VQA's accuracy)."""
    same = [one == answer for one in accepted]
    total = sum(same)
    return float(sum(min(1.0, (total - own) / 3) for own in same)) / len(same)


def vqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """VQA's accuracy as vqaEval.py computes it: where all people gave one answer, neither it nor the model's is normalised."""
    plain = [_one_line(one) for one in accepted]
    if len(set(plain)) == 1:
        return agreement(_one_line(answer), plain)
    return agreement(normalise(answer), [normalise(one) for one in plain])


def textvqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """TextVQA's accuracy (mmf's `EvalAIAnswerProcessor`, in LLaVA's m4c_evaluator.py): always normalised, "'s" a word of its own."""
    return agreement(_textvqa_form(answer), [_textvqa_form(one) for one in accepted])


def _textvqa_form(answer: str) -> str:
    return normalise(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ANSWER_IS = re.compile(r"The answer is ([A-E])")
_QUOTES = r"[\s\"'*(\[]*"
_ALONE = re.compile(rf"{_QUOTES}([A-Za-z])[\s\"'*)\]]*[.:,]?[\s\"'*]*")
_ENDS = r"(?=[\s\"'*)\]]*(?:[.,:;!?]|$))"  # of a phrase
# A capital that stands alone; "A bird" and "I see" begin with words.
_CAPITAL = r"(?<!\w)(?<!\w')(?![AI]\s+(?!(?:or|and|nor|is|because|since)\b)[a-z])([A-Z])(?!'?\w)"
_LETTER = rf"(?:{_CAPITAL}|(?<!\w)(?<!\w')([a-z])(?!'?\w){_ENDS})"
_LEADING = re.compile(rf"{_QUOTES}(?<!\w)(?<!\w')([A-Z])(?:[)\].:,]+[*]*(?=\s|$)|(?=\s*(?:/|&|(?:or|and)\b)))")
_ANSWERED = re.compile(rf"\b(?i:answer)\b(?i: is)?:?\s*(?i:(?:option|choice)\s+)?{_QUOTES}{_LETTER}")
_OPTION = re.compile(rf"\b(?i:option|choice)\b(?i: is)?:?\s*{_QUOTES}(?<!\w)(?<!\w')(?:([A-Z])(?!'?\w)|([a-z])(?!'?\w){_ENDS})")
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Za-z])[)\]]")
_SINGLE = re.compile(_CAPITAL)
_OR = re.compile(rf"[\s.,:;)\]\"'*]*(?:[,/&]|\b(?:or|and)\b)\s*(?i:(?:option|choice|answer)\s+)?{_QUOTES}{_CAPITAL}")


def llava_letter(answer: str, options: int) -> str | None:
    """The option an answer names, by LLaVA's eval_science_qa.py: a letter alone, "X. ..." at its beginning, or "The answer is X"."""
    text = answer.replace("\n", ". ")
    found = None
    if text.strip() in LETTERS[:5]:
        found = text.strip()
    elif text[:1] in LETTERS[:5] and text[1:3] == ". ":
        found = text[0]
    elif match := _ANSWER_IS.search(text):
        found = match[1]
    return found if found in LETTERS[:options] else None


def letter(answer: str, choices: Sequence[str]) -> str | None:
    """The option an answer names, by the first of these that it has: a letter alone; the text of an option and nothing else; a letter at
    the beginning before . ) : or , or after "answer is"; one after "option" or in brackets; a capital that stands alone, or an option's
    text that the answer holds, if the two do not differ. None if that names several, or there is none.

    Letters are capitals, or small ones that end a phrase ("the answer is b"), for "a" is mostly an article; so is "A" before a small word.
    A letter within an option's text ("Vitamin C") names nothing.
    """
    offered = LETTERS[: len(choices)]
    if (match := _ALONE.fullmatch(answer)) and match[1].upper() in offered:
        return match[1].upper()
    for form in (_plain, normalise):
        said = form(answer)
        if said and (same := [offered[i] for i, choice in enumerate(choices) if form(choice) == said]):
            return same[0] if len(same) == 1 else None
    texts = _spans(answer, choices)
    leading = [match] if (match := _LEADING.match(answer)) else []
    for matches in (
        [*leading, *_ANSWERED.finditer(answer)],
        [*_OPTION.finditer(answer), *_BRACKETED.finditer(answer)],
    ):
        if named := _letters(answer, matches, offered, texts):
            return named.pop() if len(named) == 1 else None
    named = _letters(answer, _SINGLE.finditer(answer), offered, texts) | _held(answer, choices)
    return named.pop() if len(named) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .\"'*")


def _spans(answer: str, choices: Sequence[str]) -> list[tuple[int, int]]:
    """Where options' texts of more than a letter stand in an answer."""
    texts = [text for choice in choices if len(text := choice.strip(" .")) > 1]
    return [match.span() for text in texts for match in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE)]


def _letters(answer: str, matches: Iterable[re.Match[str]], offered: Sequence[str], texts: Sequence[tuple[int, int]]) -> set[str]:
    """The offered letters that matches name, and those joined to them ("A. or B."), outside of options' texts."""
    named = set()
    for match in matches:
        one: re.Match[str] | None = match
        while one is not None and one.lastindex is not None:
            at = one.start(one.lastindex)
            if any(start <= at < end for start, end in texts):
                break
            named |= {one[one.lastindex].upper()} & set(offered)
            one = _OR.match(answer, one.end(one.lastindex))
    return named


def _held(answer: str, choices: Sequence[str]) -> set[str]:
    """The letters of options whose text an answer holds, in the form that `normalise` gives; "black cat" does not hold "cat" as well."""
    text, named = normalise(answer), set()
    forms = [normalise(choice) for choice in choices]
    for form in sorted({form for form in forms if form}, key=len, reverse=True):
        text, times = re.subn(rf"(?<!\w){re.escape(form)}(?!\w)", "|", text)
        if times:
            named |= {LETTERS[i] for i, other in enumerate(forms) if other == form}
    return named
