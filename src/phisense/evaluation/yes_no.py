"""Parse yes or no from a free-text answer, and compute POPE's metrics.

The rules, applied in this order to the first non-empty sentence:
1. nothing, or both yes and no in one phrase: neither;
2. a yes or no that is announced ("the answer is no", "I'd say yes") or begins the sentence
   ("Yes, but ...", "Nope."); any other affirmation there ("Correct, ...", "True, ...") is yes only
   if no negation, as in 4, follows it ("Correct, there is no dog": no);
3. a statement that it cannot tell: neither;
4. phrases whose negation affirms ("no doubt", "not only") are removed, and so is a negation about
   something just stated to exist ("There is a dog, but it is not moving"); if a negation is left
   ("no", "not", "n't", "none", "lacks", ...): no;
5. otherwise a statement affirms: yes, as in POPE's own rule, but only if it is recognizably English
   (`english.py`) and is not a question, a refusal or an error message; anything else is neither.

In other languages, words for yes and no are parsed at the beginning of an answer (`languages.py`).

POPE's own rule (github.com/AoiDragon/POPE, evaluate.py) is `parse_yes_no_pope`. It takes "None."
and "NO" for yes, and "no doubt" for no. Cases that only the question could decide ("There is a cat.
There is no dog.", "There is only a cat.") are not covered by this rule either.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from .english import is_english, is_foreign
from .languages import affirms_by_denying, foreign_yes_or_no, says_unknown
from .task import Array, mean, ratio

_MARKUP = re.compile(r"<\|[^|]*\|>|[*_`#\"“”]+")
_YES = r"(?:yes+|yeah|yep|yup|yea|aye)"
_NO = r"(?:no+|nope|nah|nay)"
_BOTH = re.compile(rf"{_YES} (?:or|and) {_NO}\b|(?:{_YES} {_NO}\b ?)+$|may or may not")
_SAYS = r"(?:i'd|i would|i'll|i will|i) (?:say|answer|think|guess|believe|go with)(?: that)?"
_ANNOUNCED = re.compile(rf"\b(?:answer(?: here)?(?: is|:)|{_SAYS}|a:)\W*({_YES}|{_NO})\b")
_NO_PICTURE = re.compile(
    r"no (?:image|picture|photo)s? (?:was|were|is|are|has|have|attached|"
    r"provided)\b(?! (?:a|any)\b)|no idea\b"
)
_ASKS = re.compile(
    r"[^.!?]*\b(?:could you|can you|what do you|please (?:share|upload|provide))\b[^.!?]*[.?]?"
)
_FILLER = re.compile(
    r"^(?:(?:well|oh|ah|hmm|um|so|ok|okay|unfortunately|sorry|probably|"
    r"(?:most )?likely|definitely|apparently)\b[\s,.!]*)+"
)
_BASED = re.compile(
    r"^(?:based on|looking at|judging (?:from|by)|in|from|according to) (?:the|"
    r"this) (?:image|picture|photo)[^,.]*,\s*"
)
_LEADING_YES = re.compile(rf"(?:{_YES}|y)(?!\w)(?!\s+not\b)")
_AFFIRMED = re.compile(
    r"(?:(?:sure|certainly|absolutely|definitely|"
    r"of course|indeed|correct|true|right|affirmative|undoubtedly)(?!\w)[\s,;:-]*)+"
)
_TAG = re.compile(r"</?[a-zA-Z][\w:-]*(?:\s[^<>]*)?/?>")
_BRACKETED = re.compile(r"[\[{(<]+\s*([^\[\]{}()<>:]*?)\s*[\]})>]+\W*")
_ANSWERS = re.compile(rf"(?:{_YES}|{_NO})(?!\w)")
_WRONG = r"(?:(?:that|this|it)(?:'s| is) )?(?:false|incorrect|wrong|untrue)\b"
_LEADING_NO = re.compile(
    rf"(?:{_NO}(?!\s+(?:doubt|question|denying|mistaking)\b|\w)|n$|negative\b|{_WRONG}|never\b|not"
    r" really\b|not at all\b|0$)"
)
_CANNOT = (
    r"(?:won't|will not|not able to|not going to|cannot|can't|can not|could not|couldn't|"
    r"unable to|impossible to|hard to|difficult to|"
    r"not possible to|too \w+ to) "
    r"(?:say|tell|determine|be determined|"
    r"be (?:sure|certain)|answer|judge|know|view|help|confirm|assist|provide|see (?:if|whether)|"
    r"(?:see|view|access|open) (?:the|any|this|an) (?:image|picture|photo)s?)"
)
_CANNOT_SAY = re.compile(
    r"\b(?:(?:don't|do not) (?:know|understand|"
    r"have (?:enough|access))|un(?:sure|certain|known|clear|answerable|determined)|not sure|"
    rf"not (?:entirely |quite )?(?:clear|certain)(?! (?:picture|image|photo))|{_CANNOT}|"
    r"no idea|not enough|no image|n/a|as an ai|maybe|perhaps|possibly|might|may be|could be)\b"
)
_AFFIRMING = re.compile(
    r"\b(?:(?:there(?:'s| is) )?(?:without|no|beyond|not) (?:a |"
    r"any )?(?:doubt|question|denying|mistaking)|"
    r"(?:not|isn't) (?:only|just|merely)|not (?:hard|difficult) to (?:see|spot|find)|"
    r"(?:but|though|although) not (?:very |too )?(?:clear|clearly|fully|entirely|completely|well)|"
    r"(?:can't|cannot|can not|couldn't) (?:miss|deny|be denied|be missed|help but|overlook))\b"
)
_THERE = (
    r"(?:(?:yes,? )?there(?:'s| is| are| appears? to be| seems? to be)(?: indeed| clearly| also)? |"
    r"(?:i|you|we) (?:can |do |could )?(?:clearly |also )?see |it (?:shows|contains) |"
    r"(?:the|this) (?:image|picture|"
    r"photo)(?: clearly)? (?:shows|contains|has|includes|features|depicts) )"
)
_EXISTS = re.compile(
    rf"^\W*{_THERE}(?!no\b|not\b|none\b|nothing\b|zero\b|0\b|neither\b)\w+(?:\s+\w+)*?\s*(?=,|"
    rf"\s(?:that|which|who|but|and|although|though)\b)"
)
_ABOUT_IT = re.compile(
    r"^[,\s]*(?:that|which|who|"
    r"(?:but|and|although|though) (?:it|they|he|she|its|their|his|her|i can't see (?:its|"
    r"their))\b)"
)
#: Error messages that programs return in place of an answer, and refusals: they state nothing about
#: the image.
_SHOWN = (
    r"(?! (?:message|page|screen|code|dialog|window|sign|"
    r"text)s? (?:is|are|on|in|at|with|shown|displayed|appears?|can)\b)"
)
_FAILED = re.compile(
    r"<!doctype|</?(?:html|head|body|script)\b|^\W*[{\[]|"
    rf"^\W*(?:[\w.]+ ){{0,2}}(?:\w*errors?|\w*exception)\b{_SHOWN}|"
    r"^\W*(?:null|undefined|nan|unauthorized|forbidden|https?:|api|failed)\b|"
    r"\b(?:traceback|(?:request|connection|operation|it) timed? ?out|"
    r"(?:rate )?limit(?:ed)? exceeded|bad gateway|service unavailable|"
    r"too many requests|status code|via api|api (?:key|error|call|request|limit))\b"
)
_REFUSED = re.compile(
    r"^(?:my )?apologies\b|"
    r"\b(?:i|we)(?:'m|'re)?(?: \w+){0,2} (?:sorry|apologi[sz]e|declin(?:e|ing)|refus(?:e|ing))\b|"
    r"against (?:my|our)\b|"
    r"\b(?:as|i'm|i am|being) (?:just |"
    r"only )?an? (?:\w+ ){0,2}(?:language model|model|assistant|ai)\b|"
    r"^(?:\w+ ){0,2}(?:model|server|service|system) (?:is|"
    r"was) (?:currently )?(?:overloaded|busy|down)\b|\byour (?:current )?quota\b"
)
_UNABLE = re.compile(
    r"(?:i |i'm |i am |we )?(?:cannot|can't|can not|could not|couldn't|unable(?: to)?|won't|"
    r"will not)"
)
_DENIAL = re.compile(
    r"\b(?:no|not|none|nothing|never|neither|nor|nobody|nowhere|cannot|without|zero|0|unable|"
    r"absent|missing|lacks?|lacking|"
    r"free of|devoid|"
    r"fails? to)\b|n't\b"
)


@lru_cache(maxsize=1 << 16)  # scoring, aggregation and caveats parse the same answers
def parse_yes_no(answer: str, asked: str = "") -> str:
    """Return "yes" or "no"; "other" for an answer that is neither. The words of the question
    `asked` count as English.
    """
    text = _MARKUP.sub(" ", _unwrapped(answer.replace("’", "'"))).lower()
    text = re.sub(r"\s*\n\s*", ". ", text.strip())
    text = re.sub(r"\s+", " ", text).strip(" '")
    if asked and len(text) > len(repeated := " ".join(asked.lower().split())):
        # the answer repeats the question first
        text = text.removeprefix(repeated).strip(" :-'") or text
    sentence = _first(text)
    if (
        not sentence
        or _ASKS.fullmatch(text)
        or _BOTH.search(sentence)
        or _NO_PICTURE.match(sentence)
        or says_unknown(sentence)
    ):
        return "other"
    if match := _ANNOUNCED.search(
        text if text.startswith(("answer", "a:", "final", "the")) else sentence
    ):
        return "yes" if re.fullmatch(_YES, match[1]) else "no"
    begun = _FILLER.sub("", _BASED.sub("", sentence)) or sentence
    if affirms_by_denying(sentence):
        return foreign_yes_or_no(sentence)
    if _LEADING_YES.match(begun):
        return "yes"
    if _LEADING_NO.match(begun):
        return "no"
    told = foreign_yes_or_no(sentence)
    if told != "other" or is_foreign(sentence, asked):
        return told
    return _stated(
        sentence,
        begun,
        asked,
        questioned=text[text.find(sentence) + len(sentence) :].lstrip(" '")[:1] in ("?", "？"),
    )


def _unwrapped(answer: str) -> str:
    """Remove wrapping and styling of an answer: a prompt, tags, brackets around the whole, a JSON
    object with a single text.
    """
    text = answer.rpartition("[/INST]")[2].strip()
    if not re.search(r"[<{\[(]", text):
        return text
    if text.startswith(("{", "[", "`")):
        try:
            held = json.loads(re.sub(r"^`+(?:json)?\s*|\s*`+$", "", text))
        except (ValueError, RecursionError):
            held = None
        values = (
            list(held.values())
            if isinstance(held, dict)
            else held
            if isinstance(held, list)
            else []
        )
        if len(texts := [value for value in values if isinstance(value, str)]) == 1:
            return texts[0]
    if not _FAILED.match(text.lower()) or not text.startswith("<"):
        text = _TAG.sub(" ", text).strip()
    return whole[1] if (whole := _BRACKETED.fullmatch(text)) else text


def _first(text: str) -> str:
    """The first non-empty sentence; if it is a question directly followed by yes or no ("The dog?
    No."), that answer.
    """
    told: list[tuple[str, str]] = [
        (one, end)
        for one, end in re.findall(r"(.*?)([.!?](?=\s|$)|[。！？]|$)", text)
        if re.search(r"\w", one)
    ]
    if len(told) > 1 and told[0][1] in ("?", "？") and _ANSWERS.match(told[1][0].lstrip(" :-'")):
        return told[1][0].lstrip(" :-'").strip()
    return told[0][0].strip() if told else ""


def _stated(sentence: str, begun: str, asked: str, *, questioned: bool) -> str:
    """Whether a sentence that does not begin with yes or no affirms or negates."""
    affirmed = _AFFIRMED.match(begun)
    plain = begun[affirmed.end() :] if affirmed else sentence
    stated = _AFFIRMING.sub(" ", plain)
    denied = _DENIAL.search(_without_asides(stated)) is not None
    if affirmed and not denied:
        return "yes"
    if _CANNOT_SAY.search(sentence) or _UNABLE.fullmatch(sentence) or _FAILED.search(sentence):
        return "other"
    if denied:
        return "no"
    states = (
        not questioned
        and not _REFUSED.search(sentence)
        and (is_english(sentence, asked) or stated != plain or sentence == "1")
    )
    return "yes" if states else "other"


def _without_asides(sentence: str) -> str:
    """The statement that something exists, without what is added about it."""
    there = _EXISTS.match(sentence)
    return there.group() if there and _ABOUT_IT.match(sentence[there.end() :]) else sentence


def parse_yes_no_pope(answer: str) -> str:
    """POPE's own parsing: "no" if the text before the first period contains the word "No", "no" or
    "not", else "yes".
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "no", "not") for word in words) else "yes"


def yes_no_metrics(sums: Array) -> dict[str, Array]:
    """POPE's metrics, with "yes" as the positive class, from columns `(..., 5)`: true positives,
    predicted yes, reference yes, correct, number. From columns whose positive class is "no" they
    are those of "no".
    """
    hits, said, true, equal, number = (sums[..., i] for i in range(5))
    precision, recall = ratio(hits, said), ratio(hits, true)
    return {
        "accuracy": mean(equal, number),
        "f1": ratio(2 * precision * recall, precision + recall),
        "precision": precision,
        "recall": recall,
        "yes_share": mean(said, number),
    }


def yes_no_counts(said: str, true: str, positive: str = "yes") -> tuple[float, ...]:
    """The columns of `yes_no_metrics` for one answer."""
    return (
        float(said == true == positive),
        float(said == positive),
        float(true == positive),
        float(said == true),
        1.0,
    )
