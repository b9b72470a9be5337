"""Returns what steps leave behind in malloc's heap once it has grown."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..malloc import release_free_memory, resident_bytes

#: What the process may hold after a step, as a multiple of what it held after the first step since
#: this callback's last release.
MAX_GROWTH = 1.25


class HeapCallback(TrainerCallback):
    """Releases the heap's free pages whenever the process has grown by `MAX_GROWTH`.

    Steps differ in their sizes, so their blocks leave holes that later ones do not fit into: in 60
    steps of a deep and narrow model 2.1 GB became 4.1. A release after every step would cost half a
    second each time, since the next step needs most of the pages again (docs/log.md).
    """

    def __init__(self) -> None:
        self.releases = 0
        self._first: int | None = None  # held after the first step since the last release

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what the process holds, and release what is free if it has grown."""
        held = resident_bytes()
        if self._first is None:
            self._first = held
        elif held > MAX_GROWTH * self._first:
            release_free_memory()
            self._first = None
            self.releases += 1
