"""The command line: one function for each verb, in the order one needs them. Each imports its room only when it is called.

common.py   the application and what the verbs share
care.py     doctor, demo
data.py     check, convert, show, features
making.py   train, runs, merge, evaluate, compare
talking.py  ask, chat, app

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted, 143 terminated. A verb returns what it would print with `--json`.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from ..errors import PhisenseError
from . import care, data, making, talking  # noqa: F401, each adds its verbs, in this order
from .common import app, run_verb

__all__ = ["app", "main", "run_verb"]


class _Interruption:
    """Remembers that Ctrl-C was pressed. A library that is being imported at that moment may turn the `KeyboardInterrupt` into an error of
    its own (a descriptor's `__set_name__` before Python 3.12, transformers' lazy modules), which is then not what the user should read.
    """

    def __init__(self) -> None:
        self.happened = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller chose to ignore it
            signal.signal(signal.SIGINT, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        signal.default_int_handler(number, frame)


def main() -> None:
    """The entry point: errors as one sentence, and the exit code that goes with them."""
    interruption = _Interruption()
    try:
        _run()
    except Exception:
        if interruption.happened:
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
        _fail(f"The system refused: {error.strerror}{f': {error.filename}' if error.filename else ''}.", 1)


def _fail(message: str, code: int) -> None:
    from .. import console

    if os.environ.get("PHISENSE_DEBUG"):
        console.err.print_exception()
    console.err.print(message, style="red", markup=False)
    sys.exit(code)
