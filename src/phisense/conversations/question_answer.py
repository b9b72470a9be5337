"""Parse rows with a question and an answer in separate keys: image folders, VQA data sets, Alpaca,
ScienceQA, captions.
"""

from __future__ import annotations

from typing import Any

from ..safe_parsing import quote
from .answers import KeyedAnswers, add_answer, is_number
from .grouped_fields import GroupedFields, ambiguity_fault
from .keys import normalize_key
from .options import Options
from .parsed_row import ParsedRow
from .question_options import add_question, with_options

#: The question for an image that has only a caption: one of LLaVA's own prompts for alignment.
CAPTION_QUESTION = "Provide a brief description of the given image."


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
        add_question(parsed, question, with_options(question, choices), choices)
        return True
    return add_answer(parsed, fields, question, answers, choices)


def _is_class(key: str, value: Any) -> bool:
    """Whether a value is the number of a class, which no question asks for."""
    return normalize_key(key) == "label" and is_number(value)


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


def describe_keys(row: dict[Any, Any]) -> str:
    """The keys of a row of unknown shape, for its fault."""
    return ", ".join(quote(key)[1:-1] for key in sorted(row, key=str))[:120] or "none"
