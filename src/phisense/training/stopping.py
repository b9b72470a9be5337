"""SIGTERM, as a cluster or `kill` sends it: the step ends, a checkpoint is written, and the command exits with 143."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TerminatedError
from ..processes import Processes


class Termination(TrainerCallback):
    """Both the callback and the `with` block around training. Raises TerminatedError at the block's end if the signal came.

    Several processes may hear it on both sides of a step's end, so they agree on it there: one alone would wait for the others for ever.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.came = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():  # signals can be asked for nowhere else
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self.came and kind is None:
            raise TerminatedError("training was stopped by SIGTERM", got="a checkpoint", do="phisense train --resume goes on from it")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.came = self.processes.total(float(self.came)) > 0
        if self.came:
            control.should_save = control.should_training_stop = True
