r"""Options of a multiple-choice question, and which option an answer given as a letter or number
means.

    {"question": "Which shape is red?", "choices": ["star", "ring"], "answer": 1}     ScienceQA:
    numbers count from 0
    {"question": "Which shape is red?", "A": "star", "B": "ring", "answer": "B"}      MMBench

become "Which shape is red?\nA. star\nB. ring" and "ring". Nothing is guessed: an ambiguous answer
is a defect.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from ..safe_parsing import quote
from .json_reader import Fault
from .keys import CellError, GroupedFields, ambiguity_fault, cell_text, is_empty, parse_cell

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]?")
_LETTERED = re.compile(r"[(\[]?([A-Z])[)\].:]\s*(.+)", re.DOTALL)
_NUMBER = re.compile(r"\d{1,4}")
_WANTS = (
    r"(?:answer|reply|respond|response|give|select|choose|pick|output|provide|write|return"
    r"|option|choice|only|just)"
)
#: "Answer with the option's letter"; not "Which letter is on the sign?".
_ASKS_FOR_LETTER = re.compile(
    rf"\b{_WANTS}(?:'?s)?\b[^.?!\n]{{0,60}}?\bletters?\b"
    r"|\bletters?\b[^.?!\n]{0,40}?\b(?:options?|choices?|answers?|only)\b",
    re.IGNORECASE,
)
#: "The answer is B.", "Option (B)", "Answer: B".
_SAYS = re.compile(
    r"(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer|option|"
    r"choice)(?:\s+is)?\s*:?\s+(?:option\s+|choice\s+)?([(\[]?[A-Z][)\].:]?\.?)",
    re.IGNORECASE,
)
#: What may be between two options listed in running text: punctuation, letters, numbers and short
#: words, but not the end of a question.
_BETWEEN = re.compile(
    r"(?:[^\w?!]|\b(?:\w|\d\d|option|choice|and|or|an|the|oder|und|eine?n?|der|die|das|ou|et|une?|"
    r"les?|la|el|los|las|il|uno|una|или|还是|或)\b)*",
    re.IGNORECASE,
)
_MAX_GAP = 40  # characters between two options of a list
_LISTED = 10_000  # characters at the end of a question that are searched for options
_MAX_TEXT_LENGTH = (
    20_000  # characters; a longer answer is not an option, and is rejected as an answer anyway
)
_SENTENCE = 8  # words; a longer answer is an explanation and stays as it is


@dataclass(frozen=True, slots=True)
class Options:
    """`listed`: given as a list, so an answer may be a 0-based index; `numeric`: a
    list of numbers.
    """

    texts: tuple[str, ...]
    listed: bool
    numeric: bool = False

    def written(self) -> str:
        """The options as lines of a question: `A. star`, `B. ring`."""
        return "\n".join(f"{LETTERS[index]}. {text}" for index, text in enumerate(self.texts))

    def listed_in(self, question: str) -> bool:
        """Whether the question lists all of them: in order, as whole words, close to each other."""
        low = question[-_LISTED:].casefold()
        if sum(map(len, self.texts)) > len(low):
            return False
        ends: list[int] | None = None
        for text in self.texts:
            found = [match.span() for match in _whole_word(text.casefold()).finditer(low)]
            ends = [end for start, end in found if ends is None or _follows(low, ends, start)]
            if not ends:
                return False
        return True

    def expects_letter(self, question: str) -> bool:
        """Whether the question shows the options with letters and asks for the letter."""
        marks = all(
            re.search(rf"(?<!\w){LETTERS[index]}[.):\]]", question)
            for index in range(len(self.texts))
        )
        return marks and _ASKS_FOR_LETTER.search(question) is not None


def parse_options(fields: GroupedFields) -> tuple[Options | None, list[Fault]]:
    """The options under `choices` or `options`, or in lettered columns; None if there are none."""
    named = fields.take("options")
    columns = _columns(fields)
    if named and columns:
        fields.letters.clear()
        return None, [ambiguity_fault([*named, *columns.values()], "options")]
    if columns:
        fields.letters.clear()
        return _options({letter: value for letter, (_, value) in columns.items()}, "columns")
    found = []
    for key, value in named:
        try:
            found.append((key, _lines(value) or parse_cell(value)))
        except CellError as error:
            return None, [("bad-cell", f"has text under {quote(key)} {error}")]
    if not found:
        return None, []
    if any(value != found[0][1] for _, value in found[1:]):
        return None, [ambiguity_fault(found, "options")]
    return _options(found[0][1], quote(found[0][0]))


def _columns(fields: GroupedFields) -> dict[str, tuple[str, Any]]:
    """The columns A, B and following; a single filled letter is not a set of options."""
    letters = dict(fields.letters)
    return (
        letters
        if "a" in letters and sum(not is_empty(value) for _, value in letters.values()) > 1
        else {}
    )


def _options(value: Any, where: str) -> tuple[Options | None, list[Fault]]:
    value = _labelled(value)
    lettered = isinstance(value, dict)
    if lettered:
        letters = sorted(str(key).strip().upper() for key in value)
        if letters != list(LETTERS[: len(letters)]):
            return None, [
                (
                    "bad-options",
                    (
                        f"has the options {', '.join(letters)[:60]} in {where}, wanted A, B, C ..."
                        " without a gap"
                    ),
                )
            ]
        value = [
            one for _, one in sorted(value.items(), key=lambda item: str(item[0]).strip().upper())
        ]
    if not isinstance(value, list) or not all(
        one is None or type(one) in (str, int, float) for one in value
    ):
        return None, [
            ("bad-options", f"has {quote(value)} as options in {where}, wanted a list of texts")
        ]
    while value and is_empty(value[-1]):
        value = value[:-1]
    gaps = [index for index, one in enumerate(value) if is_empty(one)]
    if gaps or len(value) > len(LETTERS):
        what = (
            f"an empty option {LETTERS[gaps[0]]} before a filled one"
            if gaps
            else f"{len(value)} options"
        )
        return None, [
            (
                "bad-options",
                f"has {what} in {where}, wanted 2 to {len(LETTERS)} without a gap",
            )
        ]
    texts = tuple(cell_text(one).strip() for one in value)
    found = [_LETTERED.fullmatch(text) for text in texts]
    # strip letters: "A. star" is "star"
    if all(match is not None and match[1] == LETTERS[index] for index, match in enumerate(found)):
        return (
            Options(
                tuple(match[2].strip() for match in found if match is not None), listed=not lettered
            ),
            [],
        )
    return Options(texts, not lettered, any(not isinstance(one, str) for one in value)), []


def _lines(value: Any) -> dict[str, str] | None:
    r"""`A. star\nB. ring` as a mapping of letters to texts."""
    lines = (
        [line.strip() for line in value.splitlines() if line.strip()]
        if isinstance(value, str)
        else []
    )
    found = [match for line in lines[: len(LETTERS) + 1] if (match := _LETTERED.fullmatch(line))]
    lettered = {match[1]: match[2].strip() for match in found}
    return (
        lettered
        if 1 < len(lines) == len(lettered) and "".join(lettered) == LETTERS[: len(lines)]
        else None
    )


def _labelled(value: Any) -> Any:
    """`{"label": ["A", "B"], "text": ["star", "ring"]}` and `[{"label": "A", "text": "star"}, ...]`
    as a mapping of letters to texts.
    """
    if isinstance(value, dict) and value.keys() == {"label", "text"}:
        labels, texts = value["label"], value["text"]
        same = isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts)
        return (
            dict(zip(map(str, labels), texts, strict=True))
            if same and len(set(map(str, labels))) == len(texts)
            else value
        )
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, dict) and one.keys() == {"label", "text"} for one in value)
    ):
        labels = [str(one["label"]) for one in value]
        return (
            dict(zip(labels, (one["text"] for one in value), strict=True))
            if len(set(labels)) == len(labels)
            else value
        )
    return value


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
    if isinstance(answer, str) and (match := _LETTERED.fullmatch(answer.strip())):
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
        and not _LETTERED.fullmatch(answer.strip())
        and not _SAYS.fullmatch(answer.strip())
    ):
        return True
    low = answer.casefold()
    return any(_whole_word(text.casefold()).search(low) is not None for text in options.texts)


def _outside(answer: Any, options: Options) -> Fault:
    last = LETTERS[len(options.texts) - 1]
    counted = f", or 0 to {len(options.texts) - 1}" if options.listed else ""
    return (
        "bad-options",
        f"has the answer {quote(answer)}, wanted one of its options, A to {last}{counted}",
    )


def _whole_word(word: str) -> re.Pattern[str]:
    """A pattern that matches `word` only as whole words."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")


def _follows(text: str, ends: list[int], start: int) -> bool:
    """Whether `start` follows the nearest of the options that end at `ends`, as in a list."""
    index = bisect_right(ends, start)
    return (
        index > 0
        and start - ends[index - 1] <= _MAX_GAP
        and _BETWEEN.fullmatch(text, ends[index - 1], start) is not None
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
    if (match := _LETTERED.fullmatch(answer)) and (index := LETTERS.index(match[1])) < len(
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
