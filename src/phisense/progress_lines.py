"""Progress as lines of a log, where the standard error is no terminal: a file, a pipe, a batch
system.

    encoding pictures: 512/1,200 images (43 %), 31.2/s, 22 s left

A line is written when a task begins and when it has ended, and in between at most every
`LEAST_SECONDS`, if a twentieth more is done or `MOST_SECONDS` have passed. A clock of its own
writes one where no event has come for so long, so that no step, however it reports, is silent for
longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .units import format_bytes, format_seconds

LEAST_SECONDS = 15.0  # between two lines of a task
MOST_SECONDS = 30.0  # without any line
SHARE = 0.05  # of a task
_TICK = 1.0  # seconds between two looks at the clock


@dataclass(slots=True)
class _Task:
    began: float
    first: int  # done when it began: what an interrupted step had finished
    done: int
    total: int | None
    unit: str
    note: str
    written_at: float
    written: int = -1  # done in the last line
    ended: bool = False


class ProgressLines:
    """Writes the progress of named tasks with `write`; `clock` gives seconds. A context manager:
    inside, its thread looks at the clock, and at the end each unfinished task gets a last line.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._tasks: dict[str, _Task] = {}
        self._current: str | None = None
        self._last = self._began = clock()
        self._lock = threading.Lock()
        self._over = threading.Event()

    def update(
        self, what: str, done: int, total: int | None, note: str = "", unit: str = ""
    ) -> None:
        """`done` of `total` of the task `what` are finished."""
        with self._lock:
            now = self._clock()
            task = self._tasks.get(what)
            began = task is None or done < task.done  # a task that begins again
            if task is None or began:
                task = _Task(now, done, done, total, unit, note, now)
                self._tasks[what] = task
            self._current = what
            task.done, task.total, task.unit, task.note = done, total, unit, note
            ends = total is not None and done >= total and not task.ended
            if ends or (not task.ended and (began or self._due(task, now))):
                task.ended = ends
                self._line(what, task, now)

    def tick(self) -> None:
        """Write a line if there was none for too long."""
        with self._lock:
            now = self._clock()
            if now - self._last < MOST_SECONDS:
                return
            task = self._tasks.get(self._current or "")
            if task is None or task.ended:
                behind = f" after {self._current}" if self._current else ""
                self._put(f"working{behind}, for {format_seconds(now - self._began)}", now)
            else:
                assert self._current is not None
                self._line(self._current, task, now)

    def __enter__(self) -> ProgressLines:
        threading.Thread(target=self._watch, daemon=True, name="progress lines").start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        with self._lock:
            now = self._clock()
            for what, task in self._tasks.items():
                if task.done != task.written:
                    self._line(what, task, now)

    def _watch(self) -> None:
        while not self._over.wait(_TICK):
            self.tick()

    def _due(self, task: _Task, now: float) -> bool:
        passed = now - task.written_at
        more = task.total is not None and task.done - task.written >= SHARE * task.total
        return passed >= MOST_SECONDS or (passed >= LEAST_SECONDS and more)

    def _line(self, what: str, task: _Task, now: float) -> None:
        task.written, task.written_at = task.done, now
        parts = [count_of(task.done, task.total, task.unit)]
        if task.total:
            parts[0] += f" ({task.done / task.total:.0%})"
        passed, made = now - task.began, task.done - task.first
        if task.ended:
            parts.append(f"in {format_seconds(passed)}")
        elif passed > 0 and made > 0:
            rate = made / passed
            parts.append(rate_of(rate, task.unit))
            if task.total is not None:
                parts.append(f"{format_seconds((task.total - task.done) / rate)} left")
        elif passed > 0:
            parts.append(f"for {format_seconds(passed)}")
        parts += [task.note] if task.note else []
        self._put(f"{what}: {', '.join(parts)}", now)

    def _put(self, line: str, now: float) -> None:
        self._last = now
        self._write(line)


def count_of(completed: int, total: int | None, unit: str) -> str:
    """`512/1,200 images`, `0.4 MB/1.2 MB`; a question mark for a total that is not known."""
    if unit == "bytes":
        return f"{format_bytes(completed)}/{'?' if total is None else format_bytes(total)}"
    return f"{completed:,}/{'?' if total is None else f'{total:,}'} {unit}".rstrip()


def rate_of(rate: float, unit: str) -> str:
    """`31.2/s`, or for slow work `1.5/min`; sizes if the `unit` is "bytes"."""
    if unit == "bytes":
        return f"{format_bytes(rate)}/s"
    return f"{rate:,.1f}/s" if rate >= 0.5 else f"{60 * rate:.1f}/min"
