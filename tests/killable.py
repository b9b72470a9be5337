"""Processes that tests stop and kill. Each is forked from a server that has imported the libraries
once, so it begins at once.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")


def start_process(work: Callable[..., None], *words: object) -> BaseProcess:
    """Starts `work`, a function of a module. One thread each: sums in another order differ in their
    last bit.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        _SERVER.set_forkserver_preload(["phisense.training"])
        process = _SERVER.Process(target=_begin, args=(work, *words))
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return process


def _begin(work: Callable[..., None], *words: object) -> None:
    gc.freeze()  # the trainer collects garbage in each stage
    work(*words)


def run_command(errors: Path, *words: str) -> None:
    """The command line, its errors going to a file."""
    from phisense.cli import main

    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["phisense", *words]
    main()


def run_cli(
    *words: str, cwd: Path | None = None, env: dict[str, str] | None = None, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own, but for the imports: what it prints and its exit
    code.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        work = (out, errors, str(cwd or Path.cwd()), {**os.environ, **(env or {})})
        process = start_process(_run_there, *work, *words)
        process.join(seconds)
        assert process.exitcode is not None, f"phisense {words} takes longer than {seconds} s"
        return subprocess.CompletedProcess(
            words, process.exitcode, out.read_text(), errors.read_text()
        )


def _run_there(out: Path, errors: Path, cwd: str, env: dict[str, str], *words: str) -> None:
    from phisense import console

    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for one in (console.out, console.err):  # they were made where another width was set
        one.width = int(env.get("COLUMNS", 80))
    run_command(errors, *words)
