"""Read benchmarks as published: local files and folders, or Hugging Face hub data sets through
`datasets`.

    a.json, a.jsonl, a.tsv, *.parquet, folder    the local path, if it exists
    OWNER/NAME[:CONFIG][@SPLIT]                  the hub, otherwise; data only, code in the
                                                 repository is never run
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import console, safe_parsing
from ..conversations import Question
from ..conversations.encodings import detect_json_encoding, transcoded
from ..conversations.image_finder import normalize_image_name
from ..conversations.sources import open_data_source
from ..errors import DataError, UsageError
from ..safe_parsing import MAX_PATH_LENGTH, escape, quote

Row = dict[str, Any]
_HUB = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True, slots=True)
class HubDefaults:
    """Default configuration and split of a benchmark's hub id."""

    split: str
    configs: tuple[str | None, ...] = (None,)


def read_source(source: str, defaults: HubDefaults) -> Any:
    """Read a source: a single JSON object as a mapping, anything else as a stream of rows. Raises
    DataError, naming the row, for what cannot be read.
    """
    path = Path(source)
    if path.exists() or "*" in source:
        return _document(path)
    named = _HUB.fullmatch(source)
    if named is None or path.suffix in (".json", ".jsonl", ".tsv", ".csv", ".parquet"):
        raise DataError(
            f"there is no file {source}",
            do="Check the path; a set of the hub is OWNER/NAME, OWNER/NAME:CONFIG or with @SPLIT",
        )
    configs = (named["config"],) if named["config"] else defaults.configs
    return (
        row
        for config in configs
        for row in hub_rows(named["name"], config, named["split"] or defaults.split)
    )


def _document(path: Path) -> Any:
    if path.suffix == ".json" and path.is_file() and _begins_an_object(path):
        try:
            return safe_parsing.parse_json(
                _utf8(path, safe_parsing.MAX_JSON_BYTES), str(path), DataError
            )
        except DataError:
            # not one JSON document but JSON lines in a .json file, as POPE has it; errors name the
            # row
            pass
    return _rows(path)


def _begins_an_object(path: Path) -> bool:
    return _utf8(path, 4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _utf8(path: Path, max_bytes: int) -> bytes:
    """The beginning of a JSON file, converted to UTF-8 from whatever encoding it has."""
    encoding = detect_json_encoding(path)
    with path.open("rb") as file:
        return transcoded(file, encoding).read(max_bytes)


def _rows(path: Path) -> Iterator[Row]:
    for number, row, fault in open_data_source(path).rows():
        if fault is not None or not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number} {fault[1] if fault else 'is no mapping'}",
                wanted="a mapping of fields",
            )
        yield row


def hub_rows(name: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of a data set, images as {"bytes", "path"}. `name` may also be a local folder that
    `datasets` opens.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{name} is no file here, and a set of the hub needs datasets",
            do="pip install datasets, or name local files",
        ) from error
    called = f"{name}{f':{config}' if config else ''}@{split}"
    console.err.print(f"{called}: from the hub, or from its cache", style="dim")
    try:
        found = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        # unreachable or unknown; a wrong configuration or split; a data set with code
        raise DataError(
            f"{called} cannot be had from the hub",
            got=" ".join(str(error).split())[:300],
            do=(
                "Check the name, name a configuration and a split (OWNER/NAME:CONFIG@SPLIT), or"
                " download its files and name them"
            ),
        ) from error
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    yield from found


def rows_of(document: Any, source: str, key: str = "") -> Iterator[Row]:
    """The rows of a document: those under `key` of an official file, those of a stream, or the
    document itself as a single row.

    Raises DataError for anything that is not a list of rows.
    """
    rows = document
    if isinstance(document, dict):
        rows = document.get(key, [document])
        if not isinstance(rows, list):
            raise DataError(
                f"{source} has no list of {key}",
                got=_shown(rows),
                wanted="the file as it is published",
            )
    for number, row in enumerate(rows, 1):
        yield mapping(row, f"{source}, row {number}")


