"""RealWorldQA (xAI, 2024): 765 questions about photographs, most of them taken from vehicles;
multiple choice, or with a short answer. The options and the instruction are part of the question's
text.

Rows {"image", "question", "answer"} of xAI's release, or lmms-lab/RealWorldQA. Questions without an
id are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...conversations import Question
from ..answer_metrics import OPTION_LETTERS
from ..benchmark_images import picture_name, unpack_images
from ..benchmark_io import HubDefaults, check_questions, numbered_rows, read_source, text_of
from ..caveats import Caveat, of_unread
from ..ranked_letters import parse_letter_ranked
from ..task import ScoredAnswer, Task, accuracy_metrics, aggregate_scores

HUB = HubDefaults("test")
LETTERS = OPTION_LETTERS[:4]


def load(sources: Sequence[str], pictures: Path | None) -> list[Question]:
    questions: list[Question] = []
    with unpack_images(pictures, sources) as unpacked:
        for source in sources:
            rows = numbered_rows(read_source(source, HUB), source, len(questions))
            for number, row in rows:
                of = f"{source}, question {number}"
                right = text_of(row, "answer", of=of).strip()
                lettered = right.upper() in LETTERS
                questions.append(
                    Question(
                        number,
                        picture_name(row, unpacked, of, names=("image", "image_path")),
                        text_of(row, "question", of=of).strip(),
                        (right.upper() if lettered else right,),
                        "multiple choice" if lettered else "open",
                        LETTERS if lettered else (),
                    )
                )
    return check_questions(questions, sources)


def score(question: Question, answer: str) -> float:
    """The letter of a multiple-choice question; of others the whole answer, apart from case and
    final periods.
    """
    right = question.answers[0]
    if question.choices:
        return float(parse_letter_ranked(answer) == right)
    return float(answer.lower().strip().rstrip(".") == right.lower())


def caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    yield from of_unread(
        [one for one in marked if one.question.choices],
        lambda one: parse_letter_ranked(one.answer) is not None,
        "name no option",
    )


TASK = Task(
    "realworldqa",
    "RealWorldQA",
    load,
    score,
    aggregate_scores,
    accuracy_metrics,
    prompt=lambda question: question.text,
    caveats=caveats,
)
