"""TextVQA (Singh et al., 2019): questions about text in pictures. TextVQA_0.5.1_val.json, or lmms-lab/textvqa.

`textvqa-ocr` tells the model what an OCR system read, in LLaVA's words, and needs that too: TextVQA_Rosetta_OCR_v0.2_val.json. The two are
different tasks: their figures must not be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...conversations import Question
from ...errors import DataError
from ..answers import textvqa_accuracy
from ..reading import Usual, picture_name, read, rows_of, some, text_of, texts_of, unpacking
from ..task import Task, accuracy, shares
from .wording import short

HUB = Usual("validation")


def load(sources: Sequence[str], pictures: Path | None, *, hints: bool) -> list[Question]:
    questions: list[Question] = []
    about: dict[str, str] = {}  # question -> the picture's id
    tokens: dict[str, list[str]] = {}
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            for row in rows_of(read(source, HUB), source, "data"):
                picture = text_of(row, "image_id", of=source)
                if (read_off := row.get("ocr_tokens")) is not None:
                    tokens[picture] = list(texts_of(row, "ocr_tokens", of=source)) if read_off != [] else []  # there may be no text
                if "question" in row:
                    number = text_of(row, "question_id", of=source)
                    about[number] = picture
                    image = picture_name(row, unpacked, source, f"{picture}.jpg")
                    # LLaVA's file has the questions, which are all in lower case, with a capital.
                    text = text_of(row, "question", of=source).strip().capitalize()
                    questions.append(Question(number, image, text, texts_of(row, "answers", of=source), "other"))
    if hints:
        questions = [_with_hint(question, tokens.get(about[question.id])) for question in questions]
    return some(questions, sources)


def _with_hint(question: Question, tokens: list[str] | None) -> Question:
    if tokens is None:
        raise DataError(
            f"TextVQA: there are no OCR tokens for question {question.id}",
            do="Name TextVQA_Rosetta_OCR_v0.2_val.json too, or take textvqa, which needs none",
        )
    return replace(question, text=f"{question.text}\nReference OCR token: {', '.join(tokens)}")


def credit(question: Question, answer: str) -> float:
    return textvqa_accuracy(answer, question.answers)


TEXTVQA = Task("textvqa", "TextVQA", partial(load, hints=False), credit, shares, accuracy, put=short)
TEXTVQA_OCR = Task("textvqa-ocr", "TextVQA with OCR tokens", partial(load, hints=True), credit, shares, accuracy, put=short)
