"""Answer scoring: VQA normalization, VQA and TextVQA accuracy over ten annotators, and option
letters.

`normalize_answer` reproduces the official evaluation (github.com/GT-Vision-Lab/VQA,
PythonEvaluationTools/vqaEvaluation/vqaEval.py) including its quirks, because scores are comparable
only if the quirks are the same: a punctuation mark beside a space is deleted and one between
letters becomes a space, unless the text holds a number with a comma, when all are deleted; of the
periods that no digit follows, only the first 32 are deleted; "let's" stays and "somebody'd" loses
its apostrophe. It was written for English: non-ASCII text is first brought into one form
(`normalize_any_script`), while the official rules leave Latin letters unchanged
(`normalize_official`). Yes and no are parsed in `yes_no.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from ..unicode_scripts import UNSPACED, is_non_latin, is_unspaced, normalize_unicode
from .final_answer import final_answers

_NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBERS = {word: str(i) for i, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the official code passes re.UNICODE as the `count` of `sub`

# Contractions without their apostrophes, from the official table: the entries that lack all of
# them, then those that lack one of two.
_LACKING_ALL = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's"
    " how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've"
    " o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll"
    " someone's something'd something'll that's there'd there're there's they'd they'll they're"
    " they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's"
    " where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd"
    " you'll you're you've"
)
_LACKING_ONE = (
    "couldn'tve couldnt've hadnt've hadn'tve hed've he'dve itd've it'dve mightnt've mightn'tve"
    " shed've she'dve shouldnt've shouldn'tve somebodyd've somebody'dve someoned've someone'dve"
    " somethingd've something'dve thered've there'dve theyd've they'dve wed've we'dve whod've"
    " who'dve wouldnt've wouldn'tve yall'd've y'alld've y'all'dve youd've you'dve"
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


@lru_cache(maxsize=1 << 16)  # annotators give the same short answers again and again
def normalize_answer(answer: str) -> str:
    """Normalize an answer for comparison: lower case, without articles and punctuation, numbers as
    digits.
    """
    text = _one_line(answer)
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    cleared = text
    for mark in _PUNCTUATION:
        cleared = cleared.replace(
            mark, "" if drop_all or f"{mark} " in text or f" {mark}" in text else " "
        )
    words = [
        _NUMBERS.get(word, word)
        for word in _PERIOD.sub("", cleared, count=_MAX_PERIODS).lower().split()
    ]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def normalize_any_script(answer: str) -> str:
    """`normalize_answer` for every script: non-ASCII text is brought into one Unicode form first
    ("红色。" is "红色", "ＲＥＤ" is "red"); accents are kept.
    """
    return normalize_answer(answer if answer.isascii() else normalize_unicode(answer))


def normalize_official(answer: str) -> str:
    """The official `normalize_answer` for Latin scripts, `normalize_any_script` for scripts that
    the official rules do not cover.
    """
    return normalize_any_script(answer) if is_non_latin(answer) else normalize_answer(answer)


def is_correct(
    answer: str, accepted: Iterable[str], form: Callable[[str], str] = normalize_any_script
) -> bool:
    """Whether `answer` equals one of `accepted` after normalization. A reference that normalizes to
    nothing ("?", "the") is compared as written.
    """
    said = form(answer)
    return any(
        said == form(one) if said else bool(answer.strip()) and answer.strip() == one.strip()
        for one in accepted
    )


def is_final_answer_correct(answer: str, accepted: Sequence[str]) -> bool:
    """`is_correct` on the final answers of both (`final_answer.py`). Training and tuning use this,
    so that they agree with `evaluate`.
    """
    right, final = final_answers(accepted, answer)
    return is_correct(final, right)


#: The VQA rule assumes this many annotators for each question; with fewer than four, no answer can
#: score 1 by it.
ANNOTATORS, MIN_ANNOTATORS = 10, 4


def vqa_agreement(answer: str, accepted: Sequence[str]) -> float:
    """VQA accuracy: the number of annotators who gave the answer, divided by 3 and at most 1,
    averaged over all subsets that leave one annotator out.
    """
    same = [one == answer for one in accepted]
    total = sum(same)
    return float(sum(min(1.0, (total - own) / 3) for own in same)) / len(same)


def vqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """VQA accuracy as vqaEval.py computes it: if all annotators agree, neither their answer nor the
    model's is normalized.

    That quirk holds for the ten annotators that the script was written for. With fewer than
    `MIN_ANNOTATORS` this is `is_correct`.
    """
    plain = [_one_line(one) for one in accepted]
    if len(set(plain)) == 1 and len(plain) >= MIN_ANNOTATORS and not is_non_latin(plain[0]):
        return vqa_agreement(_one_line(answer), plain)
    return annotator_accuracy(answer, plain, normalize_official)


def textvqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """TextVQA accuracy (mmf's `EvalAIAnswerProcessor`, in LLaVA's m4c_evaluator.py): always
    normalized, with "'s" as a separate word.
    """
    return annotator_accuracy(answer, accepted, _textvqa_form)


def annotator_accuracy(answer: str, accepted: Sequence[str], form: Callable[[str], str]) -> float:
    """`vqa_agreement` after normalization with `form`; with fewer than `MIN_ANNOTATORS` annotators,
    `is_correct`.
    """
    if len(accepted) < MIN_ANNOTATORS:
        return float(is_correct(answer, accepted, form))
    return vqa_agreement(form(answer), [form(one) for one in accepted])


def _textvqa_form(answer: str) -> str:
    return normalize_official(
        answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    )


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


OPTION_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ANSWER_IS = re.compile(r"The answer is ([A-E])")
_QUOTES = r"[\s\"'*(\[]*"
_ALONE = re.compile(rf"{_QUOTES}([A-Za-z])[\s\"'*)\]]*[.:,]?[\s\"'*]*")
_ENDS = r"(?=[\s\"'*)\]]*(?:[.,:;!?]|$))"  # the end of a phrase
# A capital letter that stands alone; "A bird" and "I see" begin with words, not option letters.
_CAPITAL = r"(?<!\w)(?<!\w')(?![AI]\s+(?!(?:or|and|nor|is|because|since)\b)[a-z])([A-Z])(?!'?\w)"
_LETTER = rf"(?:{_CAPITAL}|(?<!\w)(?<!\w')([a-z])(?!'?\w){_ENDS})"
_LEADING = re.compile(
    rf"{_QUOTES}(?<!\w)(?<!\w')([A-Z])(?:[)\].:,]+[*]*(?=\s|$)|(?=\s*(?:/|&|(?:or|and)\b)))"
)
_ANSWERED = re.compile(
    rf"\b(?i:answer)\b(?i: is)?:?\s*(?i:(?:option|choice)\s+)?{_QUOTES}{_LETTER}"
)
_OPTION = re.compile(
    r"\b(?i:option|choice)\b(?i: is)?"
    rf":?\s*{_QUOTES}(?<!\w)(?<!\w')(?:([A-Z])(?!'?\w)|([a-z])(?!'?\w){_ENDS})"
)
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Za-z])[)\]]")
_SINGLE = re.compile(_CAPITAL)
_TOUCHING = re.compile(rf"(?<={UNSPACED.pattern})(?=[A-Za-z])|(?<=[A-Za-z])(?={UNSPACED.pattern})")
_OR = re.compile(
    rf"[\s.,:;)\]\"'*]*(?:[,/&]|\b(?:or|and)\b)\s*(?i:(?:option|choice|"
    rf"answer)\s+)?{_QUOTES}{_CAPITAL}"
)


def parse_letter_llava(answer: str, options: int) -> str | None:
    """Parse an option letter as LLaVA's eval_science_qa.py does: a letter alone, "X. ..." at the
    beginning, or "The answer is X".
    """
    text = answer.replace("\n", ". ")
    found = None
    if text.strip() in OPTION_LETTERS[:5]:
        found = text.strip()
    elif text[:1] in OPTION_LETTERS[:5] and text[1:3] == ". ":
        found = text[0]
    elif match := _ANSWER_IS.search(text):
        found = match[1]
    return found if found in OPTION_LETTERS[:options] else None


def parse_letter(answer: str, choices: Sequence[str]) -> str | None:
    """Parse the option that an answer names, by the first rule that matches: a letter alone;
    exactly the text of an option; a letter at the beginning before . ) : or , or after "answer is";
    one after "option" or in brackets; a capital that stands alone, or an option's text within the
    answer, if the two agree. None if that is ambiguous or no rule matches.

    Letters are capitals, or lower case at the end of a phrase ("the answer is b"), because "a" is
    mostly an article; so is "A" before a lower-case word. A letter within an option's text
    ("Vitamin C") does not count. A Latin letter between letters of scripts without spaces stands
    alone.
    """
    answer = _apart(answer)
    offered = OPTION_LETTERS[: len(choices)]
    if (match := _ALONE.fullmatch(answer)) and match[1].upper() in offered:
        return match[1].upper()
    for form in (_plain, normalize_any_script):
        said = form(answer)
        if said and (
            same := [offered[i] for i, choice in enumerate(choices) if form(choice) == said]
        ):
            return same[0] if len(same) == 1 else None
    texts = _spans(answer, choices)
    leading = [match] if (match := _LEADING.match(answer)) else []
    for matches in (
        [*leading, *_ANSWERED.finditer(answer)],
        [*_OPTION.finditer(answer), *_BRACKETED.finditer(answer)],
    ):
        if named := _letters(answer, matches, offered, texts):
            return named.pop() if len(named) == 1 else None
    named = _letters(answer, _SINGLE.finditer(answer), offered, texts) | _letters_of_texts(
        answer, choices
    )
    return named.pop() if len(named) == 1 else None


def _apart(answer: str) -> str:
    """`answer` with full-width characters as ASCII, and spaces inserted where a Latin letter
    touches a script without spaces ("答案是B").
    """
    if answer.isascii() or not (is_non_latin(answer) or is_unspaced(answer)):
        return answer
    plain = unicodedata.normalize("NFKC", answer).replace("。", ". ")
    return _TOUCHING.sub(" ", plain)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .\"'*")


def _spans(answer: str, choices: Sequence[str]) -> list[tuple[int, int]]:
    """Spans of the options' texts of more than one letter within an answer."""
    texts = [text for choice in choices if len(text := choice.strip(" .")) > 1]
    return [
        match.span()
        for text in texts
        for match in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE)
    ]


def _letters(
    answer: str,
    matches: Iterable[re.Match[str]],
    offered: Sequence[str],
    texts: Sequence[tuple[int, int]],
) -> set[str]:
    """The offered letters that the matches name, and those joined to them ("A. or B."), outside of
    the options' texts.
    """
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


def _letters_of_texts(answer: str, choices: Sequence[str]) -> set[str]:
    """Letters of the options whose normalized text occurs in the answer; "black cat" does not also
    match "cat".
    """
    text, named = normalize_any_script(answer), set()
    forms = [normalize_any_script(choice) for choice in choices]
    for form in sorted({form for form in forms if form}, key=len, reverse=True):
        within = re.escape(form) if is_unspaced(form) else rf"(?<!\w){re.escape(form)}(?!\w)"
        text, times = re.subn(within, "|", text)
        if times:
            named |= {OPTION_LETTERS[i] for i, other in enumerate(forms) if other == form}
    return named
