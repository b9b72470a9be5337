"""What a run says of itself while it trains: a line for each logged step, each look at held-out questions, each step not taken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

from .. import artefact
from ..model.device import peak_memory
from ..processes import Processes
from .data import Collator
from .trainer import Progress


class Log:
    """`metrics.jsonl`, with the rate of all processes added; the first of them writes it."""

    def __init__(self, path: Path, stage: str, collate: Collator, report: Progress, processes: Processes) -> None:
        self.path, self.stage, self.collate, self.report, self.processes = path, stage, collate, report, processes
        self.started = time.monotonic()
        self.last_loss: float | None = None

    def keep(self, steps: int) -> None:
        """Drops the lines of this stage's later steps, which will be made again, and half a line."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        whole = [(line, orjson.loads(line)) for line in lines if line.endswith(b"\n")]
        kept = [line for line, row in whole if row["stage"] != self.stage or row["step"] <= steps]
        artefact.write_bytes(self.path, b"".join(kept))

    def __call__(self, logs: dict[str, Any]) -> None:
        seconds = time.monotonic() - self.started
        row = {
            "stage": self.stage,
            **logs,
            "seconds": round(seconds, 2),
            "memory": peak_memory(),
            "tokens_per_second": round(self.processes.total(self.collate.tokens) / max(seconds, 1e-6), 1),
        }
        if "loss" in logs:
            self.last_loss = float(logs["loss"])
        if not self.processes.first:
            return
        if {"loss", "skipped", "held_out"} & logs.keys():
            with artefact.writing(self.path), self.path.open("ab") as file:
                file.write(orjson.dumps(row) + b"\n")
        self.report(row)
