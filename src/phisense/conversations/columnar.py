"""Stream raw rows from columnar data: Parquet, Arrow, `datasets.save_to_disk`, and folders of
these.

Parquet and Arrow are read in batches through pyarrow (`pip install 'phisense[data]'`); `datasets`
is not required.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .. import file_types, safe_parsing
from ..errors import ConversationError, UsageError
from .encodings import read_first_bytes
from .json_reader import MAX_ROW_BYTES, NumberedRow

BATCH_ROWS = 64
#: What pyarrow raises in addition to its own exceptions, for example for a date outside Python's
#: range.
_DAMAGE_ERRORS = (
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    RuntimeError,
    MemoryError,
)
_DATA = (".json", ".jsonl", ".csv", ".tsv")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def parquet_rows(files: list[Path]) -> Iterator[NumberedRow]:
    """The rows of Parquet files, in order."""
    pa = _pyarrow()
    from pyarrow import parquet

    number = 0
    for file in files:
        try:
            with parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=BATCH_ROWS):
                    batch.validate(full=True)
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row, None
        except (pa.ArrowException, *_DAMAGE_ERRORS) as error:
            number += 1
            yield _unreadable(number, file, error)


def arrow_rows(files: list[Path]) -> Iterator[NumberedRow]:
    """The rows of Arrow IPC streams, as `save_to_disk` writes them, and of Arrow files (Feather),
    memory-mapped.
    """
    pa = _pyarrow()
    number = 0
    for file in files:
        try:
            with pa.memory_map(str(file)) as source:
                for batch in _batches(pa, source):
                    batch.validate(full=True)  # damaged offsets would crash the process
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        for row in batch.slice(start, BATCH_ROWS).to_pylist():
                            number += 1
                            yield number, row, None
        except (pa.ArrowException, *_DAMAGE_ERRORS) as error:
            number += 1
            yield _unreadable(number, file, error)


def _batches(pa: Any, source: Any) -> Iterator[Any]:
    if source.read(6) == b"ARROW1":
        source.seek(0)
        with pa.ipc.open_file(source) as file:
            yield from (file.get_batch(at) for at in range(file.num_record_batches))
        return
    source.seek(0)
    with pa.ipc.open_stream(source) as stream:
        yield from stream


def folder_files(folder: Path) -> tuple[str, list[Path]]:
    """The kind of a data folder (`arrow`, `metadata`, `parquet`) and its files. Raises
    ConversationError if it has no data.
    """
    if (folder / "state.json").is_file():
        return "arrow", _saved_files(folder)
    if (splits := folder / "dataset_dict.json").is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise ConversationError(
            f"{folder} holds several splits ({splits.name})",
            wanted="one",
            do=f"Name one of its folders: {names}",
        )
    for name in _METADATA:
        if (folder / name).is_file():
            return "metadata", [folder / name]
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise _nothing_in(folder)
    splits_named = {re.split(r"[-.\d]", file.name)[0] for file in files}
    if len(splits_named) > 1:
        raise ConversationError(
            f"{folder} holds several splits", got=", ".join(sorted(splits_named)), wanted="one",
            do=f"Name the files of one: '{files[0].parent}/{sorted(splits_named)[-1]}*.parquet'",
        )  # fmt: skip
    return "parquet", files


def _nothing_in(folder: Path) -> ConversationError:
    """The error for a folder without data: it names what the folder contains instead, especially
    archives.
    """
    for path in islice((path for path in sorted(folder.iterdir()) if path.is_file()), 100):
        if (
            found := file_types.sniff(read_first_bytes(path, file_types.HEAD_BYTES))
        ) is not None and found.group == "archive":
            return ConversationError(
                f"{folder} holds no data that is known here",
                got=f"{path.name}, {found.name}",
                do=found.do,
            )
    named = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in _DATA]
    return ConversationError(
        f"{folder} holds no data that is known here",
        wanted=(
            "Parquet files, state.json of save_to_disk, or metadata.jsonl or .csv beside pictures"
        ),
        do=f"Name a file of it: {safe_parsing.truncate(', '.join(named))}" if named else None,
    )


def _saved_files(folder: Path) -> list[Path]:
    told = safe_parsing.read_bounded_json(folder / "state.json", ConversationError, MAX_ROW_BYTES)
    try:
        names = [str(entry["filename"]) for entry in told["_data_files"]]
    except (KeyError, TypeError) as error:
        raise ConversationError(
            f"{folder}/state.json is not what save_to_disk writes", got=repr(error)
        ) from error
    if any("/" in name or "\\" in name for name in names):
        raise ConversationError(f"{folder}/state.json names files outside its folder")
    return [folder / name for name in names]


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError(
            "Parquet and Arrow need pyarrow", do="pip install 'phisense[data]'"
        ) from error
    return pyarrow


def _unreadable(number: int, file: Path, error: Exception) -> NumberedRow:
    """The row at which a damaged table ends."""
    return number, None, ("malformed-table", f"cannot be read from {file.name}: {_short(error)}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
