"""The options of a row as part of its question: appended to the text, unless the question lists
them.
"""

from __future__ import annotations

from .json_reader import Fault
from .option_answers import answer_text, resolve_answer
from .options import LETTERS, Options
from .parsed_row import ParsedRow
from .turn_parser import parse_role


def with_options(question: str, choices: Options | None) -> str:
    """The question, followed by the options unless it lists them."""
    if choices is None or choices.listed_in(question):
        return question
    return f"{question.rstrip()}\n{choices.written()}"


def add_question(parsed: ParsedRow, question: str, asked: str, choices: Options | None) -> None:
    """Add the question, with a note if the options were appended to it."""
    if choices is not None and asked != question:
        parsed.faults.append(_added(choices))
    parsed.add_turn("user", asked)


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
    asked = with_options(question, choices)
    if asked != question:
        parsed.faults.append(_added(choices))
    parsed.turns[at] = role, asked
    parsed.options = choices.texts
    if at + 1 < len(parsed.turns) and (named == [] or len(questions) == 1):
        answering, answer = parsed.turns[at + 1]
        found = resolve_answer(answer, choices, spoken=True)
        if isinstance(found, tuple):
            parsed.faults.append(found)
        elif found is not None:
            text = answer_text(answer, found, choices, asked)
            parsed.turns[at + 1] = answering, text
            parsed.accepted = tuple(dict.fromkeys((text, choices.texts[found], LETTERS[found])))


def _added(choices: Options) -> Fault:
    return "options-added", f"has {len(choices.texts)} options that its question does not name"
