"""The verb that scores answers that exist already: score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import TASK_NAMES, Json, VerbResult, app, print_caveats

if TYPE_CHECKING:
    from ..evaluation.results import ScoreReport
    from ..intervals import Interval


Benchmark = Annotated[
    str,
    typer.Argument(
        autocompletion=lambda: list(TASK_NAMES),
        help=f"The benchmark whose rules it is scored by: {', '.join(TASK_NAMES)}.",
    ),
]
QuestionFiles = Annotated[
    list[str],
    typer.Option(help="The benchmark's own file, folder, or OWNER/NAME of the hub. Repeatable."),
]
GivenAnswers = Annotated[
    Path,
    typer.Option(
        help=('A row for each question: {"question_id": ..., "answer": ...}; JSON lines or a list.')
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Questions without an answer count as wrong.")
]
AnswerColumn = Annotated[
    str | None,
    typer.Option(
        "--answer-column",
        metavar="NAME",
        help="The column or field of the answers; otherwise the one that holds them.",
    ),
]
BootstrapSeed = Annotated[int, typer.Option(min=0, help="Of the bootstrap.")]


@app.command()
def score(
    task: Benchmark,
    questions: QuestionFiles,
    answers: GivenAnswers,
    allow_missing: AllowMissing = False,
    answer_column: AnswerColumn = None,
    seed: BootstrapSeed = 0,
    json: Json = False,
) -> VerbResult:
    """Score answers that any model has given, by the benchmark's official rules, with 95 %
    intervals.

    Reads the official files as they are published (docs/evaluation.md says where to get them, and
    how each is scored): of VQAv2 its questions and its annotations, of POPE any of its files, of
    captions COCO's annotations or rows of {"id", "references": [...]}. Answers may be written as
    LLaVA ("text"), GQA ("questionId", "prediction"), COCO ("image_id", "caption"), POPE
    ("question", "answer" in the order of the questions) and lmms-eval (its samples) write them,
    too. Of several columns that could be the answers the one is taken that is neither right nor the
    question in every row, and that is said; where that does not tell, --answer-column does.
    """
    from .. import console
    from ..evaluation.tasks import TASKS
    from ..pipeline.evaluate import score_answers
    from .rendering import print_as_json

    title = TASKS[task].title
    with console.err.status(f"reading and scoring {task}"):
        scored = score_answers(
            task,
            questions=questions,
            answers=answers,
            allow_missing=allow_missing,
            answer_column=answer_column,
            seed=seed,
        )
    if json:
        print_as_json(scored)
    else:
        _print_scores(title, scored)
    return scored


def _print_scores(title: str, scored: ScoreReport) -> None:
    from .. import console

    console.print_table(
        f"{title}: {scored.questions:,} questions",
        ["figure", "value", "95 % interval"],
        [[name, *_cells(figure)] for name, figure in scored.metrics.items()],
    )
    if len(scored.kinds) > 1:
        console.print_table(
            "share right by kind of question",
            ["kind", "questions", "value", "95 % interval"],
            [[kind, f"{one.n:,}", *_cells(one)] for kind, one in scored.kinds.items()],
        )
    if scored.missing:
        console.err.print(
            f"{scored.missing:,} questions have no answer and count as wrong", style="yellow"
        )
    print_caveats(scored.caveats)


def _cells(figure: Interval) -> list[str]:
    value, low, high = (
        f"{one:.1f}" if figure.value > 10 else f"{one:.4f}"
        for one in (figure.value, figure.low, figure.high)
    )
    return [value, f"{low} to {high}"]
