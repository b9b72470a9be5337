"""The answer to the question of a row: which of its answer keys holds it, which answers are
accepted beside it, and what keys that disagree mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..safe_parsing import quote
from .cells import CellError, cell_text, is_empty, parse_cell
from .grouped_fields import GroupedFields, ambiguity_fault
from .json_reader import Fault
from .keys import normalize_key
from .option_answers import answer_text, resolve_answer
from .options import LETTERS, Options
from .parsed_row import ParsedRow
from .question_options import add_question, with_options

_LISTS = ("answers", "captions")  # keys whose table cells may hold a list
#: Ranks of keys that do not compete with other answers: classes, second captions.
_RANKS = {"label": 1, "description": 1, "text": 2}
_INDICES = ("answeridx", "answerindex", "correctchoiceidx")  # keys of option indices
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{0,18})?")
KeyedAnswers = list[tuple[str, Any]]


def add_answer(
    parsed: ParsedRow,
    fields: GroupedFields,
    question: str,
    answers: KeyedAnswers,
    choices: Options | None,
) -> bool:
    """Add the question and its answer; False if the value is not an answer. Other keys with a
    different answer stay unused.
    """
    lowest = min(_rank(*one, choices) for one in answers)
    first = [one for one in answers if _rank(*one, choices) == lowest]
    if lowest == 3:
        parsed.faults.append(
            (
                "bad-options",
                (
                    f"has {quote(first[0][1])} under {quote(first[0][0])}, which counts options,"
                    " and has none"
                ),
            )
        )
    asked = with_options(question, choices)
    accepted: list[list[str]] = []
    letters: list[str] = []
    for key, value in first:
        found = _accepted_answers(key, value, choices, asked)
        if found is None:
            return False
        if isinstance(found, tuple):
            parsed.faults.append(found)
            return True
        accepted.append(found.texts)
        letters += found.letters
    beside = [one for one in answers if _rank(*one, choices) > lowest]
    _add_agreeing(parsed, fields, [*first, *beside], beside, (accepted, letters, choices, asked))
    texts, fault = _merge_answers(first, accepted)
    parsed.faults += fault
    if choices is None and len(texts) > 1:
        parsed.faults.append(("more-captions", f"has {len(texts)} captions or answers"))
    parsed.accepted = tuple(dict.fromkeys([*texts, *letters])) if len(texts) > 1 or letters else ()
    parsed.options = choices.texts if choices is not None else ()
    add_question(parsed, question, asked, choices)
    parsed.add_turn("assistant", texts[0])
    return True


def _rank(key: str, value: Any, choices: Options | None) -> int:
    """Rank of an answer key: the answer is the one of the lowest rank. A class, a second caption
    and an index without options never compete.
    """
    name = normalize_key(key)
    return 3 if choices is None and name in _INDICES and is_number(value) else _RANKS.get(name, 0)


def is_number(value: Any) -> bool:
    """Whether a value is a number, or the text of one."""
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is not None
    )


def _add_agreeing(
    parsed: ParsedRow,
    fields: GroupedFields,
    answers: KeyedAnswers,
    beside: KeyedAnswers,
    by: tuple[list[list[str]], list[str], Options | None, str],
) -> None:
    """Add the values that agree with the answer to the accepted answers; the others stay unused.
    True and false are a preference.
    """
    accepted, letters, choices, asked = by
    if len(answers) > 1 and any(isinstance(value, bool) for _, value in answers):
        parsed.faults.append(
            (
                "unsupported-key",
                f"has true or false beside an answer ({_named(answers)}), a preference",
            )
        )
    others = []
    widest = {_plain(text) for texts in accepted for text in texts}
    for key, value in beside:
        found = _accepted_answers(key, value, choices, asked)
        said = (
            {_plain(text) for text in found.texts} if isinstance(found, _AcceptedAnswers) else set()
        )
        if (
            said
            and isinstance(found, _AcceptedAnswers)
            and (said <= widest | {_plain(text) for text in letters} or widest <= said)
        ):
            accepted += [found.texts] if widest < said else []
            continue
        if isinstance(value, str) and _plain(value) in ("true", "false"):
            parsed.faults.append(
                (
                    "unsupported-key",
                    f"has true or false beside an answer ({_named(answers)}), a preference",
                )
            )
        elif not isinstance(value, bool):
            others.append((key, value))
    fields.put_back("answer", others)


@dataclass(frozen=True, slots=True)
class _AcceptedAnswers:
    """The texts that one key accepts, and the letters and texts of the options that they mean."""

    texts: list[str]
    letters: list[str]


def _accepted_answers(
    key: str, value: Any, choices: Options | None, asked: str
) -> _AcceptedAnswers | Fault | None:
    """What the answers under one key mean; None if the value is not an answer."""
    values = _listed(key, value)
    if values is None or choices is None:
        return None if values is None else _AcceptedAnswers([cell_text(one) for one in values], [])
    found = _AcceptedAnswers([], [])
    for one in values:
        at = resolve_answer(one, choices)
        if isinstance(at, tuple):
            return at
        found.texts.append(answer_text(cell_text(one), at, choices, asked))
        found.letters.extend([] if at is None else [LETTERS[at], choices.texts[at]])
    return found


def _plain(text: str) -> str:
    return text.strip().casefold()


def _named(pairs: KeyedAnswers) -> str:
    return " and ".join(quote(key) for key, _ in pairs)


def _listed(key: str, value: Any) -> list[Any] | None:
    """All answers under a key; None if the value is not an answer."""
    if key.strip().lower() in _LISTS:
        try:
            found = parse_cell(value)
            value = (
                found
                if isinstance(found, list) and all(isinstance(one, str) for one in found) and found
                else value
            )
        except CellError:
            pass  # an answer may start with a bracket
    if isinstance(value, list):
        full = [
            one.get("answer") if isinstance(one, dict) else one
            for one in value
            if not is_empty(one)
        ]  # VQAv2: {"answer", "answer_id"}
        return (
            list(dict.fromkeys(full))
            if full and all(type(one) in (str, int, float) for one in full)
            else None
        )
    return [value] if isinstance(value, (str, int, float)) else None


def _merge_answers(
    answers: KeyedAnswers, texts_by_key: list[list[str]]
) -> tuple[list[str], list[Fault]]:
    """The longest list of accepted answers, the single answer first, if all keys agree; else a
    fault.
    """
    plain = [{_plain(text) for text in texts} for texts in texts_by_key]
    widest = max(range(len(texts_by_key)), key=lambda at: len(plain[at]))
    if any(not one <= plain[widest] for one in plain):
        return texts_by_key[0], [ambiguity_fault(answers, "the answer")]
    alone = next((texts[0] for texts in texts_by_key if len(texts) == 1), texts_by_key[widest][0])
    return [alone, *(text for text in texts_by_key[widest] if _plain(text) != _plain(alone))], []
