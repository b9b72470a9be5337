"""Reads yes or no from an answer in words, and POPE's figures of it.

The rule, in this order, over the first sentence that says something:
1. nothing, or yes and no in one breath: neither;
2. a yes or no that is announced ("the answer is no", "I'd say yes") or stands at the beginning ("Yes, but ...", "Nope."); any other
   affirmation there ("Correct, ...", "True, ...") is yes only if no denial, as in 4, follows it ("Correct, there is no dog": no);
3. an answer that says that it cannot say: neither;
4. phrases that affirm by denying ("no doubt", "not only") are taken out, and what is denied of something that was just said to be there
   ("There is a dog, but it is not moving"); if a denial is left ("no", "not", "n't", "none", "lacks", ...): no;
5. otherwise what is stated is affirmed: yes, as in POPE's own rule.

POPE's own rule (github.com/AoiDragon/POPE, evaluate.py) is `pope_official`. It takes "None." and "NO" for yes, and "no doubt" for no.
What only the question could tell ("There is a cat. There is no dog.", "There is only a cat.") this rule does not know either.
"""

from __future__ import annotations

import re

from .task import Array, mean, ratio

_MARKUP = re.compile(r"<\|[^|]*\|>|[*_`#\"“”]+")
_YES = r"(?:yes|yeah|yep|yup|yea|aye)"
_NO = r"(?:no+|nope|nah|nay)"
_BOTH = re.compile(rf"{_YES} (?:or|and) {_NO}\b|(?:{_YES} {_NO}\b ?)+$|may or may not")
_SAYS = r"(?:i'd|i would|i'll|i will|i) (?:say|answer|think|guess|believe|go with)(?: that)?"
_ANNOUNCED = re.compile(rf"\b(?:answer(?: here)?(?: is|:)|{_SAYS}|a:)\W*({_YES}|{_NO})\b")
_NO_PICTURE = re.compile(r"no (?:image|picture|photo)s? (?:was|were|is|are|has|have|attached|provided)\b(?! (?:a|any)\b)|no idea\b")
_ASKS = re.compile(r"[^.!?]*\b(?:could you|can you|what do you|please (?:share|upload|provide))\b[^.!?]*[.?]?")
_FILLER = re.compile(
    r"^(?:(?:well|oh|ah|hmm|um|so|ok|okay|unfortunately|sorry|probably|(?:most )?likely|definitely|apparently)\b[\s,.!]*)+"
)
_BASED = re.compile(r"^(?:based on|looking at|judging (?:from|by)|in|from|according to) (?:the|this) (?:image|picture|photo)[^,.]*,\s*")
_LEADING_YES = re.compile(rf"(?:{_YES}|y)(?!\w)(?!\s+not\b)")
_AFFIRMED = re.compile(
    r"(?:(?:sure|certainly|absolutely|definitely|of course|indeed|correct|true|right|affirmative|undoubtedly)(?!\w)[\s,;:-]*)+"
)
_WRONG = r"(?:(?:that|this|it)(?:'s| is) )?(?:false|incorrect|wrong|untrue)\b"
_LEADING_NO = re.compile(
    rf"(?:{_NO}(?!\s+(?:doubt|question|denying|mistaking)\b|\w)|n$|negative\b|{_WRONG}|never\b|not really\b|not at all\b|0$)"
)
_CANNOT = (
    r"(?:cannot|can't|can not|could not|couldn't|unable to|impossible to|hard to|difficult to|not possible to|too \w+ to) "
    r"(?:say|tell|determine|be determined|be (?:sure|certain)|answer|judge|know|view|help|confirm|assist|provide|"
    r"(?:see|view|access|open) (?:the|any|this|an) (?:image|picture|photo)s?)"
)
_CANNOT_SAY = re.compile(
    r"\b(?:(?:don't|do not) (?:know|understand|have (?:enough|access))|un(?:sure|certain|known|clear|answerable|determined)|not sure|"
    rf"not (?:entirely |quite )?(?:clear|certain)(?! (?:picture|image|photo))|{_CANNOT}|"
    r"no idea|not enough|no image|n/a|as an ai|maybe|perhaps|possibly|might|may be|could be)\b"
)
_AFFIRMING = re.compile(
    r"\b(?:(?:there(?:'s| is) )?(?:without|no|beyond|not) (?:a |any )?(?:doubt|question|denying|mistaking)|"
    r"(?:not|isn't) (?:only|just|merely)|not (?:hard|difficult) to (?:see|spot|find)|"
    r"(?:but|though|although) not (?:very |too )?(?:clear|clearly|fully|entirely|completely|well)|"
    r"(?:can't|cannot|can not|couldn't) (?:miss|deny|be denied|be missed|help but|overlook))\b"
)
_THERE = (
    r"(?:(?:yes,? )?there(?:'s| is| are| appears? to be| seems? to be)(?: indeed| clearly| also)? |"
    r"(?:i|you|we) (?:can |do |could )?(?:clearly |also )?see |it (?:shows|contains) |"
    r"(?:the|this) (?:image|picture|photo)(?: clearly)? (?:shows|contains|has|includes|features|depicts) )"
)
_EXISTS = re.compile(
    rf"^\W*{_THERE}(?!no\b|not\b|none\b|nothing\b|zero\b|0\b|neither\b)(?:\w+\s*)+?(?=,|\s(?:that|which|who|but|and|although|though)\b)"
)
_ABOUT_IT = re.compile(
    r"^[,\s]*(?:that|which|who|(?:but|and|although|though) (?:it|they|he|she|its|their|his|her|i can't see (?:its|their))\b)"
)
_DENIAL = re.compile(
    r"\b(?:no|not|none|nothing|never|neither|nor|nobody|nowhere|cannot|without|zero|0|unable|absent|missing|lacks?|lacking|free of|devoid|"
    r"fails? to)\b|n't\b"
)


