r"""Options of a multiple-choice question: lists, lettered columns or lines.

    {"question": "Which shape is red?", "choices": ["star", "ring"]}     ScienceQA
    {"question": "Which shape is red?", "A": "star", "B": "ring"}        MMBench

become "Which shape is red?\nA. star\nB. ring". Nothing is guessed: an ambiguous set is a defect.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from ..safe_parsing import quote
from .cells import CellError, cell_text, is_empty, parse_cell
from .grouped_fields import GroupedFields, ambiguity_fault
from .json_reader import Fault

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERED = re.compile(r"[(\[]?([A-Z])[)\].:]\s*(.+)", re.DOTALL)
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
#: What may be between two options listed in running text: punctuation, letters, numbers and short
#: words, but not the end of a question.
_BETWEEN = re.compile(
    r"(?:[^\w?!]|\b(?:\w|\d\d|option|choice|and|or|an|the|oder|und|eine?n?|der|die|das|ou|et|une?|"
    r"les?|la|el|los|las|il|uno|una|или|还是|或)\b)*",
    re.IGNORECASE,
)
_MAX_GAP = 40  # characters between two options of a list
_LISTED = 10_000  # characters at the end of a question that are searched for options


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
            found = [match.span() for match in whole_word(text.casefold()).finditer(low)]
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
    found = [LETTERED.fullmatch(text) for text in texts]
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
    found = [match for line in lines[: len(LETTERS) + 1] if (match := LETTERED.fullmatch(line))]
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


def whole_word(word: str) -> re.Pattern[str]:
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
