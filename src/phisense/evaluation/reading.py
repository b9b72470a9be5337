"""Reads benchmarks as they are published: local files and folders, or data sets of the Hugging Face hub through `datasets`.

    a.json, a.jsonl, a.tsv, *.parquet, folder    what is there, by that name
    OWNER/NAME[:CONFIG][@SPLIT]                  of the hub, if there is no such file; data only, a set's own code is never run

Pictures that come inside the files are unpacked into a folder under names made of their content, each once.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .. import artefact, console
from ..conversations import Question
from ..conversations.rows import content_name
from ..conversations.shapes import leaves_its_folder
from ..conversations.sources import open_source
from ..errors import DataError, UsageError
from ..vision.pictures import MOST_BYTES, open_picture

Row = dict[str, Any]
_HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")


@dataclass(frozen=True, slots=True)
class Usual:
    """What a hub id of a benchmark means where it names no configuration or split."""

    split: str
    configs: tuple[str | None, ...] = (None,)


def read(source: str, usual: Usual) -> Any:
    """One JSON object as a mapping, anything else as a stream of rows. Raises DataError, naming the row, for what cannot be read."""
    path = Path(source)
    if path.exists() or "*" in source:
        return _document(path)
    named = _HUB.fullmatch(source)
    if named is None or path.suffix in (".json", ".jsonl", ".tsv", ".csv", ".parquet"):
        raise DataError(f"there is no file {source}", do="Check the path; a set of the hub is OWNER/NAME, OWNER/NAME:CONFIG or with @SPLIT")
    configs = (named["config"],) if named["config"] else usual.configs
    return (row for config in configs for row in hub_rows(named["name"], config, named["split"] or usual.split))


def _document(path: Path) -> Any:
    if path.suffix == ".json" and path.is_file() and _begins_an_object(path):
        try:
            return orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError:  # a row a line, under the name of JSON, as POPE has it
            pass
    return _rows(path)


def _begins_an_object(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _rows(path: Path) -> Iterator[Row]:
    for number, row, fault in open_source(path).rows():
        if fault is not None or not isinstance(row, dict):
            raise DataError(f"{path}, row {number} {fault[1] if fault else 'is no mapping'}", wanted="a mapping of fields")
        yield row


def hub_rows(name: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of a data set, its pictures as {"bytes", "path"}. `name` may also be a local folder that `datasets` opens."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{name} is no file here, and a set of the hub needs datasets", do="pip install datasets, or name local files"
        ) from error
    called = f"{name}{f':{config}' if config else ''}@{split}"
    console.err.print(f"{called}: from the hub, or from its cache", style="dim", markup=False)
    try:
        found = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # unreachable or unknown; another configuration or split; a set with code
        raise DataError(
            f"{called} cannot be had from the hub", got=" ".join(str(error).split())[:300],
            do="Check the name, name a configuration and a split (OWNER/NAME:CONFIG@SPLIT), or download its files and name them",
        ) from error  # fmt: skip
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    yield from found


def rows_of(document: Any, source: str, key: str = "") -> Iterator[Row]:
    """The rows of a document: those under `key` of an official file, the stream that it is, or the one row that it is.

    Raises DataError for what is there in place of a list, or of a row.
    """
    rows = document
    if isinstance(document, dict):
        rows = document.get(key, [document])
        if not isinstance(rows, list):
            raise DataError(f"{source} has no list of {key}", got=_shown(rows), wanted="the file as it is published")
    for number, row in enumerate(rows, 1):
        yield mapping(row, f"{source}, row {number}")


def numbered_rows(document: Any, source: str, first: int = 0) -> Iterator[tuple[str, Row]]:
    """The rows of a document with their names: its keys if it is a mapping of rows, else their "id", else their number from `first`."""
    if isinstance(document, dict):
        for name, row in document.items():
            yield str(name), mapping(row, f"{source}, question {name}")
        return
    for number, row in enumerate(rows_of(document, source), first):
        yield (str(number) if row.get("id") is None else text_of(row, "id", of=source)), row


def mapping(value: Any, of: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{of} is no mapping", got=_shown(value), wanted="a mapping of fields")
    return value


def field(row: Row, *names: str, of: str) -> Any:
    """The first of `names` that the row has. Raises DataError, naming them, if it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(
        f"{of} has a row without {' or '.join(names)}", got=", ".join(map(str, row))[:200], wanted="the file as it is published"
    )


def text_of(row: Row, *names: str, of: str) -> str:
    """That field as text; a number is text, too. Raises DataError for anything else."""
    return as_text(field(row, *names, of=of), f"{of}: {' or '.join(names)}")


def as_text(value: Any, which: str) -> str:
    """Raises DataError, beginning with the words of `which`, for what is neither a text nor a number, and for bytes that are no text."""
    if not isinstance(value, str | int | float):
        raise DataError(f"{which} is no text", got=_shown(value))
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{which} is not UTF-8", got=_shown(text))
    return text


