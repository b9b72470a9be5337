r"""JSON files that start with an object: one row per line, one row over several lines, several
rows, or rows inside an object.

{"id": 1, ...}\n{"id": 2, ...}        JSON lines: one row per line
{\n "id": 1,\n ...}                  one row, or several in sequence without a list
{"data": [{...}, {...}]}              the rows are the elements of the only list of mappings
{"17": {...}, "18": {...}}            the rows are the values, their ids the keys
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from .. import safe_parsing
from ..errors import ConversationError
from ..safe_parsing import quote
from .encodings import Encoding, transcoded
from .json_reader import MAX_ROW_BYTES, UTF8_BOM, Fault
from .row_parser import parse_row

_LINES = (".jsonl", ".ndjson", ".jsonlines")
_OPEN = b"[{,:"  # possible last characters of the first line of a multi-line object
_TURN = frozenset(("from", "role"))
#: Last words of keys that occur in rows: an object with such a key is itself a row and does not
#: contain rows.
_OF_A_ROW = frozenset(
    (
        "id",
        "uid",
        "uuid",
        "qid",
        "imageid",
        "imgid",
        "questionid",
        "sampleid",
        "image",
        "images",
        "picture",
        "filename",
        "photo",
        "question",
        "query",
        "instruction",
        "prompt",
        "text",
    )
)
#: First words of keys about a whole data set: `dataset_id`, `license_text`.
_OF_A_SET = frozenset(
    (
        "dataset",
        "datasets",
        "data",
        "set",
        "collection",
        "corpus",
        "version",
        "release",
        "revision",
        "split",
        "task",
        "license",
        "licence",
        "source",
        "project",
        "author",
        "user",
        "owner",
        "model",
        "run",
        "job",
        "batch",
        "export",
        "request",
        "annotator",
        "copyright",
        "info",
    )
)
_WORDS, _CAMEL = re.compile(r"[^\W_]+"), re.compile(r"(?<=[a-z])(?=[A-Z])")
#: A list of mappings under one of these keys contains rows, whatever their keys are.
_OF_ROWS = frozenset(
    (
        "data",
        "rows",
        "items",
        "examples",
        "samples",
        "instances",
        "records",
        "entries",
        "dataset",
        "annotations",
        "questions",
        "train",
        "training",
        "test",
        "val",
        "validation",
        "dev",
        "results",
        "predictions",
        "answers",
        "conversations",
    )
)
#: Next to one of these keys, `context` may belong to the question; next to others it describes the
#: file (JSON-LD).
_OF_A_CONTEXT = frozenset(("annotations", "questions", "answers", "instances"))
_MAX_SHOWN = 12  # keys


def detect_layout(path: Path, encoding: Encoding) -> str:
    """`list`, `lines`, or `object`: one JSON value, or several over many lines. In *.jsonl each
    line is a row.
    """
    with path.open("rb") as raw:
        file = transcoded(raw, encoding)
        head = file.read(4096).removeprefix(UTF8_BOM).lstrip()
    if head[:1] != b"{":
        return "list" if head[:1] == b"[" else "lines"
    with path.open("rb") as raw:
        file = transcoded(raw, encoding)
        first, following = _line(file).removeprefix(UTF8_BOM).strip(), _line(file).strip()
    alone = _stands_alone(first)
    if not following:
        return "lines" if alone and path.suffix.lower() in _LINES else "object"
    return (
        "object"
        if not alone and (first[-1:] in _OPEN or not following.startswith(b"{"))
        else "lines"
    )


def _line(file: BinaryIO) -> bytes:
    """The next line that is not blank, truncated if it is too long for a row."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_ROW_BYTES)
        if line.removeprefix(UTF8_BOM).strip():
            return line
    return b""


