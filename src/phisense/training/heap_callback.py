"""Has malloc keep what steps free where there is memory to spare, and return it elsewhere."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..cpu_limits import available_memory
from ..malloc import (
    keep_freed_memory,
    release_free_memory,
    resident_bytes,
    return_freed_memory,
)
from ..model.device import peak_memory
from ..pipeline.progress import Notice, OnEvent, ignore

#: What the process may hold after a step, as a multiple of what it held after the first step since
#: this callback's last release.
MAX_GROWTH = 1.25
#: Memory that must be available for freed blocks to be kept, as a share of the process's
#: peak so far: kept, they added 0.2 to it (docs/benchmarks.md). Below the
#: second share they are kept no longer.
ROOM, MIN_ROOM = 0.5, 0.25


class HeapCallback(TrainerCallback):
    """Keeps freed memory from the second step on, while the system has enough left; if it runs
    short, tells `on_event`. Releases the heap's free pages whenever the process has grown by
    `MAX_GROWTH`.

    The first step returns what it frees: what it needs is known then, and may be all there is.
    Steps differ in their sizes, so their blocks leave holes that later ones do not fit into: in 60
    steps of a deep and narrow model 2.1 GB became 4.1. A release after every step would cost half a
    second each time, since the next step needs most of the pages again (docs/log.md).
    """

    def __init__(self, on_event: OnEvent = ignore) -> None:
        self.on_event = on_event
        self.releases = 0
        self.keeps = False
        self._gave_up = False  # memory ran short, so that nothing is kept again
        self._first: int | None = None  # held after the first step since the last release

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what the process holds and what is left; release what is free if it has grown."""
        self._choose(peak_memory(), available_memory())
        held = resident_bytes()
        if self._first is None:
            self._first = held
        elif held > MAX_GROWTH * self._first:
            release_free_memory()
            self._first = None
            self.releases += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Return what was kept."""
        if self.keeps:
            self.keeps = False
            return_freed_memory()

    def _choose(self, peak: int | None, left: int | None) -> None:
        if not peak or left is None:
            return
        if self.keeps and left < MIN_ROOM * peak:
            self.keeps, self._gave_up, self._first = False, True, None
            return_freed_memory()
            self.on_event(
                Notice(
                    f"only {left / 1e9:.1f} GB of memory are left: what a step frees is returned to"
                    " the system from now on, and steps take longer"
                )
            )
        elif not (self.keeps or self._gave_up) and left > ROOM * peak and keep_freed_memory():
            self.keeps, self._first = True, None
