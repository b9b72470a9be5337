"""A lock that serves in the order of asking: with `threading.Lock` one who asks again at once can pass those who have waited."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """`with turns:` waits for its turn. May be left by another thread than entered, as generators are."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._line: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._guard:
            self._line.append(mine)
            if self._line[0] is mine:
                mine.set()
        try:
            mine.wait()
        except BaseException:  # interrupted while waiting
            self._leave(mine)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave(self._line[0])

    def _leave(self, mine: threading.Event) -> None:
        with self._guard:
            self._line.remove(mine)
            if self._line:
                self._line[0].set()
