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
_ALONE = re.compile(r"[\s\"'*(\[]*([A-Za-z])[\s\"'*)\]]*[.:,]?[\s\"'*]*")
_LEADING = re.compile(r"[\s\"'*]*[(\[]?([A-Z])[)\].:,][*]*(\s|$)")
_SAID = re.compile(r"(?:answer|option|choice)\b(?: is)?:?\s*[\"'*(\[]*([A-Z])\b(?!')", re.IGNORECASE)


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
    """The option an answer names: a letter alone; one at the beginning before . ) : or , ; "answer is X", "option X"; the only letter that
    stands alone as a capital in a short answer; the only option whose text it holds, or is. None if it names none, or several.
    """
    offered = LETTERS[: len(choices)]
    for match in (_ALONE.fullmatch(answer), _LEADING.match(answer), _SAID.search(answer)):
        if match and match[1].upper() in offered:
            return str(match[1].upper())
    alone = set(re.findall(r"(?<![\w'])([A-Z])(?![\w'])", answer)) & set(offered)
    if len(alone) == 1 and (alone != {"A"} or len(answer.split()) <= 3):  # "A" may be an article
        return str(alone.pop())
    text = normalise(answer)
    forms = [normalise(choice) for choice in choices]
    named = [offered[i] for i, form in enumerate(forms) if form == text] or [
        offered[i] for i, form in enumerate(forms) if form and re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text)
    ]
    return named[0] if len(named) == 1 else None
