"""Parse rows with a question and an answer in separate keys: image folders, VQA data sets, Alpaca,
ScienceQA, captions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..safe_parsing import quote
from . import options as multiple_choice
from .json_reader import Fault
from .keys import (
    CellError,
    GroupedFields,
    ambiguity_fault,
    cell_text,
    is_empty,
    normalize_key,
    parse_cell,
)
from .options import LETTERS, Options
from .parsed_row import ParsedRow
from .turn_parser import parse_role

#: The question for an image that has only a caption: one of LLaVA's own prompts for alignment.
CAPTION_QUESTION = "Provide a brief description of the given image."
_LISTS = ("answers", "captions")  # keys whose table cells may hold a list
#: Ranks of keys that do not compete with other answers: classes, second captions.
_RANKS = {"label": 1, "description": 1, "text": 2}
_INDICES = ("answeridx", "answerindex", "correctchoiceidx")  # keys of option indices
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{0,18})?")
KeyedAnswers = list[tuple[str, Any]]


def parse_question_answer(
    parsed: ParsedRow, fields: GroupedFields, choices: Options | None, *, pictures: bool
) -> bool:
    """Add the row's question and answer as turns; False if there is no question, or only a caption
    without an image.
    """
    asked = fields.take("question")
    answers, text, captions = fields.take("answer"), fields.take("text"), fields.take("caption")
    question = _question(parsed, asked, fields)
    classes = choices is None and bool(answers) and all(_is_class(*one) for one in answers)
    if question is None and classes and captions and pictures:
        fields.put_back("answer", answers)
        answers = []
    if question is None and answers and text and isinstance(text[0][1], str):
        if classes:
            what = (
                f"has {quote(answers[0][1])} under {quote(answers[0][0])} beside"
                f" {quote(text[0][0])}, a class or the answer to it"
            )
            parsed.faults.append(("ambiguous-keys", what))
        question, text = text[0][1], []  # as in POPE
    elif question is None and not answers and pictures and (text or captions):
        question, answers, text, captions = CAPTION_QUESTION, [*captions, *text], [], []
    fields.put_back("text", text)
    fields.put_back("caption", captions)
    if question is None:
        return False
    question = _with_context(question, fields, choices)
    if not answers:
        _add_question(parsed, question, _with_options(question, choices), choices)
        return True
    return _add_answer(parsed, fields, question, answers, choices)


def _is_class(key: str, value: Any) -> bool:
    """Whether a value is the number of a class, which no question asks for."""
    return normalize_key(key) == "label" and _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is not None
    )


def _rank(key: str, value: Any, choices: Options | None) -> int:
    """Rank of an answer key: the answer is the one of the lowest rank. A class, a second caption
    and an index without options never compete.
    """
    name = normalize_key(key)
    return 3 if choices is None and name in _INDICES and _is_number(value) else _RANKS.get(name, 0)


def _question(parsed: ParsedRow, asked: KeyedAnswers, fields: GroupedFields) -> str | None:
    """The question, followed by Alpaca's `input`."""
    if {normalize_key(key) for key, _ in asked} == {"instruction", "question"} and all(
        isinstance(value, str) for _, value in asked
    ):
        asked = [(asked[0][0], _joined(asked))]
    if len(asked) > 1:
        parsed.faults.append(ambiguity_fault(asked, "the question"))
    if asked and not isinstance(asked[0][1], str):
        return None
    inputs = fields.take("input")
    if len(inputs) > 1:
        parsed.faults.append(ambiguity_fault(inputs, "the input"))
    if inputs and not isinstance(inputs[0][1], str):
        fields.put_back("input", inputs)
        inputs = []
    return "\n".join(value.strip() for _, value in (*asked[:1], *inputs[:1])) or None


def _joined(asked: KeyedAnswers) -> str:
    """An instruction followed by the question; only one of them if it contains the other."""
    instruction, question = (
        text.strip() for _, text in sorted(asked, key=lambda one: normalize_key(one[0]))
    )
    return (
        instruction
        if question in instruction
        else question
        if instruction in question
        else f"{instruction}\n{question}"
    )


def _with_context(question: str, fields: GroupedFields, choices: Options | None) -> str:
    """Prepend the context to the question. A `hint` is part of a question with options (ScienceQA,
    MMBench), and is otherwise not read.
    """
    for group in ("context", "hint") if choices is not None else ("context",):
        found = fields.take(group)
        if len(found) == 1 and isinstance(found[0][1], str):
            said = found[0][1].strip()
            question = question if said in question else f"{said}\n{question}"
        else:
            fields.put_back(group, found)
    return question


def _with_options(question: str, choices: Options | None) -> str:
    if choices is None or choices.listed_in(question):
        return question
    return f"{question.rstrip()}\n{choices.written()}"


def _add_answer(
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
    asked = _with_options(question, choices)
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
    _add_question(parsed, question, asked, choices)
    parsed.add_turn("assistant", texts[0])
    return True


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


def _added(choices: Options) -> Fault:
    return "options-added", f"has {len(choices.texts)} options that its question does not name"


def _add_question(parsed: ParsedRow, question: str, asked: str, choices: Options | None) -> None:
    """Add the question, with a note if the options were appended to it."""
    if choices is not None and asked != question:
        parsed.faults.append(_added(choices))
    parsed.add_turn("user", asked)


def _accepted_answers(
    key: str, value: Any, choices: Options | None, asked: str
) -> _AcceptedAnswers | Fault | None:
    """What the answers under one key mean; None if the value is not an answer."""
    values = _listed(key, value)
    if values is None or choices is None:
        return None if values is None else _AcceptedAnswers([cell_text(one) for one in values], [])
    found = _AcceptedAnswers([], [])
    for one in values:
        at = multiple_choice.resolve_answer(one, choices)
        if isinstance(at, tuple):
            return at
        found.texts.append(multiple_choice.answer_text(cell_text(one), at, choices, asked))
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


def append_options(parsed: ParsedRow, choices: Options) -> None:
    """Handle options next to turns: append them to the only question, unless a
    question lists them.
    """
    questions = [at for at, (role, _) in enumerate(parsed.turns) if parse_role(role) == "user"]
    if not questions:
        return
    named = [at for at in questions if choices.listed_in(parsed.turns[at][1])]
    if not named and len(questions) > 1:
        parsed.faults.append(
            ("bad-options", f"has options and {len(questions)} questions, of which none names them")
        )
        return
    at = (named or questions)[-1]
    role, question = parsed.turns[at]
    asked = _with_options(question, choices)
    if asked != question:
        parsed.faults.append(_added(choices))
    parsed.turns[at] = role, asked
    parsed.options = choices.texts
    if at + 1 < len(parsed.turns) and (named == [] or len(questions) == 1):
        answering, answer = parsed.turns[at + 1]
        found = multiple_choice.resolve_answer(answer, choices, spoken=True)
        if isinstance(found, tuple):
            parsed.faults.append(found)
        elif found is not None:
            text = multiple_choice.answer_text(answer, found, choices, asked)
            parsed.turns[at + 1] = answering, text
            parsed.accepted = tuple(dict.fromkeys((text, choices.texts[found], LETTERS[found])))


def describe_keys(row: dict[Any, Any]) -> str:
    """The keys of a row of unknown shape, for its fault."""
    return ", ".join(quote(key)[1:-1] for key in sorted(row, key=str))[:120] or "none"
