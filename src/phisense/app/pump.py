"""An answer made in a thread of its own: whoever listens may leave at any moment, and the engine is free for the next."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

TICK = 0.25  # seconds; as often a listener hears something, be it nothing new, and so can be found to have gone


class Pump:
    """Iterating gives the pieces as they come, and "" when none came for a while. Ends them after `seconds`; `late` says that it did.

    `live` holds the pump while the engine works for it.
    """

    def __init__(self, pieces: Iterator[str], stop: threading.Event, seconds: float, live: set[Pump]) -> None:
        self.stop, self.late = stop, False
        self._pieces, self._live, self._deadline = pieces, live, time.monotonic() + seconds
        self._ready: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="an answer", daemon=True)
        live.add(self)
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                if time.monotonic() > self._deadline and not self.stop.is_set():
                    self.late = True
                    self.stop.set()
                try:
                    piece = self._ready.get(timeout=TICK)
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
        """Until the engine works for it no more; False if it still does after `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            for piece in self._pieces:
                self._ready.put(piece)
        except Exception as error:  # carried to the thread that listens
            last = error
        finally:
            self._live.discard(self)
            self._ready.put(last)
            del last  # its traceback holds this frame, and all that the engine had in hand
