"""Tables as a stream of raw rows: CSV, Parquet, Arrow files of `datasets.save_to_disk`, and folders of these.

Parquet and Arrow are read in batches through pyarrow (`pip install 'phisense[data]'`); `datasets` itself is not needed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ..errors import ConversationError, UsageError
from .documents import Raw

BATCH = 64
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def csv_rows(path: Path) -> Iterator[Raw]:
    """Rows as mappings of text; an empty cell is None. Bytes that are no UTF-8 become lone surrogates, which the check names."""
    csv.field_size_limit(64 * 2**20)
    number = 0
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            for number, row in enumerate(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True), 1):
                if None in row or None in row.values():
                    yield number, None, ("malformed-table", "has another number of cells than the heading")
                else:
                    yield number, {key: value or None for key, value in row.items()}, None
        except csv.Error as error:
            yield number + 1, None, ("malformed-table", f"cannot be read as CSV: {error}")


def parquet_rows(files: list[Path]) -> Iterator[Raw]:
    """The rows of Parquet files, one file after another."""
    pa = _pyarrow()
    from pyarrow import parquet

    number = 0
    for file in files:
        try:
            with parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=BATCH):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row, None
        except (pa.ArrowException, OSError, ValueError) as error:
            number += 1
            yield number, None, ("malformed-table", f"cannot be read from {file.name}: {_short(error)}")


def arrow_rows(files: list[Path]) -> Iterator[Raw]:
    """The rows of Arrow streams, as `save_to_disk` writes them, through a memory map."""
    pa = _pyarrow()
    number = 0
    for file in files:
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    for start in range(0, batch.num_rows, BATCH):
                        for row in batch.slice(start, BATCH).to_pylist():
                            number += 1
                            yield number, row, None
        except (pa.ArrowException, OSError, ValueError) as error:
            number += 1
            yield number, None, ("malformed-table", f"cannot be read from {file.name}: {_short(error)}")


def folder_files(folder: Path) -> tuple[str, list[Path]]:
    """The kind of a data folder (`arrow`, `metadata`, `parquet`) and its files. Raises ConversationError if it is none."""
    if (folder / "state.json").is_file():
        return "arrow", _saved_files(folder)
    if (splits := folder / "dataset_dict.json").is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise ConversationError(f"{folder} holds several splits ({splits.name})", wanted="one", do=f"Name one of its folders: {names}")
    for name in _METADATA:
        if (folder / name).is_file():
            return "metadata", [folder / name]
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConversationError(
            f"{folder} holds no data that is known here",
            wanted="Parquet files, state.json of save_to_disk, or metadata.jsonl or .csv beside pictures",
        )
    splits_named = {re.split(r"[-.\d]", file.name)[0] for file in files}
    if len(splits_named) > 1:
        raise ConversationError(
            f"{folder} holds several splits", got=", ".join(sorted(splits_named)), wanted="one",
            do=f"Name the files of one: '{files[0].parent}/{sorted(splits_named)[-1]}*.parquet'",
        )  # fmt: skip
    return "parquet", files


def _saved_files(folder: Path) -> list[Path]:
    try:
        names = [str(entry["filename"]) for entry in orjson.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConversationError(f"{folder}/state.json is not what save_to_disk writes", got=repr(error)) from error
    if any("/" in name or "\\" in name for name in names):
        raise ConversationError(f"{folder}/state.json names files outside its folder")
    return [folder / name for name in names]


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError("Parquet and Arrow need pyarrow", do="pip install 'phisense[data]'") from error
    return pyarrow


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
