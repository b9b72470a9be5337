"""A task is one file and one line in `seams.TASK_MODULES`: a toy one is scored as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense import evaluate, seams
from phisense.errors import UsageError
from phisense.evaluation.tasks import TASKS

from ..tiny import make_root
from . import samples

TOY = '''
"""Answers count by their length: a question is answered correctly by as many letters as it says."""

import json
from pathlib import Path

from phisense.conversations import Question
from phisense.evaluation.task import Task, aggregate_scores, mean


def load(sources, pictures):
    rows = [json.loads(line) for one in sources for line in Path(one).read_text().splitlines()]
    return [Question(row["id"], None, "Say letters.", (row["count"],), "other") for row in rows]


TASK = Task(
    "letters",
    "As many letters",
    load,
    lambda question, answer: float(len(answer) == int(question.answers[0])),
    aggregate_scores,
    lambda sums: {"share": mean(sums[..., 0], sums[..., 1])},
    ignored_ids=lambda sources: {"5", "6"},
    left_out="questions ask for too many letters",
)
'''


LEFT_OUT = {"code": "left-out", "what": "questions ask for too many letters", "count": 2}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letters_task.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(seams.TASK_MODULES, "letters", "letters_task")


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [{"id": str(i), "count": str(i)} for i in range(1, 5)]
    return samples.lines(tmp_path / "letters.jsonl", rows)


@pytest.mark.usefixtures("toy")
def test_a_toy_task_scores_answers(verb: Any, questions: str, tmp_path: Path) -> None:
    rows = [{"question_id": str(i), "answer": "x" * max(2, i)} for i in range(1, 5)]
    answers = samples.lines(tmp_path / "answers.jsonl", rows)
    found = verb("score", "letters", "--questions", questions, "--answers", answers)
    assert found["headline"] == "share"
    assert found["figures"]["share"]["value"] == 0.75
    assert found["caveats"] == [LEFT_OUT]


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_toy_task_is_evaluated(verb: Any, questions: str, tmp_path: Path) -> None:
    make_root(tmp_path)
    for step in ("features", "train"):
        verb(step, tmp_path / "tiny.yaml")
    verb("merge", tmp_path / "runs" / "tiny")
    report = evaluate(
        tmp_path / "models" / "tiny",
        "letters",
        data=[questions],
        conditions=["real"],
        out=tmp_path / "report",
        device="cpu",
    )
    assert (report.task, report.headline, report.questions) == ("letters", "share", 4)
    assert [one.to_dict() for one in report.caveats] == [LEFT_OUT]
    assert json.loads((tmp_path / "report" / "scores.json").read_text()) == report.to_dict()


def test_control_it_is_unknown_without_its_line(verb: Any, questions: str) -> None:
    with pytest.raises(UsageError, match="unknown task; got letters; wanted vqav2"):
        verb("score", "letters", "--questions", questions, "--answers", questions)


def test_names_are_those_of_the_tasks() -> None:
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