def numbered_rows(document: Any, source: str, first: int = 0) -> Iterator[tuple[str, Row]]:
    """The rows of a document with their ids: the keys of a mapping of rows, else their "id", else
    their number counted from `first`.
    """
    if isinstance(document, dict):
        for name, row in document.items():
            yield str(name), mapping(row, f"{source}, question {escape(name)}")
        return
    for number, row in enumerate(rows_of(document, source), first):
        yield (str(number) if row.get("id") is None else text_of(row, "id", of=source)), row


def mapping(value: Any, of: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{of} is no mapping", got=_shown(value), wanted="a mapping of fields")
    return value


def field(row: Row, *names: str, of: str) -> Any:
    """The first of the fields `names` that the row has. Raises DataError, naming them, if it has
    none.
    """
    for name in names:
        # tables store missing values as NaN
        if (value := row.get(name)) is not None and value == value:
            return value
    raise DataError(
        f"{of} has a row without {' or '.join(names)}",
        got=_names(row),
        wanted="the file as it is published",
    )


def _names(row: Row) -> str:
    """The field names of a row, for an error message."""
    return ", ".join(escape(name) for name in islice(row, 12)) or "none"


def text_of(row: Row, *names: str, of: str) -> str:
    """The field as text; numbers are converted. Raises DataError for anything else."""
    return as_text(field(row, *names, of=of), f"{of}: {' or '.join(names)}")


def as_text(value: Any, which: str) -> str:
    """Convert to text. Raises DataError, beginning with `which`, for a value that is neither text
    nor a number, and for bytes that cannot be decoded.
    """
    if not isinstance(value, str | int | float):
        raise DataError(f"{which} is no text", got=_shown(value))
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{which} is not UTF-8", got=_shown(text))
    return text


def number_of(row: Row, *names: str, of: str) -> int:
    """The field as an integer. Raises DataError for anything else."""
    value = field(row, *names, of=of)
    whole = (
        re.fullmatch(r"\s*([+-]?[0-9]{1,18})(?:\.0*)?\s*", str(value))
        if not isinstance(value, bool)
        else None
    )
    if whole is None:
        raise DataError(f"{of}: {' or '.join(names)} is no whole number", got=_shown(value))
    return int(whole[1])


def list_of(row: Row, *names: str, of: str) -> list[Any]:
    """The field as a non-empty list. Raises DataError for anything else."""
    value = field(row, *names, of=of)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{of}: {' or '.join(names)} is not a list with something in it", got=_shown(value)
        )
    return value


def texts_of(row: Row, *names: str, of: str) -> tuple[str, ...]:
    """The field as a tuple of texts, at least one. Raises DataError for anything else, including a
    single text.
    """
    return tuple(
        as_text(one, f"{of}: one of {' or '.join(names)}") for one in list_of(row, *names, of=of)
    )


def kind_of(row: Row, name: str, of: str) -> str:
    """The question category for the report: the field `name`, or "other" if it is missing."""
    return "other" if row.get(name) in (None, "") else text_of(row, name, of=of)


def _shown(value: Any) -> str:
    return quote(value, 80) if isinstance(value, str) else escape(value, 80)


def require_questions(
    questions: list[Question], sources: Sequence[str], wanted: str
) -> list[Question]:
    """Raise DataError if there are no questions."""
    if not questions:
        raise DataError(f"there are no questions in {', '.join(sources)}", wanted=wanted)
    return questions


def check_questions(questions: list[Question], sources: Sequence[str]) -> list[Question]:
    """Check the questions of a benchmark, whose images are named by paths inside the image folders.

    Raises DataError if there are none, for two questions with the same id, because answers could
    not be matched, and for an image name that is not a relative path.
    """
    require_questions(questions, sources, "the benchmark's files as they are published")
    met: set[str] = set()
    named = []
    for question in questions:
        if question.id in met:
            raise DataError(
                f"two questions in {', '.join(sources)} have the id {quote(question.id, 120)}",
                wanted="an id of its own for each",
                do="Name each file once, or give the questions ids",
            )
        met.add(question.id)
        path = None if question.image is None else normalize_image_name(question.image)
        if question.image is not None and path is None:
            raise DataError(
                f"question {escape(question.id)} names the picture"
                f" {quote(question.image, MAX_PATH_LENGTH)}",
                wanted="a path inside the picture folders",
            )
        named.append(question if path == question.image else replace(question, image=path))
    return named