def _stands_alone(line: bytes) -> bool:
    if len(line) > MAX_ROW_BYTES:  # a line this long is never a part of a multi-line object
        return True
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def read_single_object(path: Path, encoding: Encoding) -> dict[str, object] | None:
    """The object if the file is exactly one, else None. Raises ConversationError if it is too large
    to be read into memory.
    """
    with path.open("rb") as raw:
        data = transcoded(raw, encoding).read(safe_parsing.MAX_JSON_BYTES + 1)
    if len(data) > safe_parsing.MAX_JSON_BYTES:
        raise ConversationError(
            f"{path} is one JSON object, too large to be read whole",
            got=f"more than {safe_parsing.MAX_JSON_BYTES // 2**30} GB",
            do="Write its rows as JSON lines, or as one list",
        )
    try:
        value = orjson.loads(data.removeprefix(UTF8_BOM))
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def extract_rows(value: dict[str, Any], path: Path) -> tuple[list[Any], Fault | None]:
    """The rows inside an object, or the object as the only row; and a note naming the keys that
    contain them.

    Raises ConversationError, naming the keys, for an object with several lists of rows.
    """
    lists = (
        {}
        if _is_of_one_row(value)
        else {key: rows for key, rows in value.items() if _is_list_of_mappings(rows)}
    )
    with_rows = [key for key, rows in lists.items() if _is_row(rows[0])]
    if len(with_rows) > 1:
        told = ", ".join(
            f"{quote(key)} ({len(value[key]):,} rows)" for key in with_rows[:_MAX_SHOWN]
        )
        raise ConversationError(
            f"{path} holds several lists of rows",
            got=told,
            wanted="one",
            do="Write the one that is meant into a file of its own",
        )
    chosen = with_rows or [
        key for key in lists if key.lower() in _OF_ROWS and not _TURN & lists[key][0].keys()
    ]
    if len(chosen) == 1:
        others = [quote(key) for key in value if key != chosen[0]]
        beside = (
            f"; {', '.join(others[:_MAX_SHOWN])} beside them {'is' if len(others) == 1 else 'are'}"
            f" not"
            " read"
            if others
            else ""
        )
        return value[chosen[0]], (
            "wrapped",
            f"is an object that holds its rows under {quote(chosen[0])}{beside}",
        )
    if (
        value
        and all(isinstance(row, dict) for row in value.values())
        and _is_row(next(iter(value.values())))
    ):
        rows = [{**row, "id": key} if row.get("id") is None else row for key, row in value.items()]
        return rows, ("wrapped", "is an object of rows; their keys are taken as ids")
    if (
        not lists
        and len(value) == 1
        and isinstance(inner := next(iter(value.values())), dict)
        and not safe_parsing.is_too_deep(value)
    ):
        rows, note = extract_rows(inner, path)
        if note is not None:
            return rows, (note[0], f"{note[1]} (inside of {quote(next(iter(value)))})")
    return [value], None


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _is_row(value: dict[str, Any]) -> bool:
    """Whether a mapping is a row of a known shape, and not a turn of one."""
    return (
        not _TURN & value.keys()
        and not safe_parsing.is_too_deep(value)
        and parse_row(value).shape != "unknown"
    )


def _is_of_one_row(value: dict[str, Any]) -> bool:
    return any(
        _names_a_row(key, value)
        and (
            isinstance(told, str | int)
            or (isinstance(told, list) and bool(told) and isinstance(told[0], str))
        )
        for key, told in value.items()
    )


def _names_a_row(key: str, beside: dict[str, Any]) -> bool:
    """True for `id`, `imageId`, `image_id`, `file_name` and `question`, but not for `dataset_id`;
    for `context` unless it clearly describes a file of rows.
    """
    words = [word.lower() for word in _WORDS.findall(_CAMEL.sub("_", key))]
    if words[-1:] == ["context"]:
        return not any(
            other.lower() in _OF_ROWS - _OF_A_CONTEXT and isinstance(rows, list)
            for other, rows in beside.items()
        )
    if words[-1:] in (["id"], ["text"]):
        return words[0] not in _OF_A_SET
    return words[-2:] == ["file", "name"] or bool(words and words[-1] in _OF_A_ROW)
