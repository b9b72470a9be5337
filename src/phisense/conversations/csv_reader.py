"""CSV and TSV: detect the separator and the column names, and stream rows as mappings of text.

The separator is a comma, semicolon, tab or bar: the one that gives the header and the rows the same
number of cells, at least two, regardless of the file extension; or the one that Excel's first line
`sep=;` names.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..errors import ConversationError
from ..safe_parsing import quote
from .encodings import Encoding, transcoded
from .json_reader import MAX_ROW_BYTES, NumberedRow

_SEPARATORS = (",", ";", "\t", "|")
_HEAD_BYTES = 2**20  # characters read to detect the separator
_SAMPLED_ROWS = 50  # rows read to detect the separator
_SEP_LINE = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n|$)', re.IGNORECASE)
_WORD = re.compile(r"[\w-]+")
_SURROGATE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Dialect:
    """`has_sep_line`: the first line only names the separator. `columns` is empty for a file
    without a header.
    """

    separator: str
    columns: tuple[str, ...]
    has_sep_line: bool


def detect_dialect(path: Path, encoding: Encoding) -> Dialect:
    """Detect the separator and the columns. Raises ConversationError for a header that no separator
    splits, and for duplicate columns.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    with _text(path, encoding) as file:
        head = file.read(_HEAD_BYTES)
        cut_off = bool(file.read(1))
    told = _SEP_LINE.match(head)
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    tried = (told[1],) if told else tuple(dict.fromkeys((usual, *_SEPARATORS)))
    text = head[told.end() :] if told else head
    # On a tie, prefer the separator that the file extension implies.
    separator, fit = max(
        ((mark, _score_separator(text, mark, cut_off)) for mark in tried),
        key=lambda pair: pair[1][:2],
    )
    heading = fit[2]
    if len(heading) == 1 and not _WORD.fullmatch(heading[0].strip()):
        raise ConversationError(
            f"{path} has one column in its heading",
            got=quote(heading[0]),
            wanted="columns separated by a comma, semicolon, tab or bar",
            do="Save it as CSV with one of these, or as JSON lines",
        )
    return Dialect(separator, _columns(path, heading, separator), told is not None)


def _score_separator(text: str, separator: str, cut_off: bool) -> tuple[float, int, list[str]]:
    """The share of rows with as many cells as the header (0 for a header of one cell), that number,
    and the header.
    """
    heading: list[str] = []
    widths: list[int] = []
    try:
        for cells in csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
        ):
            if not any(map(str.strip, cells)):
                continue
            if heading:
                widths.append(len(cells))
            heading = heading or cells
            if len(widths) > _SAMPLED_ROWS:
                break
        else:
            widths = widths[:-1] if cut_off else widths  # the last row may be incomplete
    except csv.Error:  # count the rows up to the error
        pass
    alike = sum(width == len(heading) for width in widths) / len(widths) if widths else 1.0
    return (alike if len(heading) > 1 else 0.0), len(heading), heading


def _columns(path: Path, heading: list[str], separator: str) -> tuple[str, ...]:
    """The column names, stripped; a column without a name, such as pandas' index, is named by its
    number.
    """
    names = [cell.strip() or f"column {at}" for at, cell in enumerate(heading, 1)]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise ConversationError(
            f"{path} has the column {quote(twice)} twice in its heading",
            got=f"{len(names)} columns separated by {separator!r}",
            wanted="each once",
            do="Rename or drop one of them",
        )
    return tuple(names)


def csv_rows(path: Path, encoding: Encoding, dialect: Dialect) -> Iterator[NumberedRow]:
    """Rows as mappings of text; an empty cell is None, and rows of only empty cells are skipped."""
    csv.field_size_limit(MAX_ROW_BYTES)
    number, width = 0, len(dialect.columns)
    with _text(path, encoding) as file:
        if dialect.has_sep_line:
            file.readline(MAX_ROW_BYTES)
        lines = iter(lambda: _line(file), "")
        try:
            rows = csv.reader(
                lines, delimiter=dialect.separator, skipinitialspace=True, strict=True
            )
            next((cells for cells in rows if any(map(str.strip, cells))), None)  # the header
            for cells in rows:
                if not any(map(str.strip, cells)):
                    continue
                number += 1
                if len(cells) != width:
                    what = (
                        f"has {len(cells)} cells, and the heading has {width} (separated by"
                        f" {dialect.separator!r})"
                    )
                    yield number, None, ("malformed-table", what)
                elif encoding.damaged and (broken := _row_fault(cells, dialect.columns)):
                    yield number, None, ("not-utf8", broken)
                else:
                    yield (
                        number,
                        {
                            key: cell.strip(" ") or None
                            for key, cell in zip(dialect.columns, cells, strict=True)
                        },
                        None,
                    )
        except csv.Error as error:
            yield (
                number + 1,
                None,
                (
                    "malformed-table",
                    f"cannot be read as CSV (separated by {dialect.separator!r}): {error}",
                ),
            )


def _row_fault(cells: list[str], columns: tuple[str, ...]) -> str | None:
    for cell, column in zip(cells, columns, strict=True):
        if not cell.isascii() and (found := _SURROGATE.search(cell)):
            return (
                f"is not UTF-8: {quote(column)} holds the byte {ord(found.group()) - 0xDC00:#04x}"
            )
    return None


@contextmanager
def _text(path: Path, encoding: Encoding) -> Iterator[TextIO]:
    """Open as text. Bytes that are not UTF-8 become lone surrogates."""
    with (
        path.open("rb") as file,
        io.TextIOWrapper(
            transcoded(file, encoding), "utf-8-sig", "surrogateescape", newline=""
        ) as text,
    ):
        yield text


def _line(file: TextIO) -> str:
    """The next line; its length is limited, because a file without line breaks might not fit into
    memory.
    """
    line = file.readline(MAX_ROW_BYTES + 1)
    if len(line) > MAX_ROW_BYTES:
        raise csv.Error(f"a line of more than {MAX_ROW_BYTES // 2**20} MB")
    return line
