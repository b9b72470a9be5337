"""A FIFO lock: with `threading.Lock`, a thread that reacquires it immediately can overtake waiting
threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class FairLock:
    """FIFO lock. May be released by another thread than acquired it, as generators require."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, stop: threading.Event | None = None) -> Iterator[bool]:
        """Wait for the lock; yields True with it, or False without it if `stop` is set first."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                while self._waiting[0] is not me and not (stop is not None and stop.is_set()):
                    self._changed.wait(None if stop is None else 0.05)
            except BaseException:  # interrupted while waiting
                self._waiting.remove(me)
                raise
            mine = self._waiting[0] is me
        try:
            yield mine
        finally:
            with self._changed:
                self._waiting.remove(me)
                self._changed.notify_all()
