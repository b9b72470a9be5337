"""Published figures name a task and a figure that exist, on its scale, and where they are from; the
document shows the same ones.
"""

from __future__ import annotations

from phisense.evaluation.published_results import PUBLISHED_RESULTS
from phisense.evaluation.tasks import TASKS

from ..conftest import ROOT


def test_anchors_are_of_our_tasks_and_in_the_document() -> None:
    document = (ROOT / "docs" / "evaluation.md").read_text().split("## Published anchors")[1]
    for model, of_tasks in PUBLISHED_RESULTS.items():
        row = next(line for line in document.splitlines() if line.startswith(f"| {model} |"))
        for task, anchor in of_tasks.items():
            assert task in TASKS
            assert anchor.source
            points = task == "mme"
            assert (anchor.figure == "perception") == points
            assert 0 < anchor.value <= (2000 if points else 1)
            shown = anchor.value if points else round(100 * anchor.value, 1)
            assert f"{shown:.1f}".removesuffix(".0") in row, (model, task)


def test_the_document_names_every_task() -> None:
    document = (ROOT / "docs" / "evaluation.md").read_text()
    assert [name for name in TASKS if f"| `{name}` |" not in document] == []
