"""Answers as they come, on the disk, so that an evaluation that was interrupted goes on where it was.

The first line says what is being asked, of whom, and how; a journal of anything else is begun anew. Then a line for each batch, flushed to
the disk before the next is asked. A batch counts whole or not at all, so that after an interruption the very same batches are asked again.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from ..artefact import writing
from .answerers import Said


class Journal:
    """Use it as a context; `done` are the batches that are there already: (condition, number) -> answers."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[tuple[str, int], list[Said]] = {}
        first = orjson.dumps(header, option=orjson.OPT_SORT_KEYS) + b"\n"
        good = self._read(first)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("r+b" if good else "wb")
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

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
