"""What the command line offers: version, completion, choices, one group of engine options; and
that bars count what they say.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
import typer
from typer.testing import CliRunner

import phisense
from phisense.chat.engines.base import ENGINES
from phisense.cli import app
from phisense.cli.common import CONDITION_NAMES, ENGINE_NAMES, TASK_NAMES
from phisense.conversations import check
from phisense.evaluation.results import CONDITIONS
from phisense.evaluation.tasks import TASKS
from phisense.pipeline.progress import Event, Progress
from phisense.progress_lines import count_of

ENGINE_OPTIONS = {"engine", "device", "picture_tokens", "quantize", "server", "served"}


def command(verb: str) -> click.Command:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    return group.commands[verb]  # type: ignore[union-attr]


def option(verb: str, name: str) -> Any:
    return next(one for one in command(verb).params if one.name == name)


def test_the_version() -> None:
    ran = CliRunner().invoke(app, ["--version"])
    assert ran.exit_code == 0
    assert ran.output == f"phisense {phisense.__version__}\n"
    assert phisense.__version__ == version("phisense")


def test_shells_complete_it() -> None:
    names = {one.name for one in typer.main.get_command(app).params}
    assert {"install_completion", "show_completion"} <= names


@pytest.mark.parametrize("verb", ["ask", "chat", "app", "evaluate"])
def test_one_group_of_engine_options(verb: str) -> None:
    """All have them, with the same words and defaults."""
    group = {
        one.name: (one.help, one.default, one.opts, one.metavar)
        for one in command(verb).params
        if getattr(one, "rich_help_panel", None) == "Engine"
    }
    assert group.keys() == ENGINE_OPTIONS
    assert group == {
        name: (one.help, one.default, one.opts, one.metavar)
        for name in ENGINE_OPTIONS
        for one in [option("evaluate", name)]
    }


@pytest.mark.parametrize(
    ("verb", "name", "names"),
    [
        ("evaluate", "engine", ENGINE_NAMES),
        ("ask", "engine", ENGINE_NAMES),
        ("evaluate", "condition", CONDITION_NAMES),
        ("evaluate", "task", TASK_NAMES),
    ],
)
def test_help_lists_the_choices(verb: str, name: str, names: tuple[str, ...]) -> None:
    assert option(verb, name).metavar == f"[{'|'.join(names)}]"


def test_the_choices_are_those_that_there_are() -> None:
    assert set(TASK_NAMES) == TASKS.keys()
    assert (*CONDITIONS, "all") == CONDITION_NAMES
    assert set(ENGINE_NAMES) == {"auto", *ENGINES}


@pytest.mark.parametrize("verb", ["train", "merge", "features", "ask", "evaluate"])
def test_devices_are_named(verb: str) -> None:
    assert option(verb, "device").metavar == "[auto|cpu|cuda|cuda:N]"


def test_an_image_is_a_file_everywhere() -> None:
    group: Any = typer.main.get_command(app)
    seen = 0
    for verb in group.commands.values():
        for one in verb.params:
            if one.name == "image":
                seen += 1
                assert "Path" in str(get_type_hints(verb.callback)["image"])
    assert seen >= 2


def test_progress_counts_what_it_says(tmp_path: Path) -> None:
    """A file's progress is in bytes, and says so; that of its images in images."""
    file = tmp_path / "a.json"
    file.write_text('[{"id": "1", "conversations": []}]')
    events: list[Event] = []
    check(file, on_event=events.append)
    found = [event for event in events if isinstance(event, Progress)]
    assert found[-1] == Progress("reading rows", file.stat().st_size, file.stat().st_size, "bytes")


@pytest.mark.parametrize(
    ("completed", "total", "unit", "words"),
    [
        (708_080, 1_416_160, "bytes", "708.1 KB/1.4 MB"),
        (12, 1_200, "images", "12/1,200 images"),
        (12, None, "rows", "12/? rows"),
        (1, 2, "", "1/2"),
    ],
)
def test_a_bar_has_its_unit(completed: int, total: int | None, unit: str, words: str) -> None:
    assert count_of(completed, total, unit) == words
