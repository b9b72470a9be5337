"""COCO captions (Chen et al., 2015): a generated caption against five human references.

captions_val2014.json of COCO's annotations, rows {"id", "image", "references": [...]}, or
lmms-lab/COCO-Caption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ..benchmark_images import ImageUnpacker, picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    read_source,
    rows_of,
    text_of,
    texts_of,
)
from ..caption_metrics import MAX_NGRAM, CiderScorer, bleu, bleu_counts, rouge_l, tokenize_caption
from ..caveats import Caveat, of_long_texts
from ..task import Array, ScoredAnswer, Task, mean

HUB = HubDefaults("val")
CAPTION_PROMPT = (
    "Provide a one-sentence caption for the provided image."  # the prompt of LLaVA and lmms-eval
)


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            document = read_source(source, HUB)
            if isinstance(document, dict) and "annotations" in document:
                questions += _annotations(document, source)
            else:
                questions += [_question(row, unpacked, source) for row in rows_of(document, source)]
    return check_questions(questions, sources)


def _annotations(document: Row, source: str) -> list[Question]:
    told: dict[str, list[str]] = {}
    for row in rows_of(document, source, "annotations"):
        told.setdefault(text_of(row, "image_id", of=source), []).append(
            text_of(row, "caption", of=source)
        )
    images = rows_of(document, source, "images") if "images" in document else ()
    names = {text_of(row, "id", of=source): text_of(row, "file_name", of=source) for row in images}
    return [
        Question(number, names.get(number), CAPTION_PROMPT, tuple(captions), "caption")
        for number, captions in told.items()
    ]


def _question(row: Row, unpacked: ImageUnpacker, source: str) -> Question:
    number = text_of(row, "id", "question_id", "image_id", of=source)
    references = texts_of(
        row, "references", "captions", "answer", of=f"{source}, question {number}"
    )
    return Question(
        number, picture_name(row, unpacked, source), CAPTION_PROMPT, references, "caption"
    )


def score(question: Question, answer: str) -> float:
    return rouge_l(tokenize_caption(answer), [tokenize_caption(one) for one in question.answers])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns: BLEU statistics; ROUGE-L, CIDEr-D, CIDEr; number of captions."""
    said = [tokenize_caption(one.answer) for one in marked]
    references = [[tokenize_caption(text) for text in one.question.answers] for one in marked]
    cider = CiderScorer(references)
    rows = [
        (*bleu_counts(text, accepted), one.score, *cider(at, text), 1.0)
        for at, (one, text, accepted) in enumerate(zip(marked, said, references, strict=True))
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * MAX_NGRAM + 6)


def metrics(sums: Array) -> dict[str, Array]:
    """CIDEr-D, which COCO's evaluation calls CIDEr; corpus BLEU-1 to 4; ROUGE-L; CIDEr without
    clipping and length penalty.
    """
    rouge, with_d, without, number = (sums[..., 2 * MAX_NGRAM + 2 + i] for i in range(4))
    found = {"cider_d": mean(with_d, number)}
    found |= {
        f"bleu_{n}": figure for n, figure in enumerate(bleu(sums[..., : 2 * MAX_NGRAM + 2]), 1)
    }
    return found | {"rouge_l": mean(rouge, number), "cider_plain": mean(without, number)}


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_long_texts(marked)
    if len(marked) == 1:
        yield Caveat(
            "one-picture",
            "picture is too few for CIDEr, which weighs n-grams by how few pictures have them: it"
            " is 0",
            1,
        )


TASK = Task(
    "captions",
    "COCO captions",
    load,
    score,
    aggregate,
    metrics,
    prompt=lambda question: question.text,
    max_new_tokens=64,
    caveats=caveats,
)
