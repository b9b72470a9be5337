"""The verb that scores answers that exist already: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Json, app


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="vqav2, gqa, textvqa, textvqa-ocr, scienceqa, pope, mmbench, mme, captions, or own.")],
    questions: Annotated[list[str], typer.Option(help="The benchmark's own file, folder, or OWNER/NAME of the hub. Repeatable.")],
    answers: Annotated[Path, typer.Option(help='A row for each question: {"question_id": ..., "answer": ...}; JSON lines or a list.')],
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Questions without an answer count as wrong.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    json: Json = False,
) -> dict[str, Any]:
    """Score answers that any model has given, by the benchmark's official rules, with 95 % intervals.

    Reads the official files as they are published (docs/evaluation.md says where to get them, and how each is scored): of VQAv2 its
    questions and its annotations, of POPE any of its files, of captions COCO's annotations or rows of {"id", "references": [...]}.
    Answers may be written as LLaVA ("text"), GQA ("questionId", "prediction") and COCO ("image_id", "caption") write them, too.
    """
    from .. import console
    from ..evaluation.given import read_answers
    from ..evaluation.scores import score as run_score
    from ..evaluation.tasks import find_task

    which = find_task(task)
    with console.err.status(f"reading and scoring {task}"):
        asked = which.load(questions, None)
        said, missing = read_answers(answers, asked, allow_missing=allow_missing)
        scores = run_score(which, asked, {"real": said}, seed)
    result = {
        "task": task, "headline": scores["headline"], "questions": scores["questions"], "units": scores["units"], "missing": missing,
        "seed": seed, **scores["real"],
    }  # fmt: skip
    if json:
        console.print_json(result)
    else:
        rows = [[name, *_cells(figure)] for name, figure in result["figures"].items()]
        console.table(f"{which.title}: {len(asked):,} questions", ["figure", "value", "95 % interval"], rows)
        if len(result["kinds"]) > 1:
            by_kind = [[kind, f"{one['n']:,}", *_cells(one)] for kind, one in result["kinds"].items()]
            console.table("share right by kind of question", ["kind", "questions", "value", "95 % interval"], by_kind)
        if missing:
            console.err.print(f"{missing:,} questions have no answer and count as wrong", style="yellow")
    return result


def _cells(figure: dict[str, float]) -> list[str]:
    value, low, high = (f"{figure[key]:.1f}" if figure["value"] > 10 else f"{figure[key]:.4f}" for key in ("value", "low", "high"))
    return [value, f"{low} to {high}"]
