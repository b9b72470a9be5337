"""AMBER (Wang et al., 2023), the discriminative part: is an object, a state, a number, an action or
a contact there? Most are not, so "no" is the positive class.

query_discriminative.json (or one of its dimensions, or query_all.json) and annotations.json of
github.com/junyangwang0410/AMBER, both; or rows that hold the truth and the type, too.

The generative part is not measured: CHAIR, Cover, Hal and Cog need spaCy's word vectors and NLTK's
tagger, whose models no package brings along. Its questions are counted.

AMBER's own script wants "Yes" or "No" and nothing else; answers are read by yes_no.py. Where
lmms-eval's reading ("yes" anywhere is yes, else "no" anywhere is no) gives other figures, these
stand beside as lmms_accuracy, ... The script rounds precision and recall to a tenth of a percent
before F1, and adds up to 0.001 to denominators: its figures can differ by 0.1 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...conversations import Question
from ...errors import DataError
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import (
    HubDefaults,
    Row,
    check_questions,
    read_source,
    rows_of,
    text_of,
)
from ..task import Array, ScoredAnswer, Task
from ..yes_no import parse_yes_no, yes_no_counts, yes_no_metrics
from .prompts import short_answer_prompt
from .yes_no_caveats import yes_no_caveats

HUB = HubDefaults("test")
GENERATIVE = "generative"
#: Kind of a question by the type in the annotations; any other type is a relation.
KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
}
RELATION = "relation"
DIMENSIONS = {
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "relation": (RELATION,),
}
_WIDTH = 5  # columns of `yes_no_metrics`


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    truths = _truths(sources)
    questions, without = [], []
    with unpack_images(pictures, sources) as unpacked:
        for source, number, row in _asked(sources):
            if number not in truths:
                without.append(number)
                continue
            right, kind = truths[number]
            if kind != GENERATIVE:
                image = picture_name(row, unpacked, f"{source}, question {number}")
                text = text_of(row, "query", "question", of=source)
                questions.append(Question(number, image, text, (right,), kind))
    if without:
        raise DataError(
            f"AMBER: {len(without)} questions have no truth",
            got=f"the first is {without[0]}",
            wanted="the questions and annotations.json",
            do="Name both files",
        )
    return check_questions(questions, sources)


def ignored_ids(sources: Sequence[str]) -> set[str]:
    """Ids of the questions of the generative part."""
    truths = _truths(sources)
    return {n for _, n, _ in _asked(sources) if truths.get(n, ("", ""))[1] == GENERATIVE}


def _rows(sources: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    for source in sources:
        for row in rows_of(read_source(source, HUB), source):
            yield source, text_of(row, "id", "question_id", of=source), row


def _asked(sources: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    return (one for one in _rows(sources) if "query" in one[2] or "question" in one[2])


def _truths(sources: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Truth and kind of each annotated question."""
    found: dict[str, tuple[str, str]] = {}
    for source, number, row in _rows(sources):
        if row.get("type") is None:
            continue
        of = f"{source}, question {number}"
        told = text_of(row, "type", of=of)
        if told == GENERATIVE:
            found[number] = "", GENERATIVE
            continue
        right = text_of(row, "truth", of=of).strip().lower()
        if right not in ("yes", "no"):
            raise DataError(f"{of}: the truth is neither yes nor no", got=right)
        found[number] = right, KINDS.get(told, RELATION)
    return found


def parse_answer_lmms(answer: str) -> str:
    """lmms-eval's reading."""
    said = answer.lower()
    return "yes" if "yes" in said else "no" if "no" in said else "other"


def score(question: Question, answer: str) -> float:
    return float(parse_yes_no(answer, question.text) == question.answers[0])


def aggregate(marked: Sequence[ScoredAnswer]) -> Array:
    """Columns of `yes_no_metrics`, with "no" as the positive class, over all questions and over
    each of `DIMENSIONS`; the same by lmms-eval's reading.
    """
    parts = 1 + len(DIMENSIONS)
    rows = np.zeros((len(marked), 2, parts, _WIDTH))
    for row, one in zip(rows, marked, strict=True):
        said = parse_yes_no(one.answer, one.question.text), parse_answer_lmms(one.answer)
        for reading, text in enumerate(said):
            counts = yes_no_counts(text, one.question.answers[0], positive="no")
            row[reading, 0] = counts
            for i, kinds in enumerate(DIMENSIONS.values(), 1):
                if one.question.kind in kinds:
                    row[reading, i] = counts
    return rows.reshape(len(marked), 2 * parts * _WIDTH)


def metrics(sums: Array) -> dict[str, Array]:
    """Metrics over all questions; by lmms-eval's reading, if that differs; those of each dimension,
    if there are several.
    """
    ours, lmms = np.split(sums, 2, axis=-1)
    found = _metrics(ours, 0)
    if (ours[0, :_WIDTH] != lmms[0, :_WIDTH]).any():
        found |= {f"lmms_{name}": one for name, one in _metrics(lmms, 0).items()}
    asked = {name: i for i, name in enumerate(DIMENSIONS, 1) if ours[0, _WIDTH * (i + 1) - 1]}
    if len(asked) > 1:
        for name, i in asked.items():
            found |= {f"{name}_{metric}": one for metric, one in _metrics(ours, i).items()}
    return found


def _metrics(sums: Array, part: int) -> dict[str, Array]:
    found = yes_no_metrics(sums[..., _WIDTH * part : _WIDTH * (part + 1)])
    return {("no_share" if name == "yes_share" else name): one for name, one in found.items()}


TASK = Task(
    "amber",
    "AMBER (discriminative)",
    load,
    score,
    aggregate,
    metrics,
    prompt=short_answer_prompt,
    caveats=yes_no_caveats,
    ignored_ids=ignored_ids,
    left_out="questions ask for a description, AMBER's generative part, and were not asked",
)
