"""Answers as they come, on the disk, so that an evaluation that was interrupted goes on where it was.

The first line says what is being asked, of whom, and how; the file is called after it, so that an evaluation called in another way has
another, and nothing is thrown away before the report is whole. Then a line for each batch, flushed to the disk before the next is asked.
A batch counts whole or not at all, so that after an interruption the very same batches are asked again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from ..artefact import lock, writing
from ..errors import UsageError
from .answerers import Said

_SHORT = ("batch", "device", "dtype", "limit", "max_new_tokens", "seed")  # values worth showing


class Journal:
    """Use it as a context; `done` are the batches that are there already: (condition, number) -> answers."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        """Of the evaluation that will write `out`. Raises UsageError if another process is at this very evaluation."""
        first = orjson.dumps(header, option=orjson.OPT_SORT_KEYS) + b"\n"
        self._all = f".{out.name}.*.asked.jsonl"
        self.path = path = out.with_name(f".{out.name}.{hashlib.sha256(first).hexdigest()[:12]}.asked.jsonl")
        self.done: dict[tuple[str, int], list[Said]] = {}
        good = self._read(first)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("r+b" if good else "wb")
        if not lock(self._file):
            raise UsageError(f"{out} is being evaluated right now, by another process", do="Wait for it, or choose another --out")
        with writing(path):
            if good:
                self._file.truncate(good)
                self._file.seek(good)
            else:
                self._put(first)

    def _read(self, first: bytes) -> int:
        """Reads what is whole, and says how many bytes that is; zero if it is another's journal."""
        if not self.path.is_file():
            return 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        if not lines or lines[0] != first:
            return 0
        good = len(first)
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break  # the last one, torn
            try:
                condition, number, said = orjson.loads(line)
            except ValueError:
                break
            self.done[condition, number] = [Said(*one) for one in said]
            good += len(line)
        return good

    def add(self, condition: str, number: int, said: list[Said]) -> None:
        with writing(self.path):
            self._put(orjson.dumps([condition, number, [[one.text, one.loss, one.tokens] for one in said]]) + b"\n")
        self.done[condition, number] = said

    def _put(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def others(self, header: dict[str, Any]) -> list[str]:
        """What is different about interrupted evaluations of the same report, a line for each."""
        found = []
        for path in sorted(self.path.parent.glob(self._all)):
            if path == self.path:
                continue
            with path.open("rb") as file:
                try:
                    theirs = orjson.loads(file.readline())
                except ValueError:
                    continue
            odd = sorted(key for key in theirs.keys() | header.keys() if theirs.get(key) != header.get(key))
            found.append(", ".join(f"{key} {theirs.get(key)}" if key in _SHORT else key for key in odd))
        return found

    def remove(self) -> None:
        """The report is whole: no interrupted evaluation of it is needed any more."""
        for path in self.path.parent.glob(self._all):
            path.unlink(missing_ok=True)
