"""COCO captions (Chen et al., 2015): a picture's description beside five people's.

captions_val2014.json of COCO's annotations, rows {"id", "image", "references": [...]}, or lmms-lab/COCO-Caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ..reading import Row, Unpacked, Usual, picture_name, read, rows_of, some, text_of, texts_of, unpacking
from ..task import Array, Marked, Task, mean
from ..texts import ORDER, Cider, bleu, bleu_counts, rouge_l, words

HUB = Usual("val")
ASKED = "Provide a one-sentence caption for the provided image."  # LLaVA's words, and lmms-eval's


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpacking(pictures, sources) as unpacked:
        for source in sources:
            document = read(source, HUB)
            if isinstance(document, dict) and "annotations" in document:
                questions += _annotations(document, source)
            else:
                questions += [_question(row, unpacked, source) for row in rows_of(document, source)]
    return some(questions, sources)


def _annotations(document: Row, source: str) -> list[Question]:
    told: dict[str, list[str]] = {}
    for row in rows_of(document, source, "annotations"):
        told.setdefault(text_of(row, "image_id", of=source), []).append(text_of(row, "caption", of=source))
    images = rows_of(document, source, "images") if "images" in document else ()
    names = {text_of(row, "id", of=source): text_of(row, "file_name", of=source) for row in images}
    return [Question(number, names.get(number), ASKED, tuple(captions), "caption") for number, captions in told.items()]


def _question(row: Row, unpacked: Unpacked, source: str) -> Question:
    number = text_of(row, "id", "question_id", "image_id", of=source)
    references = texts_of(row, "references", "captions", "answer", of=f"{source}, question {number}")
    return Question(number, picture_name(row, unpacked, source), ASKED, references, "caption")


def credit(question: Question, answer: str) -> float:
    return rouge_l(words(answer), [words(one) for one in question.answers])


def tally(marked: Sequence[Marked]) -> Array:
    """Columns: BLEU's counts; ROUGE-L, CIDEr-D, CIDEr; number."""
    said = [words(one.answer) for one in marked]
    references = [[words(text) for text in one.question.answers] for one in marked]
    cider = Cider(references)
    rows = [
        (*bleu_counts(text, accepted), one.credit, *cider(at, text), 1.0)
        for at, (one, text, accepted) in enumerate(zip(marked, said, references, strict=True))
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * ORDER + 6)


def figures(sums: Array) -> dict[str, Array]:
    """CIDEr-D, which COCO's evaluation calls CIDEr; BLEU-1 to 4 of the whole; ROUGE-L; CIDEr without clipping and length penalty."""
    rouge, with_d, without, number = (sums[..., 2 * ORDER + 2 + i] for i in range(4))
    found = {"cider_d": mean(with_d, number)}
    found |= {f"bleu_{n}": figure for n, figure in enumerate(bleu(sums[..., : 2 * ORDER + 2]), 1)}
    return found | {"rouge_l": mean(rouge, number), "cider_plain": mean(without, number)}


CAPTIONS = Task("captions", "COCO captions", load, credit, tally, figures, put=lambda question: question.text, max_new_tokens=64)
