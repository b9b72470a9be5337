"""Progress in a log: with a clock made up, over the events of every step that reports any."""

from __future__ import annotations

import ast
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import phisense
from phisense import console
from phisense.cli import rendering
from phisense.pipeline.progress import HeldOutEval, Notice, Progress, TrainingStep
from phisense.progress_lines import LEAST_SECONDS, MOST_SECONDS, ProgressLines

PACKAGE = Path(phisense.__file__).parent


def tasks() -> list[tuple[str, str]]:
    """The task and the unit of every `Progress(...)` in the package, read from its source; what is
    filled in is made up.
    """
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Progress"
                and len(node.args) >= 3
            ):
                unit = ast.literal_eval(node.args[3]) if len(node.args) > 3 else ""
                found.add((_text(node.args[0]), unit))
    return sorted(found)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(one.value) if isinstance(one, ast.Constant) else "q8_0" for one in node.values
        )
    return "task"


class Log:
    """The lines with the seconds at which they were written; time passes by `wait`, in which the
    lines' own clock looks every second.
    """

    def __init__(self) -> None:
        self.now, self.lines = 0.0, list[tuple[float, str]]()
        self.progress = ProgressLines(self.write, lambda: self.now)

    def write(self, line: str) -> None:
        self.lines.append((self.now, line))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now + 1 <= end:
            self.now += 1
            self.progress.tick()
        self.now = end

    def gaps(self) -> Iterator[float]:
        times = [0.0, *(at for at, _ in self.lines), self.now]
        for before, after in itertools.pairwise(times):
            yield after - before


def test_the_package_reports_progress() -> None:
    names = {task for task, _ in tasks()}
    assert {"encoding pictures", "merging and measuring", "where it looked", "writing"} <= names


@pytest.mark.parametrize(("task", "unit"), tasks(), ids=lambda one: str(one) or "-")
@pytest.mark.parametrize(
    ("each", "count"), [(0.01, 3000), (0.3, 1000), (4.0, 100), (47.0, 9), (400.0, 2)]
)
@pytest.mark.parametrize("known", [True, False])
def test_a_log_is_neither_silent_nor_flooded(
    task: str, unit: str, each: float, count: int, known: bool
) -> None:
    log = Log()
    total = count if known else None
    log.progress.update(task, 0, total, "", unit)
    for done in range(1, count + 1):
        log.wait(each)
        log.progress.update(task, done, total, "", unit)
    inner = log.lines[1:-1] if known else log.lines[1:]
    assert max(log.gaps()) <= MOST_SECONDS + 1
    assert all(
        after - before >= LEAST_SECONDS for (before, _), (after, _) in itertools.pairwise(inner)
    )
    assert len(log.lines) <= 3 + log.now / LEAST_SECONDS
    assert all(line.startswith(f"{task}: ") for _, line in log.lines)
    if known:
        assert "(100%)" in log.lines[-1][1]
        assert " in " in log.lines[-1][1]
        with_rate = [line for _, line in inner if not line.startswith(f"{task}: 0")]
        assert all(re.search(r"[\d.]+ ?[KMGT]?B?/(s|min), .* left", line) for line in with_rate)


def test_a_line_says_how_much_how_fast_and_how_long() -> None:
    log = Log()
    log.progress.update("encoding pictures", 200, 1200, "", "images")  # 200 of an earlier run
    for done in range(220, 1201, 20):
        log.wait(1)
        log.progress.update("encoding pictures", done, 1200, "", "images")
    assert [line for _, line in log.lines] == [
        "encoding pictures: 200/1,200 images (17%)",
        "encoding pictures: 500/1,200 images (42%), 20.0/s, 35 s left",
        "encoding pictures: 800/1,200 images (67%), 20.0/s, 20 s left",
        "encoding pictures: 1,100/1,200 images (92%), 20.0/s, 5.0 s left",
        "encoding pictures: 1,200/1,200 images (100%), in 50 s",
    ]


def test_work_that_reports_nothing_is_not_silent() -> None:
    """Before the first event, within one, and after a task's last."""
    log = Log()
    log.wait(61)
    assert [line for _, line in log.lines] == ["working, for 30 s", "working, for 60 s"]
    log.progress.update("loading the model", 0, 1)
    log.wait(31)
    assert log.lines[-1][1] == "loading the model: 0/1 (0%), for 30 s"
    log.progress.update("loading the model", 1, 1)
    log.wait(35)
    assert log.lines[-1][1].startswith("working after loading the model, for ")
    assert max(log.gaps()) <= MOST_SECONDS + 1


def test_a_stopped_task_has_a_last_line() -> None:
    log = Log()
    with log.progress as lines:
        lines.update("writing", 0, 10, "", "tensors")
        log.now += 4
        lines.update("writing", 4, 10, "", "tensors")
    assert [line for _, line in log.lines][-1] == "writing: 4/10 tensors (40%), 1.0/s, 6.0 s left"


def test_every_event_of_a_step_reaches_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the verbs' own way, on a standard error that is no terminal."""
    written = io.StringIO()
    monkeypatch.setattr(console, "err", console.SafeConsole(file=written, width=80))
    with rendering.events() as on_event:
        on_event(Progress("loading the model", 0, 1))
        on_event(Progress("loading the model", 1, 1))
        on_event(TrainingStep("align", 1, 10, 2.5, 1e-3, 800.0, 0))
        on_event(Notice("a notice"))
        on_event(HeldOutEval("align", 10, 10, 0.5, 0.25, 8))
        on_event(TrainingStep("align", 10, 10, 1.5, 0.0, 800.0, 0))
    lines = written.getvalue().splitlines()
    assert lines[0] == "loading the model: 0/1 (0%)"
    assert lines[1].startswith("loading the model: 1/1 (100%), in ")
    assert lines[2] == "align: 1/10 (10%), loss 2.500  lr 1.0e-03  800 tokens/s"
    assert lines[3] == "a notice"
    assert lines[4] == "align 10: 50% of 8 held-out questions right, 25% without the picture"
    assert lines[5].startswith("align: 10/10 (100%), in ")
    assert lines[5].endswith("loss 1.500  lr 0.0e+00  800 tokens/s")
