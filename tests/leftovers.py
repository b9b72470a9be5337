"""When a worker of pytest-xdist dies by a signal, what it had started is ended, so that the run
ends, too: a plugin for the controller.

A process that the worker forked holds the pipe by which the controller would learn of the death:
the run waits as long as that process lives. One that it started as a program of its own holds the
standard error: who reads the run's output waits as long.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_newgateway(gateway: Any) -> None:
    threading.Thread(target=_end_forks, args=(gateway._io.popen,), daemon=True).start()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    if error:
        names = {
            "PYTEST_XDIST_WORKER": node.workerinput["workerid"],
            "PYTEST_XDIST_TESTRUNUID": node.workerinput["testrunuid"],
        }
        marks = {f"{key}={value}".encode() for key, value in names.items()}
        _end(lambda process: marks <= set((process / "environ").read_bytes().split(b"\0")))


def _end_forks(worker: Any) -> None:
    """Waits for the worker's death; then nobody else but its forks has the end of the pipe that it
    wrote to.
    """
    if not Path("/proc/self/fd").is_dir():
        return
    pipe = os.readlink(f"/proc/self/fd/{worker.stdout.fileno()}")
    while worker.poll() is None:
        time.sleep(0.2)
    if worker.returncode < 0:
        _end(lambda process: any(os.readlink(one) == pipe for one in (process / "fd").iterdir()))


def _end(ours: Callable[[Path], bool]) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
            if int(process.name) != os.getpid() and ours(process):
                os.kill(int(process.name), signal.SIGKILL)
