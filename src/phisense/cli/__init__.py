"""The command line: one function for each verb, in the order one needs them. Each imports its room
only when it is called.

common.py        the application and what the verbs share
doctor.py        doctor, demo
data.py          check, convert, show, features
train.py         train, runs, merge, compare, tune
import_model.py  import
evaluate.py      evaluate
report.py        report
chat.py          ask, chat, app
serve.py         serve
deploy.py        deploy
export.py        export
score.py         score

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted, 143 terminated. A verb returns what
it would print with `--json`.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from .. import console
from ..errors import PhisenseError
from .common import app, run_verb

# isort: off
# Each adds its verbs, in this order.
from . import doctor, data, train, import_model, evaluate, score, report  # noqa: F401
from . import chat, export, serve, deploy  # noqa: F401

__all__ = ["app", "main", "run_verb"]


def _remember_interrupts() -> None:
    """Remembers that Ctrl-C was pressed. A library that is being imported at that moment may
    swallow the `KeyboardInterrupt`, or turn it into an error of its own (a descriptor's
    `__set_name__` before Python 3.12, transformers' lazy modules).
    """

    def remember(number: int, frame: FrameType | None) -> None:
        console.interrupted.set()
        signal.default_int_handler(number, frame)

    console.interrupted.clear()
    # not where the caller chose to ignore it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, remember)


def main() -> None:
    """The entry point: errors as one sentence, and the exit code that goes with them."""
    _remember_interrupts()
    console.guard_streams()
    try:
        _run()
    except Exception:
        if console.interrupted.is_set():
            sys.exit(130)
        raise


def _run() -> None:
    try:
        app()  # leaves by SystemExit: 0, 2 for a wrong command line, 130 for Ctrl-C
    except PhisenseError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(
            "The system refused:"
            f" {error.strerror}{f': {error.filename}' if error.filename else ''}.",
            1,
        )


def _fail(message: str, code: int) -> None:
    if os.environ.get("PHISENSE_DEBUG"):
        console.err.print_exception()
    console.err.print(console.escape_controls(message, lines=False), style="red")
    sys.exit(code)
