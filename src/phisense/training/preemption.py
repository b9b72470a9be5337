"""Preemption by SIGTERM, as a cluster or `kill` sends it: finish the step, write a checkpoint, and
exit with code 143.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distributed import ProcessGroup
from ..errors import TerminatedError


class PreemptionCallback(TrainerCallback):
    """Trainer callback and context manager around training. On exit raises TerminatedError if
    SIGTERM was received.

    Processes may receive the signal on different sides of a step's end, so they agree on it there:
    a process that stopped alone would leave the others waiting forever.
    """

    def __init__(self, processes: ProcessGroup) -> None:
        self.processes = processes
        self.requested = False
        self._previous_handler: Any = None

    def __enter__(self) -> PreemptionCallback:
        # Python installs signal handlers in the main thread only
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
        if self.requested and kind is None:
            raise TerminatedError(
                "training was stopped by SIGTERM",
                got="a checkpoint",
                do="phisense train --resume goes on from it",
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop if any process received SIGTERM."""
        self.requested = self.processes.all_reduce_sum(float(self.requested)) > 0
        if self.requested:
            control.should_save = control.should_training_stop = True
