"""Results of checking and of converting a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..json_fields import JsonObject
from ..records import Record, key, local, omitted, rest


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding(Record):
    """A defect of a data set, or a note: `what` completes the sentence "row 7 ...", or "the file
    ..." where `row` is 0. `rows` is the number of affected rows, for notes that are counted.
    """

    row: int
    id: str | None
    code: str
    what: str
    do: str
    rows: int | None = omitted()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult(Record):
    """What a data set contains, and its defects.

    format         JSON, JSONL, CSV, Parquet or a folder; `shapes` counts the layouts of its rows
    good           rows that can be trained on; `rejected` is the number of those that cannot
    turns          answers in the good rows
    images         distinct images; `without_image` counts the rows without one
    counts         number of findings by code
    defects        findings that reject a row; `notes` do not
    rejects        the file that lists the defects, None if none was written
    """

    format: str
    shapes: Mapping[str, int]
    rows: int
    good: int
    rejected: int
    turns: int
    images: int = key("pictures")
    without_image: int = key("without_picture")
    counts: Mapping[str, int]
    defects: tuple[DataFinding, ...] = ()
    notes: tuple[DataFinding, ...] = ()
    rejects: Path | None = local(default=None)
    extra: JsonObject = rest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult(Record):
    """A data set written to the folder `out`: `written` of its `rows`, without the `rejected` ones;
    `counts` of findings by code, and the notes.
    """

    out: str
    rows: int
    written: int
    rejected: int
    counts: Mapping[str, int]
    notes: tuple[DataFinding, ...]
