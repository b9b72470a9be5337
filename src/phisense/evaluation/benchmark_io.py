"""Read benchmarks as published: local files and folders, or Hugging Face hub data sets through
`datasets`.

    a.json, a.jsonl, a.tsv, *.parquet, folder    the local path, if it exists
    OWNER/NAME[:CONFIG][@SPLIT]                  the hub, otherwise; data only, code in the
                                                 repository is never run

Images embedded in the files are unpacked into a folder, each once, under names derived from their
content.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import artifacts, console, safe_parsing
from ..conversations import Question
from ..conversations.encodings import detect_json_encoding, transcoded
from ..conversations.image_finder import normalize_image_name
from ..conversations.rows import content_name
from ..conversations.sources import open_data_source
from ..errors import DataError, UsageError
from ..safe_parsing import MAX_PATH_LENGTH, escape, quote
from ..vision.image_io import MAX_IMAGE_BYTES, open_image

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


class ImageUnpacker:
    """Unpacks images embedded in a file. Without a folder it only names them: scoring existing
    answers does not need the images.
    """

    def __init__(self, folder: Path | None, sources: Sequence[str], stack: ExitStack) -> None:
        self._folder, self._sources, self._stack = folder, sources, stack
        self._seen = 0
        self._total: int | None = None
        self._bars: console.ProgressBars | None = None

    def name(self, picture: Any, of: str) -> str:
        """The file name of an image given as bytes, as {"bytes": ...}, or in base64. Raises
        ImageError if it is not an image.
        """
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if isinstance(data, str):
            data = _decoded(data, of)
        if not isinstance(data, bytes):
            raise DataError(
                f"{of} has a picture that is not inside the file",
                got=type(data).__name__,
                wanted="its bytes, or base64",
            )
        name = content_name(data)
        if self._folder is not None:
            if not (self._folder / name).exists():
                open_image(data, name=f"a picture of {of}")
                artifacts.write_bytes(self._folder / name, data)
            self._tell()
        return name

    def _tell(self) -> None:
        if self._bars is None:
            self._bars = self._stack.enter_context(console.progress_bars())
            counts = [_count(Path(source)) for source in self._sources]
            self._total = None if None in counts else sum(n for n in counts if n is not None)
        self._seen += 1
        self._bars("unpacking pictures", self._seen, self._total)


def _count(path: Path) -> int | None:
    """The number of rows of a file, each of which has an image; None where counting is
    expensive.
    """
    if path.suffix == ".tsv" and path.is_file():
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b"")) - 1
    if path.suffix == ".parquet" and path.is_file():
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    return None


@contextmanager
def unpack_images(folder: Path | None, sources: Sequence[str]) -> Iterator[ImageUnpacker]:
    with ExitStack() as stack:
        yield ImageUnpacker(folder, sources, stack)


def _decoded(text: str, of: str) -> bytes:
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise DataError(
            f"{of} has a picture that is too large",
            got=f"{len(text) * 3 // 4 / 2**20:.0f} MB",
            wanted=f"{MAX_IMAGE_BYTES // 2**20} MB",
        )
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, and non-ASCII characters
        raise DataError(f"{of} has a picture that is not base64", got=str(error)) from error


def picture_name(
    row: Row, pictures: ImageUnpacker, of: str, otherwise: str | None = None
) -> str | None:
    """The image of a row: its name, or the name that `pictures` gives embedded bytes; `otherwise`
    if it has none.
    """
    image = row.get("image")
    if image is None:
        return otherwise
    return image if isinstance(image, str) else pictures.name(image, of)


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
