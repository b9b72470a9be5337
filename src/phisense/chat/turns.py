"""A lock that is given in the order of asking: with `threading.Lock` one who asks again at once can pass those who have waited."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """May be left by another thread than entered, as generators are."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def next(self, stop: threading.Event | None = None) -> Iterator[bool]:
        """Waits for its turn. False, at once and without the lock, where `stop` is set before that comes."""
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
