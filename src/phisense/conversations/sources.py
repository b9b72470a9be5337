"""Open a data source: a file or a folder, whose type is detected by its name and first bytes. All
sources are streamed.

*.csv, *.tsv                       a header and rows                  csv_reader.py
Parquet, Arrow, folders            columns                            columnar.py
folder with metadata.jsonl, .csv   an image folder                    its metadata file
any other file                     JSON: a list, one row per line     json_reader.py
                                   or an object                       json_layout.py

The first bytes of a file decide, not its extension: Parquet is recognized under any name, and an
archive is reported, not read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .. import file_types, safe_parsing
from ..errors import ConversationError
from ..pipeline.progress import Progress
from . import columnar, csv_reader, encodings, json_layout
from .json_reader import Fault, NumberedRow, concatenated_rows, json_rows, too_deep_row

_logger = logging.getLogger(__name__)

_TABLES = (".csv", ".tsv", ".tab")
_COLUMNS = {"a Parquet file": "Parquet", "an Arrow file": "Arrow", "an Arrow stream": "Arrow"}
_ENDINGS = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}
_JSON = {"list": "JSON list", "lines": "JSON lines", "object": "JSON object"}


@dataclass
class DataSource:
    """Opened by `open_data_source`. `kind` is its name for users, `pictures` the folder that an
    image folder's names are relative to.

    `notes` are about the file, not a row: the encoding, and the keys that contain the rows.
    """

    path: Path
    kind: str
    files: list[Path]
    reader: Callable[[DataSource], Iterator[NumberedRow]] = field(repr=False)
    pictures: Path | None = None
    notes: list[Fault] = field(default_factory=list)
    _file: BinaryIO | None = field(default=None, repr=False)
    _done: int = 0
    _streamed: bool = False  # a document was read to its end, and `_done` is its size

    def rows(self) -> Iterator[NumberedRow]:
        """Every row, with its number (from 1) and its fault as JSON or as a table row.

        Never raises for the content of a row; raises ConversationError if there are no rows.
        """
        self._done, self._streamed = 0, False
        for raw in self.reader(self):
            self._done = raw[0]
            yield raw
        if not self._done:
            raise ConversationError(
                f"{self.path} holds no row",
                got=_of_nothing(self.files[0]),
                do="Name a file with at least one row",
            )
        if self._file is not None:
            self._file, self._done = None, self.files[0].stat().st_size
            self._streamed = True

    def progress(self, task: str) -> Progress:
        """Progress of `task`: bytes of a document, or rows of a table, whose total is unknown."""
        if self._file is not None:
            return Progress(task, self._file.tell(), self.files[0].stat().st_size, "bytes")
        if self._streamed:
            return Progress(task, self._done, self._done, "bytes")
        return Progress(task, self._done, None, "rows")

    def document(self, encoding: encodings.Encoding, form: str) -> Iterator[NumberedRow]:
        """The rows of a JSON file, as a stream."""
        with self.files[0].open("rb") as self._file:
            text = encodings.transcoded(self._file, encoding)
            yield from (
                concatenated_rows(text)
                if form == "object"
                else json_rows(text, listed=form == "list")
            )


def _of_nothing(file: Path) -> str:
    return "an empty file" if not file.stat().st_size else "none in the whole file"


def open_data_source(path: Path, *, announce: bool = True) -> DataSource:
    """Open a data source. Raises ConversationError if the path does not exist, or is a file or
    folder of an unsupported kind.

    The notes about the file are reported on the standard error, unless `announce` is False.
    """
    source = _opened(path)
    for _, what in source.notes if announce else ():
        _print_once(f"{path} {what}.")
    return source


_reported: set[str] = set()


def _print_once(sentence: str) -> None:
    """Print once per process, however often a file is opened."""
    if sentence not in _reported:
        _reported.add(sentence)
        _logger.warning("%s", sentence)


def _opened(path: Path) -> DataSource:
    if path.is_dir():
        return _folder(path)
    if "*" in path.name and (found := sorted(path.parent.glob(path.name))):
        kinds = {_kind(one) for one in found}
        if len(kinds) > 1 or not kinds <= {"Parquet", "Arrow"}:
            raise ConversationError(
                f"{path} names several files", wanted="Parquet or Arrow files", do="Name one file"
            )
        return _columns(path, kinds.pop(), found)
    if not path.is_file():
        raise ConversationError(f"there is no data file {path}")
    kind = _kind(path)
    if kind == "text":
        return _table(path) if path.suffix.lower() in _TABLES else _json(path)
    return _columns(path, kind, [path])


def _kind(path: Path) -> str:
    """`Parquet`, `Arrow`, or `text`. Raises ConversationError, with the remedy, for any other kind
    of file.
    """
    found = file_types.sniff(encodings.read_first_bytes(path, file_types.HEAD_BYTES))
    if found is None:
        return _ENDINGS.get(path.suffix.lower(), "text")
    if found.name not in _COLUMNS:
        raise ConversationError(
            f"{path} is no data set",
            got=found.name,
            wanted="JSON, CSV, Parquet or Arrow",
            do=found.do,
        )
    return _COLUMNS[found.name]


def _columns(path: Path, kind: str, files: list[Path]) -> DataSource:
    read = columnar.parquet_rows if kind == "Parquet" else columnar.arrow_rows
    return DataSource(path, kind, files, lambda source: read(files))


def _table(path: Path) -> DataSource:
    encoding = encodings.detect_csv_encoding(path)
    dialect = csv_reader.detect_dialect(path, encoding)
    return DataSource(
        path,
        "CSV",
        [path],
        lambda source: csv_reader.csv_rows(path, encoding, dialect),
        notes=_note(encoding),
    )


def _json(path: Path) -> DataSource:
    encoding = encodings.detect_json_encoding(path)
    form = json_layout.detect_layout(path, encoding)
    if form == "object" and (value := json_layout.read_single_object(path, encoding)) is not None:
        rows, note = json_layout.extract_rows(value, path)
        notes = [*_note(encoding), *([note] if note is not None else [])]
        return DataSource(
            path, "JSON object", [path], lambda source: _in_memory_rows(rows), notes=notes
        )
    return DataSource(
        path,
        _JSON[form],
        [path],
        lambda source: source.document(encoding, form),
        notes=_note(encoding),
    )


def _in_memory_rows(rows: list[Any]) -> Iterator[NumberedRow]:
    for number, row in enumerate(rows, 1):
        yield too_deep_row(number) if safe_parsing.is_too_deep(row) else (number, row, None)


def _note(encoding: encodings.Encoding) -> list[Fault]:
    return [] if encoding.note is None else [("other-encoding", encoding.note)]


def _folder(path: Path) -> DataSource:
    kind, files = columnar.folder_files(path)
    if kind != "metadata":
        return _columns(path, kind, files)
    inner = _opened(files[0])
    return DataSource(path, inner.kind, inner.files, inner.reader, path, inner.notes)
