"""The command line: one function for each verb, in the order one needs them. Each imports its room only when it is called.

common.py   the application and what the verbs share
care.py     doctor, demo
data.py     check, show, features
making.py   train, merge, evaluate
talking.py  ask, chat, app

Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted. A verb returns what it would print with `--json`.
"""

from __future__ import annotations

import os
import sys

from ..errors import PhisenseError
from . import care, data, making, talking  # noqa: F401, each adds its verbs, in this order
from .common import app, run_verb

__all__ = ["app", "main", "run_verb"]


def main() -> None:
    """The entry point: errors as one sentence, and the exit code that goes with them."""
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
