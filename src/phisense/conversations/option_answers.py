"""Which option an answer given as a letter, number or text means, and the training target for it.

With the options "star" and "ring", the answer 1 of a list (ScienceQA: numbers count from 0) and the
answer "B" (MMBench) become "ring". Nothing is guessed: an ambiguous answer is a defect.
"""

from __future__ import annotations

import re
from typing import Any

from ..safe_parsing import quote
from .json_reader import Fault
from .options import LETTERED, LETTERS, Options, whole_word

_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]?")
_NUMBER = re.compile(r"\d{1,4}")
#: "The answer is B.", "Option (B)", "Answer: B".
_SAYS = re.compile(
    r"(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer|option|"
    r"choice)(?:\s+is)?\s*:?\s+(?:option\s+|choice\s+)?([(\[]?[A-Z][)\].:]?\.?)",
    re.IGNORECASE,
)
_MAX_TEXT_LENGTH = (
    20_000  # characters; a longer answer is not an option, and is rejected as an answer anyway
)
_SENTENCE = 8  # words; a longer answer is an explanation and stays as it is


def resolve_answer(answer: Any, options: Options, *, spoken: bool = False) -> int | Fault | None:
    """The index of the option that an answer means; None for a sentence that is more than an
    option; or a fault if it cannot be decided.

    An answer that is `spoken`, in a conversation, may be any words except a letter or number that
    is not an option.
    """
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        return (
            "bad-options",
            f"has the answer {quote(answer)}, wanted a letter, a number or the text of an option",
        )
    if isinstance(answer, float):
        if not answer.is_integer():
            return _outside(answer, options)
        answer = int(answer)
    if isinstance(answer, str) and len(answer) > _MAX_TEXT_LENGTH:
        return None
    by_text = _by_text(str(answer), options)
    named = (
        _by_number(answer, options)
        if isinstance(answer, int)
        else _by_name(answer.strip(), options)
    )
    if by_text is not None and named is not None and not 0 <= named < len(options.texts):
        named = None  # "7" of 5, 7 and 9 is an option's text, not its index
    if isinstance(answer, int) and options.listed and not options.numeric and named is not None:
        by_text = None  # as in ScienceQA, a number with a list of texts is an index
    if by_text is not None and named is not None and named != by_text:
        return (
            "bad-options",
            f"has the answer {quote(answer)}, which is one option and names another",
        )
    if isinstance(answer, str) and (match := LETTERED.fullmatch(answer.strip())):
        index, said = LETTERS.index(match[1]), _by_text(match[2], options)
        if said is not None and said != index:
            return (
                "bad-options",
                (
                    f"has the answer {quote(answer)}, whose letter is one option and whose text"
                    " another"
                ),
            )
    found = by_text if by_text is not None else named
    if found is None:
        return None if _is_sentence(answer, options, spoken=spoken) else _outside(answer, options)
    return found if 0 <= found < len(options.texts) else _outside(answer, options)


def _is_sentence(answer: Any, options: Options, *, spoken: bool) -> bool:
    """Whether an answer is an explanation, mentions an option among other words, or is free text in
    a conversation.
    """
    if not isinstance(answer, str):
        return False
    words = len(answer.split())
    if words > _SENTENCE or (
        spoken
        and words > 1
        and not LETTERED.fullmatch(answer.strip())
        and not _SAYS.fullmatch(answer.strip())
    ):
        return True
    low = answer.casefold()
    return any(whole_word(text.casefold()).search(low) is not None for text in options.texts)


def _outside(answer: Any, options: Options) -> Fault:
    last = LETTERS[len(options.texts) - 1]
    counted = f", or 0 to {len(options.texts) - 1}" if options.listed else ""
    return (
        "bad-options",
        f"has the answer {quote(answer)}, wanted one of its options, A to {last}{counted}",
    )


def _by_text(answer: str, options: Options) -> int | None:
    texts = [text.casefold() for text in options.texts]
    said = answer.strip().casefold()
    for one in (said, said.rstrip(".")):
        if one in texts:
            return texts.index(one)
    return None


def _by_number(answer: int, options: Options) -> int | None:
    return answer if options.listed else None


def _by_name(answer: str, options: Options) -> int | None:
    """The index for a letter, a letter with its text, or, for a list, a number in a table cell."""
    if said := _SAYS.fullmatch(answer):
        answer = said[1].removesuffix(".")
    if match := _LETTER.fullmatch(answer):
        return LETTERS.index(match[1].upper())
    if (match := LETTERED.fullmatch(answer)) and (index := LETTERS.index(match[1])) < len(
        options.texts
    ):
        return (
            index
            if match[2].strip().rstrip(".").casefold()
            == options.texts[index].rstrip(".").casefold()
            else None
        )
    return int(answer) if options.listed and _NUMBER.fullmatch(answer) else None


def answer_text(answer: str, index: int | None, options: Options, question: str) -> str:
    """The training target: the option's text; its letter if the question shows the options and asks
    for the letter; a sentence unchanged.
    """
    if index is None:
        return answer
    return LETTERS[index] if options.expects_letter(question) else options.texts[index]
