"""Where rows come from: a file or a folder, told apart by its name and first bytes. Everything is read as a stream.

*.json, *.jsonl, any other file    one JSON list, or a row a line     documents.py
*.csv, *.tsv                       a heading and rows                 tables.py
*.parquet, *.arrow, folders        columns                            tables.py
folder with metadata.jsonl, .csv   an image folder                    its metadata file
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConversationError
from . import tables
from .documents import Raw, document_rows, is_list

_COLUMNS = (".parquet", ".arrow")


@dataclass
class Source:
    """Opened by `open_source`. `kind` is what a user calls it, `pictures` the folder that an image folder's names are relative to."""

    path: Path
    kind: str
    files: list[Path]
    pictures: Path | None = None
    _file: BinaryIO | None = field(default=None, repr=False)
    _done: int = 0

    def rows(self) -> Iterator[Raw]:
        """Every row, with its number (from 1) and what was wrong with it as JSON or as a table row. Never raises for content."""
        self._done = 0
        if self.kind in ("JSON list", "JSON lines"):
            with self.files[0].open("rb") as self._file:
                yield from document_rows(self._file, listed=self.kind == "JSON list")
            self._file, self._done = None, self.files[0].stat().st_size
            return
        reader: Any = {"CSV": tables.csv_rows, "Parquet": tables.parquet_rows, "Arrow": tables.arrow_rows}[self.kind]
        for raw in reader(self.files[0] if self.kind == "CSV" else self.files):
            self._done = raw[0]
            yield raw

    def progress(self) -> tuple[int, int | None]:
        """How much was read and how much there is: bytes of a document, rows of a table (whose total is not known)."""
        if self._file is not None:
            return self._file.tell(), self.files[0].stat().st_size
        return self._done, self._done if self.kind in ("JSON list", "JSON lines") else None


def open_source(path: Path) -> Source:
    """Raises ConversationError for a path that is not there, and for a folder of no known kind."""
    if path.is_dir():
        kind, files = tables.folder_files(path)
        if kind != "metadata":
            return Source(path, kind.capitalize(), files)
        inner = open_source(files[0])
        return Source(path, inner.kind, inner.files, pictures=path)
    if "*" in path.name and (found := sorted(path.parent.glob(path.name))):
        if not all(one.suffix in _COLUMNS for one in found):
            raise ConversationError(f"{path} names several files", wanted="Parquet or Arrow files", do="Name one file")
        return Source(path, "Arrow" if found[0].suffix == ".arrow" else "Parquet", found)
    if not path.is_file():
        raise ConversationError(f"there is no data file {path}")
    if path.suffix in (".csv", ".tsv"):
        return Source(path, "CSV", [path])
    if path.suffix in _COLUMNS:
        return Source(path, "Arrow" if path.suffix == ".arrow" else "Parquet", [path])
    return Source(path, "JSON list" if is_list(path) else "JSON lines", [path])
