"""Journal of answers on disk, from which an interrupted evaluation resumes.

The first line records the questions, the model and the settings; the file name contains its digest,
so that an evaluation with other settings has another journal, and none is deleted before a report
is complete. Then follows one line per batch, fsynced before the next batch is run. A batch is
stored completely or not at all, so that a resumed evaluation runs the same batches.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from .. import safe_replace
from ..artifacts import translate_disk_errors, try_lock
from ..errors import UsageError
from .predictors import EvalResponse

_SHORT = ("batch", "device", "dtype", "limit", "max_new_tokens", "seed")  # values shown to users


class Journal:
    """A context manager; `completed` holds the batches that are on disk: (condition, number) ->
    responses.
    """

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        """Open the journal of the evaluation that will write `out`. Raises UsageError if another
        process holds its lock.
        """
        first = orjson.dumps(header, option=orjson.OPT_SORT_KEYS) + b"\n"
        self._all = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.asked\.jsonl")
        self.path = path = out.with_name(
            f".{out.name}.{hashlib.sha256(first).hexdigest()[:12]}.asked.jsonl"
        )
        self.completed: dict[tuple[str, int], list[EvalResponse]] = {}
        good = self._read(first)
        with translate_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._file: BinaryIO = path.open("r+b")
        if not try_lock(self._file):
            raise UsageError(
                f"{out} is being evaluated right now, by another process",
                do="Wait for it, or choose another --out",
            )
        with translate_disk_errors(path):
            self._file.truncate(good)
            self._file.seek(good)
            if not good:
                self._put(first)

    def _read(self, first: bytes) -> int:
        """Read the complete lines, and return their size in bytes; 0 if the header differs."""
        if not self.path.is_file():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        if not lines or lines[0] != first:
            return 0
        good = len(first)
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break  # the last line was written incompletely
            try:
                condition, number, said = orjson.loads(line)
                self.completed[condition, number] = [EvalResponse(*one) for one in said]
            except (ValueError, TypeError):
                break
            good += len(line)
        return good

    def add(self, condition: str, number: int, said: list[EvalResponse]) -> None:
        with translate_disk_errors(self.path):
            self._put(
                orjson.dumps(
                    [
                        condition,
                        number,
                        [[one.text, one.loss, one.tokens, one.chosen] for one in said],
                    ]
                )
                + b"\n"
            )
        self.completed[condition, number] = said

    def _put(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def others(self, header: dict[str, Any]) -> list[str]:
        """Differences to the headers of interrupted evaluations of the same report, one line for
        each.
        """
        found = []
        for path in self._others():
            with path.open("rb") as file:
                try:
                    theirs = orjson.loads(file.readline())
                except ValueError:
                    continue
            odd = sorted(
                key for key in theirs.keys() | header.keys() if theirs.get(key) != header.get(key)
            )
            found.append(
                ", ".join(f"{key} {theirs.get(key)}" if key in _SHORT else key for key in odd)
            )
        return found

    def remove(self) -> None:
        """Delete the journals: the report is complete, so no interrupted evaluation of it is
        needed.
        """
        safe_replace.remove_file(self.path)
        for path in self._others():
            safe_replace.remove_journal(path)

    def _others(self) -> list[Path]:
        """The journals of evaluations with other settings that would have written the same
        report.
        """
        return sorted(
            path
            for path in self.path.parent.iterdir()
            if self._all.fullmatch(path.name) and path != self.path
        )
