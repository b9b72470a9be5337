"""What the command line shows: progress with an estimate, tables, and JSON where a program reads."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
#: Progress and errors; what a program reads goes to the standard output.
err = Console(stderr=True, highlight=False)


def quiet() -> None:
    """Libraries' own bars and notices off: what a user should know, phisense says. Must be called before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("bitsandbytes", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged pictures the check tells more


def print_json(value: Any) -> None:
    sys.stdout.buffer.write(
        orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    )
    sys.stdout.flush()


#: Set when Ctrl-C was pressed: a library may swallow the `KeyboardInterrupt`, above all one that is being imported.
interrupted = threading.Event()


class Bars:
    """Named progress bars, each appearing when its work begins. A swallowed Ctrl-C counts at the next sign of progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars with elapsed time and ETA on the standard error; nothing where that is no terminal but a last line for each."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=False, redirect_stdout=False, redirect_stderr=False) as progress:
        yield Bars(progress)


def warn(title: str, words: str, *, style: str = "red") -> None:
    """A box on the standard error, for what must not be missed though nothing failed."""
    err.print(Panel(Text(words), title=title, title_align="left", style=style, border_style=f"bold {style}"))


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    made = Table(title=title, title_justify="left", show_edge=False, header_style="bold")
    for i, column in enumerate(head):
        made.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    out.print(made)
