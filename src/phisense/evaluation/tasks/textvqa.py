"""TextVQA (Singh et al., 2019): questions about text in images. TextVQA_0.5.1_val.json, or
lmms-lab/textvqa. With OCR tokens in the prompt it is another task: textvqa_ocr.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...conversations import Question
from ...errors import DataError
from ..answer_metrics import textvqa_accuracy
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import HubDefaults, check_questions, read_source, rows_of, text_of, texts_of
from ..caveats import Caveat, of_people, of_scripts
from ..task import ScoredAnswer, Task, accuracy_metrics, aggregate_scores
from .prompts import short_answer_prompt

HUB = HubDefaults("validation")


def load(sources: Sequence[str], pictures: Path | None, *, hints: bool) -> list[Question]:
    questions: list[Question] = []
    about: dict[str, str] = {}  # question -> the image's id
    tokens: dict[str, list[str]] = {}
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            for row in rows_of(read_source(source, HUB), source, "data"):
                picture = text_of(row, "image_id", of=source)
                if (read_off := row.get("ocr_tokens")) is not None:
                    tokens[picture] = (
                        list(texts_of(row, "ocr_tokens", of=source)) if read_off != [] else []
                    )  # the OCR system may have found no text
                if "question" in row:
                    number = text_of(row, "question_id", of=source)
                    about[number] = picture
                    image = picture_name(row, unpacked, source, f"{picture}.jpg")
                    # The questions, all lower case, are capitalized in LLaVA's file.
                    text = text_of(row, "question", of=source).strip().capitalize()
                    questions.append(
                        Question(number, image, text, texts_of(row, "answers", of=source), "other")
                    )
    if hints:
        questions = [_with_hint(question, tokens.get(about[question.id])) for question in questions]
    return check_questions(questions, sources)


def _with_hint(question: Question, tokens: list[str] | None) -> Question:
    if tokens is None:
        raise DataError(
            f"TextVQA: there are no OCR tokens for question {question.id}",
            do="Name TextVQA_Rosetta_OCR_v0.2_val.json too, or take textvqa, which needs none",
        )
    return replace(question, text=f"{question.text}\nReference OCR token: {', '.join(tokens)}")


def score(question: Question, answer: str) -> float:
    return textvqa_accuracy(answer, question.answers)


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_people(marked)
    yield from of_scripts(marked)


TASK = Task(
    "textvqa",
    "TextVQA",
    partial(load, hints=False),
    score,
    aggregate_scores,
    accuracy_metrics,
    prompt=short_answer_prompt,
    caveats=caveats,
)