def yes_or_no(answer: str) -> str:
    """ "yes", "no", or "other" for an answer that is neither."""
    text = _MARKUP.sub(" ", answer.replace("’", "'")).lower()
    text = re.sub(r"\s*\n\s*", ". ", text.strip())
    text = re.sub(r"\s+", " ", text).strip(" '")
    sentence = next((one.strip() for one in re.split(r"[.!?](?=\s|$)", text) if re.search(r"\w", one)), "")
    if not sentence or _ASKS.fullmatch(text) or _BOTH.search(sentence) or _NO_PICTURE.match(sentence):
        return "other"
    if match := _ANNOUNCED.search(text if text.startswith(("answer", "a:", "final", "the")) else sentence):
        return "yes" if re.fullmatch(_YES, match[1]) else "no"
    begun = _FILLER.sub("", _BASED.sub("", sentence)) or sentence
    if _LEADING_YES.match(begun):
        return "yes"
    if _LEADING_NO.match(begun):
        return "no"
    affirmed = _AFFIRMED.match(begun)
    stated = _AFFIRMING.sub(" ", begun[affirmed.end() :] if affirmed else sentence)
    denied = _DENIAL.search(_without_asides(stated)) is not None
    if affirmed and not denied:
        return "yes"
    if _CANNOT_SAY.search(sentence):
        return "other"
    return "no" if denied else "yes"


def _without_asides(sentence: str) -> str:
    """Up to where something that is there is only described further."""
    there = _EXISTS.match(sentence)
    return there.group() if there and _ABOUT_IT.match(sentence[there.end() :]) else sentence


def pope_official(answer: str) -> str:
    """POPE's own reading: of what stands before the first period, "no" if "No", "no" or "not" is a word of it, else "yes"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "no", "not") for word in words) else "yes"


def yes_no_figures(sums: Array) -> dict[str, Array]:
    """POPE's figures, "yes" being the positive class, of columns (..., 5): yes said rightly, yes said, yes true, equal, number."""
    hits, said, true, equal, number = (sums[..., i] for i in range(5))
    precision, recall = ratio(hits, said), ratio(hits, true)
    return {
        "accuracy": mean(equal, number),
        "f1": ratio(2 * precision * recall, precision + recall),
        "precision": precision,
        "recall": recall,
        "yes_share": mean(said, number),
    }


def yes_no_row(said: str, true: str) -> tuple[float, ...]:
    """The columns of `yes_no_figures` for one answer."""
    return (float(said == true == "yes"), float(said == "yes"), float(true == "yes"), float(said == true), 1.0)
