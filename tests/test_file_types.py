"""What a file is by its first bytes: every type of the table, under every ending, and texts that
begin likewise.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phisense import file_types
from phisense.conversations import check
from phisense.conversations.sources import open_data_source
from phisense.errors import ConversationError
from phisense.evaluation import benchmark_io
from phisense.file_types import FileType, sniff

ROWS = [{"id": str(i), "question": f"What is {i}?", "answer": "A number."} for i in range(3)]
TEXT = json.dumps(ROWS).encode()
ENDINGS = ("json", "jsonl", "csv", "tsv", "parquet", "arrow", "json.gz", "dat", "")


def zipped(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name in names:
            file.writestr(
                name,
                "application/vnd.oasis.opendocument.spreadsheet" if name == "mimetype" else TEXT,
            )
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        info = tarfile.TarInfo("0001.json")
        info.size = len(TEXT)
        file.addfile(info, io.BytesIO(TEXT))
    return data.getvalue()


def picture(kind: str) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(data, kind)
    return data.getvalue()


def array() -> bytes:
    data = io.BytesIO()
    np.save(data, np.arange(9))
    return data.getvalue()


def boxed(brand: bytes) -> bytes:
    return b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00" + brand + b"mif2" + b"\x00" * 64


#: Made by whatever makes such files, or as the format's specification says: the name that is said
#: of it.
REAL: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(TEXT), "a gzip archive"),
    "bzip2": (bz2.compress(TEXT), "a bzip2 archive"),
    "xz": (lzma.compress(TEXT), "an xz archive"),
    "tar": (tarred(), "a tar archive"),
    "tar.gz": (gzip.compress(tarred()), "a gzip archive"),
    "zip": (zipped("set.json"), "a zip archive"),
    "xlsx": (zipped("[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"), "an Excel workbook"),
    "ods": (zipped("mimetype", "content.xml"), "an OpenDocument spreadsheet"),
    "torch": (zipped("model/data.pkl", "model/version"), "a zip archive of PyTorch (a pickle)"),
    "npz": (zipped("a.npy"), "an archive of NumPy arrays"),
    "npy": (array(), "a NumPy array"),
    **{f"pickle {n}": (pickle.dumps(ROWS, protocol=n), "a Python pickle") for n in (2, 3, 4, 5)},
    "jpeg": (picture("JPEG"), "a JPEG picture"),
    "png": (picture("PNG"), "a PNG picture"),
    "gif": (picture("GIF"), "a GIF picture"),
    "webp": (picture("WEBP"), "a WebP picture"),
    "tiff": (picture("TIFF"), "a TIFF picture"),
    "bmp": (picture("BMP"), "a BMP picture"),
    "heic": (boxed(b"heic"), "a HEIC picture"),
    "avif": (boxed(b"avif"), "an AVIF picture"),
    "mp4": (boxed(b"isom"), "an MP4 or QuickTime video"),
    "m4a": (boxed(b"M4A "), "an M4A sound"),
    "wav": (b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00", "a WAV sound"),
    "aiff": (b"FORM\x00\x00\x00\x40AIFFCOMM", "an AIFF sound"),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
    "html in UTF-16": ("<html><body>404".encode("utf-16"), "a web page"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', "an SVG drawing"),
    "xml": (b'<?xml version="1.0"?>\n<rows></rows>', "XML"),
    "safetensors": ((64).to_bytes(8, "little") + b'{"a":{"dtype":"F32"', "a safetensors file"),
    "lmdb": (b"\x00" * 16 + b"\xde\xc0\xef\xbe\x01\x00\x00\x00", "an LMDB database"),
}
#: Every signature of the table, with the zeros behind it that such files have.
FIXED = [(signature + b"\x01\x00" * 30, kind.name) for signature, kind in file_types._FIXED]
READ = {"a Parquet file", "an Arrow file", "an Arrow stream"}


@pytest.mark.parametrize("name", REAL)
def test_a_file_is_what_its_first_bytes_say(name: str) -> None:
    data, called = REAL[name]
    found = sniff(data[: file_types.HEAD_BYTES])
    assert isinstance(found, FileType)
    assert found.name == called
    assert found.group in ("picture", "sound", "video", "archive", "table", "weights", "document")
    assert found.do


@pytest.mark.parametrize(
    ("data", "called"), FIXED, ids=[f"{i} {called}" for i, (_, called) in enumerate(FIXED)]
)
def test_every_signature_of_the_table_is_reached(data: bytes, called: str) -> None:
    """None is hidden by another that comes before it."""
    found = sniff(data)
    assert found is not None
    assert found.name == called


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_such_file_is_read_as_data_whatever_its_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"set.{ending}".rstrip(".")
    for data, called in [
        *REAL.values(),
        *((data, called) for data, called in FIXED if called not in READ),
    ]:
        path.write_bytes(data)
        for opened in (
            open_data_source,
            check,
            lambda path: list(
                benchmark_io.rows_of(
                    benchmark_io.read_source(str(path), benchmark_io.HubDefaults("test")), "x"
                )
            ),
        ):
            with pytest.raises(ConversationError) as caught:
                opened(path)
            assert f"is no data set; got {called}; wanted JSON, CSV, Parquet or Arrow. " in str(
                caught.value
            )


def begins_like_a_signature() -> list[bytes]:
    """The letters of every signature that is letters, without the bytes behind them that no text
    has.
    """
    letters = [
        signature
        for signature, _ in file_types._FIXED
        if signature.isascii() and signature not in file_types._TEXTS
    ]
    words = [
        found.group() for signature in letters if (found := re.match(rb"[ -~]{2,}", signature))
    ]
    return [*words, b"RIFFraff", b"FORMula", b"the ftyp", b"BMW"]


@pytest.mark.parametrize("start", begins_like_a_signature())
def test_texts_that_begin_like_a_signature_are_texts(tmp_path: Path, start: bytes) -> None:
    text = start + b" of words,answer\n" + "a question, é,b\n".encode() * 40
    assert sniff(text[: file_types.HEAD_BYTES]) is None
    padded = (b"x" * 257 + b"ustar" + text)[: file_types.HEAD_BYTES]
    assert sniff(padded) is None


@pytest.mark.parametrize(
    "codec",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "cp1251"],
)
def test_no_text_in_any_encoding_is_taken_for_something_else(codec: str) -> None:
    for text in (
        "[{}]",
        '{"id": 1}',
        "image,question\na.jpg,Wo?\n",
        "яс,ответ\n",
        "яы;x\n",
        "é;à\n",
        "ÿó,b\n",
    ):
        assert sniff(text.encode(codec, "ignore")[: file_types.HEAD_BYTES]) is None


def test_nothing_and_little_are_nothing() -> None:
    assert [sniff(head) for head in (b"", b"P", b"PK", b"\x00", b"\xff", b"R", b"<")] == [None] * 7


def columns(write: Callable[[Any, Any, io.BytesIO], object]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    data = io.BytesIO()
    write(pa, pa.Table.from_pylist(ROWS), data)
    return data.getvalue()


def as_parquet(pa: Any, table: Any, data: io.BytesIO) -> None:
    from pyarrow import parquet

    parquet.write_table(table, data)


def as_arrow(pa: Any, table: Any, data: io.BytesIO, *, file: bool) -> None:
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(data, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (as_parquet, "Parquet"),
        (partial(as_arrow, file=True), "Arrow"),
        (partial(as_arrow, file=False), "Arrow"),
    ],
    ids=["Parquet", "Arrow file", "Arrow stream"],
)
def test_columns_are_read_by_any_name(tmp_path: Path, write: Any, kind: str, ending: str) -> None:
    path = tmp_path / f"set.{ending}".rstrip(".")
    path.write_bytes(columns(write))
    found = check(path)
    assert (found.kind, found.rows, found.good) == (kind, 3, 3)


def test_a_folder_of_archives_is_named(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"shard-{i:06}.tar").write_bytes(tarred())
    with pytest.raises(
        ConversationError,
        match=r"holds no data that is known here; got shard-000000.tar, a tar archive. Unpack it",
    ):
        open_data_source(tmp_path)
    with pytest.raises(
        ConversationError, match=r"shard-000000.tar is no data set; got a tar archive"
    ):
        open_data_source(tmp_path / "*.tar")


def test_a_folder_of_files_names_them(tmp_path: Path) -> None:
    for name in ("train.json", "test.json"):
        (tmp_path / name).write_bytes(TEXT)
    with pytest.raises(ConversationError, match=r"Name a file of it: test.json, train.json"):
        open_data_source(tmp_path)


def test_the_control_without_the_table_an_archive_is_read_as_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_types, "sniff", lambda head: None)
    (tmp_path / "set.json").write_bytes(gzip.compress(TEXT))
    assert set(check(tmp_path / "set.json").counts) <= {"not-utf8", "malformed-json"}
