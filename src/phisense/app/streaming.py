"""Background generation: the engine runs in its own thread and is released when the client
disconnects.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

# Seconds between two yields at most: Gradio notices a disconnected client only at a yield.
POLL_SECONDS = 0.25


class BackgroundStream:
    """Iterator over the chunks of an answer that a thread generates; yields "" if no chunk arrives
    within `POLL_SECONDS`.

    Sets `stop` after `seconds`, and `timed_out` with it. The stream is in `active` while the engine
    works for it.
    """

    def __init__(
        self,
        chunks: Iterator[str],
        stop: threading.Event,
        seconds: float,
        active: set[BackgroundStream],
    ) -> None:
        self.stop, self.timed_out = stop, False
        self._chunks, self._active, self._deadline = chunks, active, time.monotonic() + seconds
        self._ready: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="an answer", daemon=True)
        active.add(self)
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                if time.monotonic() > self._deadline and not self.stop.is_set():
                    self.timed_out = True
                    self.stop.set()
                try:
                    piece = self._ready.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    yield ""
                    continue
                if piece is None:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.stop.set()

    def wait(self, seconds: float) -> bool:
        """Join the generating thread for at most `seconds`; False if it still runs."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            for piece in self._chunks:
                self._ready.put(piece)
        except Exception as error:  # noqa: BLE001, carried to the thread that listens
            last = error
        finally:
            self._active.discard(self)
            self._ready.put(last)
            del last  # the traceback references this frame, and with it everything the engine held