def number_of(row: Row, *names: str, of: str) -> int:
    """That field as a whole number. Raises DataError for anything else."""
    value = field(row, *names, of=of)
    whole = re.fullmatch(r"\s*([+-]?[0-9]{1,18})(?:\.0*)?\s*", str(value)) if not isinstance(value, bool) else None
    if whole is None:
        raise DataError(f"{of}: {' or '.join(names)} is no whole number", got=_shown(value))
    return int(whole[1])


def list_of(row: Row, *names: str, of: str) -> list[Any]:
    """That field as a list that is not empty. Raises DataError for anything else."""
    value = field(row, *names, of=of)
    if not isinstance(value, list) or not value:
        raise DataError(f"{of}: {' or '.join(names)} is not a list with something in it", got=_shown(value))
    return value


def texts_of(row: Row, *names: str, of: str) -> tuple[str, ...]:
    """That field as texts, at least one. Raises DataError for anything else, a single text among it."""
    return tuple(as_text(one, f"{of}: one of {' or '.join(names)}") for one in list_of(row, *names, of=of))


def kind_of(row: Row, name: str, of: str) -> str:
    """What a question counts as in the report: that field, or "other" where there is none."""
    return text_of(row, name, of=of) if row.get(name) else "other"


def _shown(value: Any) -> str:
    return ascii(value)[:80]


class Unpacked:
    """Pictures that came inside a file. Without a folder they only get their names: what is scored need not be seen."""

    def __init__(self, folder: Path | None, sources: Sequence[str], stack: ExitStack) -> None:
        self._folder, self._sources, self._stack = folder, sources, stack
        self._seen = 0
        self._total: int | None = None
        self._bars: console.Bars | None = None

    def name(self, picture: Any, of: str) -> str:
        """The file name of a picture given as bytes, as {"bytes": ...}, or in base64. Raises PictureError for what is no picture."""
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if isinstance(data, str):
            data = _decoded(data, of)
        if not isinstance(data, bytes):
            raise DataError(f"{of} has a picture that is not inside the file", got=type(data).__name__, wanted="its bytes, or base64")
        name = content_name(data)
        if self._folder is not None:
            if not (self._folder / name).exists():
                open_picture(data, name=f"a picture of {of}")
                artefact.write_bytes(self._folder / name, data)
            self._tell()
        return name

    def _tell(self) -> None:
        if self._bars is None:
            self._bars = self._stack.enter_context(console.bars())
            counts = [_count(Path(source)) for source in self._sources]
            self._total = None if None in counts else sum(n for n in counts if n is not None)
        self._seen += 1
        self._bars("unpacking pictures", self._seen, self._total)


def _count(path: Path) -> int | None:
    """How many rows a file has, where that is quickly told; of a table a row has a picture."""
    if path.suffix == ".tsv" and path.is_file():
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b"")) - 1
    if path.suffix == ".parquet" and path.is_file():
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    return None


@contextmanager
def unpacking(folder: Path | None, sources: Sequence[str]) -> Iterator[Unpacked]:
    with ExitStack() as stack:
        yield Unpacked(folder, sources, stack)


def _decoded(text: str, of: str) -> bytes:
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise DataError(
            f"{of} has a picture that is too large", got=f"{len(text) * 3 // 4 / 2**20:.0f} MB", wanted=f"{MOST_BYTES // 2**20} MB"
        )
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, and letters beyond ASCII
        raise DataError(f"{of} has a picture that is not base64", got=str(error)) from error


def picture_name(row: Row, pictures: Unpacked, of: str, otherwise: str | None = None) -> str | None:
    """The picture of a row: a name, or what `pictures` makes of bytes; `otherwise` where it has none."""
    image = row.get("image")
    if image is None:
        return otherwise
    return image if isinstance(image, str) else pictures.name(image, of)


def not_none(questions: list[Question], sources: Sequence[str], wanted: str) -> list[Question]:
    """Raises DataError if there are no questions."""
    if not questions:
        raise DataError(f"there are no questions in {', '.join(sources)}", wanted=wanted)
    return questions


def some(questions: list[Question], sources: Sequence[str]) -> list[Question]:
    """The questions of a benchmark. Raises DataError if there are none, for two of one id, which an answer could not tell apart, and for a
    picture whose name leads out of the picture folders.
    """
    not_none(questions, sources, "the benchmark's files as they are published")
    met: set[str] = set()
    for question in questions:
        if question.id in met:
            raise DataError(
                f"two questions in {', '.join(sources)} have the id {question.id[:120]!r}", wanted="an id of its own for each",
                do="Name each file once, or give the questions ids",
            )  # fmt: skip
        met.add(question.id)
        if question.image is not None and leaves_its_folder(question.image):
            raise DataError(
                f"question {question.id} names the picture {question.image[:120]!r}", wanted="a path inside the picture folders"
            )
    return questions
