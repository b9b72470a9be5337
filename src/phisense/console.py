"""Terminal output: progress bars with ETA, tables, and JSON for programs.

Text from data, models and file names may contain escape sequences that a terminal executes: colors,
the title, the clipboard, overwritten lines. `SafeConsole` passes everything it prints through
`escape_controls`, so that they are visible and have no effect. Text in square brackets is not
parsed as markup; styles are passed as arguments.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .progress_lines import ProgressLines, count_of

#: C0 and C1 control characters, bidirectional controls, other line separators, invisible marks and
#: tags, and lone surrogates, which cannot be encoded at all. Joiners, which scripts and emoji need,
#: have no effect on a terminal.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})


def escape_controls(text: str, *, lines: bool = True) -> str:
    r"""`text` with control characters escaped as in a Python literal: `\x1b[2J`. With
    `lines=False`, line breaks and tabs are escaped, too.
    """
    shown = _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)
    return shown if lines else shown.translate(_LINE_BREAKS)


class SafeConsole(Console):
    """A rich console that applies `escape_controls` to all text: to plain strings before layout,
    and to every segment before it is written.
    """

    def render_str(self, text: str, **how: Any) -> Text:
        """Render text with control characters escaped."""
        return super().render_str(escape_controls(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render with control characters escaped in every segment."""
        for segment in super().render(renderable, options):
            yield (
                segment if segment.control else segment._replace(text=escape_controls(segment.text))
            )

    def out(self, *objects: Any, **how: Any) -> None:
        """Print objects unstyled, with control characters escaped."""
        super().out(*(escape_controls(str(one)) for one in objects), **how)


out = SafeConsole(highlight=False, markup=False, emoji=False)
#: Progress and errors; machine-readable output goes to the standard output.
err = SafeConsole(stderr=True, highlight=False, markup=False, emoji=False)


def silence_libraries() -> None:
    """Turn off the progress bars and notices of libraries; phisense reports what matters itself.
    Must be called before they are imported.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("bitsandbytes", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="PIL")  # `check` reports damaged images in more detail


def guard_streams() -> None:
    """Escape control characters in what Python itself writes in a command's process: library log
    lines, tracebacks, and typer's messages about wrong arguments, which may be file names.
    Characters that a stream's encoding lacks are escaped, too.
    """
    import typer.rich_utils

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    typer.rich_utils.Console = SafeConsole  # type: ignore[attr-defined]
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_VisibleFormatter())
    sys.excepthook = lambda kind, error, trace: print_traceback(error)


class _LogHandler(logging.Handler):
    """Writes log records to the standard error: INFO dimmed, warnings yellow, one line each; errors
    with their tracebacks.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            sys.stderr.write(escape_controls(self.format(record)) + "\n")
            return
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        err.print(escape_controls(record.getMessage(), lines=False), style=style, soft_wrap=True)


def show_log() -> None:
    """Show the library's log records from INFO on. Calling it again changes nothing."""
    logger = logging.getLogger(__package__)
    if not any(isinstance(handler, _LogHandler) for handler in logger.handlers):
        logger.addHandler(_LogHandler())
    logger.setLevel(logging.INFO)


def print_traceback(error: BaseException) -> None:
    """Write a traceback to the standard error, with control characters escaped."""
    sys.stderr.write(escape_controls("".join(traceback.format_exception(error))))


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


def print_json(value: Any) -> None:
    """Print indented JSON to the standard output. Control characters are written as JSON escapes,
    so a program reads the same value.
    """
    sys.stdout.buffer.write(
        _CONTROL.sub(_escaped, json_bytes(value, indent=True).decode()).encode()
    )
    sys.stdout.flush()


def json_bytes(value: Any, *, indent: bool = False) -> bytes:
    r"""One line of JSON, or an indented document. Lone surrogates, which UTF-8 cannot encode, are
    escaped: `\ud800`.
    """
    options = (
        orjson.OPT_APPEND_NEWLINE
        | orjson.OPT_SERIALIZE_NUMPY
        | orjson.OPT_NON_STR_KEYS
        | (orjson.OPT_INDENT_2 if indent else 0)
    )
    try:
        return orjson.dumps(value, option=options)
    except TypeError as error:
        if "surrogates" not in str(error):
            raise
        return orjson.dumps(_escape_surrogates(value), option=options)


def _escape_surrogates(value: Any) -> Any:
    """`value` with lone surrogates escaped as in a Python literal, also in keys."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: ascii(found.group())[1:-1], value)
    if isinstance(value, dict):
        return {_escape_surrogates(key): _escape_surrogates(one) for key, one in value.items()}
    return [_escape_surrogates(one) for one in value] if isinstance(value, (list, tuple)) else value


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found.group())[1:-1]


#: Set when Ctrl-C was pressed: a library may swallow the `KeyboardInterrupt`, especially while it
#: is being imported.
interrupted = threading.Event()


class ProgressBars:
    """Named progress bars, each shown when its work begins. A swallowed Ctrl-C takes effect at the
    next update.
    """

    def __init__(self, progress: Progress | ProgressLines) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(
        self, what: str, completed: int, total: int | None, note: str = "", unit: str = ""
    ) -> None:
        """Show that `completed` of `total` are done; sizes if the `unit` is "bytes".

        Raises KeyboardInterrupt if an interrupt is pending.
        """
        if interrupted.is_set():
            raise KeyboardInterrupt
        if isinstance(self._progress, ProgressLines):
            self._progress.update(what, completed, total, note, unit)
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="", count="")
        self._progress.update(
            self._tasks[what],
            completed=completed,
            total=total,
            note=note,
            count=count_of(completed, total, unit),
        )


@contextmanager
def progress_bars() -> Iterator[ProgressBars]:
    """Context manager: progress bars with elapsed time and ETA on the standard error; lines at
    intervals if that is not a terminal (`progress_lines.py`).
    """
    if not err.is_terminal:
        with ProgressLines(lambda line: err.print(line, soft_wrap=True)) as lines:
            yield ProgressBars(lines)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(
        *columns, console=err, transient=False, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        yield ProgressBars(progress)


def print_warning(title: str, words: str, *, style: str = "red") -> None:
    """Print a box to the standard error, for what must not be missed although nothing failed."""
    err.print(
        Panel(
            Text(escape_controls(words)),
            title=title,
            title_align="left",
            style=style,
            border_style=f"bold {style}",
        )
    )


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table to the standard output: the first column left-aligned, the others right-
    aligned.
    """
    made = Table(title=title, title_justify="left", show_edge=False, header_style="bold")
    for i, column in enumerate(head):
        made.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    out.print(made)
