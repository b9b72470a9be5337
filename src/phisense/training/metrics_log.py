"""Metrics log of a run: one row per logged step, per held-out evaluation, and per skipped step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

from .. import artifacts
from ..distributed import ProcessGroup
from ..errors import ArtifactError
from ..model.device import peak_memory
from ..pipeline.progress import (
    Event,
    HeldOutAnswer,
    HeldOutEval,
    Notice,
    OnEvent,
    StepSkipped,
    TrainingStep,
)
from .data import Collator


class MetricsLog:
    """Writes `metrics.jsonl`, with the throughput of all processes; the main process writes, and
    reports each row as an event.
    """

    def __init__(
        self, path: Path, stage: str, collate: Collator, on_event: OnEvent, processes: ProcessGroup
    ) -> None:
        self.path = path
        self.stage = stage
        self.collate = collate
        self.on_event = on_event
        self.processes = processes
        self.started = time.monotonic()
        self.last_loss: float | None = None

    def truncate_after(self, steps: int) -> None:
        """Drop this stage's rows after `steps`, which will be trained again, and an incomplete last
        line.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        artifacts.write_bytes(
            self.path,
            b"".join(
                line for line in lines if line.endswith(b"\n") and self._is_before(line, steps)
            ),
        )

    def _is_before(self, line: bytes, steps: int) -> bool:
        try:
            row = orjson.loads(line)
            return bool(row["stage"] != self.stage or row["step"] <= steps)
        except (ValueError, LookupError, TypeError) as error:
            raise ArtifactError(
                f"{self.path} is damaged",
                got="a line that is no log line",
                do="Take that line out, or remove the file",
            ) from error

    def __call__(self, logs: dict[str, Any]) -> None:
        """Append a row to the metrics: Trainer's logs with time, memory and throughput."""
        seconds = time.monotonic() - self.started
        row = {
            "stage": self.stage,
            **logs,
            "seconds": round(seconds, 2),
            "memory": peak_memory(),
            "tokens_per_second": round(
                self.processes.all_reduce_sum(self.collate.tokens) / max(seconds, 1e-6), 1
            ),
        }
        if "loss" in logs:
            self.last_loss = float(logs["loss"])
        if not self.processes.is_main:
            return
        if {"loss", "skipped", "held_out"} & logs.keys():
            with artifacts.translate_disk_errors(self.path), self.path.open("ab") as file:
                file.write(orjson.dumps(row) + b"\n")
        self.on_event(event_of(row))


def event_of(row: dict[str, Any]) -> Event:
    """Convert a log row to the event that it reports."""
    stage, step = row["stage"], row["step"]
    if "skipped" in row:
        return StepSkipped(stage, step, row["why"])
    if "unasked" in row:
        return Notice(f"{stage}: {row['unasked']}.", warning=True)
    if "held_out" in row:
        answers = tuple(
            HeldOutAnswer(one["question"], one["said"], one["right"]) for one in row["answers"]
        )
        return HeldOutEval(
            stage, step, row["steps"], row["held_out"], row["blind"], row["questions"], answers
        )
    return TrainingStep(
        stage,
        step,
        row["steps"],
        row.get("loss"),
        row.get("learning_rate"),
        row["tokens_per_second"],
        row["memory"],
    )
