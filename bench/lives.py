"""Processes that benchmarks kill: forks of one that imported everything and has computed nothing,
so they begin in milliseconds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

LIVES = multiprocessing.get_context("fork")


def begin(work: Callable[..., None], *words: object) -> BaseProcess:
    process = LIVES.Process(target=work, args=words)
    process.start()
    return process


def in_a_life(work: Callable[..., None], *words: object) -> None:
    """To its end, which must be a good one. This process computes nothing itself: threads do not
    survive a fork.
    """
    process = begin(work, *words)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{work.__name__}{words} ended with {process.exitcode}")
