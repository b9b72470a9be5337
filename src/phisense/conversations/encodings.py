"""Detect the encoding of a text file and stream it as UTF-8: by its BOM, by the positions of zero
bytes, and for CSV by all of its bytes.

JSON is UTF-8, UTF-16 or UTF-32; other bytes are a defect of their row. Spreadsheets also write CSV
in the Windows encoding (cp1252), so a CSV file that is not UTF-8, and whose every byte is plausible
Western text, is read as cp1252, with a note. Otherwise it is read as UTF-8, and rows with invalid
bytes are defects.
"""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConversationError
from ..safe_parsing import quote

TRANSCODE_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Encoding:
    """`codec` is Python's name; `note` completes "the file ..." if it is not UTF-8; `damaged` is
    UTF-8 with invalid bytes.
    """

    codec: str
    note: str | None = None
    damaged: bool = False


UTF8 = Encoding("utf-8")
_DAMAGED = Encoding("utf-8", damaged=True)
_UTF16, _UTF32 = "is UTF-16, and is read as that", "is UTF-32, and is read as that"
#: The order matters: UTF-32's BOM starts with UTF-16's.
_BOMS = (
    (codecs.BOM_UTF32_LE, Encoding("utf-32", _UTF32)),
    (codecs.BOM_UTF32_BE, Encoding("utf-32", _UTF32)),
    (codecs.BOM_UTF16_LE, Encoding("utf-16", _UTF16)),
    (codecs.BOM_UTF16_BE, Encoding("utf-16", _UTF16)),
)
#: Positions of zero bytes in the first two characters of a text that starts with ASCII and has no
#: BOM.
_ZEROS = (
    (re.compile(rb"[^\0]\0\0\0[^\0]\0\0\0", re.DOTALL), Encoding("utf-32-le", _UTF32)),
    (re.compile(rb"\0\0\0[^\0]\0\0\0[^\0]", re.DOTALL), Encoding("utf-32-be", _UTF32)),
    (re.compile(rb"[^\0]\0[^\0]\0", re.DOTALL), Encoding("utf-16-le", _UTF16)),
    (re.compile(rb"\0[^\0]\0[^\0]", re.DOTALL), Encoding("utf-16-be", _UTF16)),
)
#: Control characters, and bytes that are undefined in cp1252.
_NO_WESTERN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x81\x8d\x8f\x90\x9d]")
#: A word of only non-ASCII letters: Cyrillic, Greek or Chinese in a legacy encoding.
_FOREIGN_WORD = re.compile(rb"[\x80-\xff]{4}")
_AS_UTF8 = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_ASCII = bytes(range(128))
_EXAMPLE = re.compile(rb"[^\s,;|\"]{0,20}[\x80-\xff][^\s,;|\"]{0,20}")


def _replace_with_ff(error: UnicodeError) -> tuple[str, int]:
    """Replace undecodable bytes by 0xff, which UTF-8 never contains, so that their row is
    identified.
    """
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("phisense.as_a_byte", _replace_with_ff)


def detect_json_encoding(path: Path) -> Encoding:
    """The encoding of a JSON file, by its first bytes. Raises ConversationError if it cannot be
    opened.
    """
    head = read_first_bytes(path, 8)
    marked = next((encoding for mark, encoding in _BOMS if head.startswith(mark)), None)
    return marked or next((encoding for zeros, encoding in _ZEROS if zeros.match(head)), UTF8)


def detect_csv_encoding(path: Path) -> Encoding:
    """The encoding of a CSV file, by its first bytes, else by all of them. Raises ConversationError
    if it cannot be opened.
    """
    encoding = detect_json_encoding(path)
    if encoding is not UTF8 or _is_utf8(path):
        return encoding
    example = _western_example(path)
    if example is None:
        return _DAMAGED
    return Encoding(
        "cp1252",
        f"is no UTF-8 and is read as cp1252, the Western encoding of Windows: {quote(example)},"
        " for one",
    )


def read_first_bytes(path: Path, count: int) -> bytes:
    """At most `count` bytes from the beginning of a file.

    Raises ConversationError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise ConversationError(f"{path} cannot be read", got=error.strerror) from error


def transcoded(file: BinaryIO, encoding: Encoding) -> BinaryIO:
    """`file` as a stream of UTF-8."""
    return (
        file
        if encoding.codec == "utf-8"
        else io.BufferedReader(_Transcoder(file, encoding.codec), TRANSCODE_BLOCK_BYTES)
    )


class _Transcoder(io.RawIOBase):
    def __init__(self, file: BinaryIO, codec: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(codec)("phisense.as_a_byte")
        self._rest, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self._ended:
            data = self._file.read(TRANSCODE_BLOCK_BYTES)
            self._ended = not data
            self._rest = self._decoder.decode(data, final=self._ended).encode(
                "utf-8", "surrogateescape"
            )
        given = self._rest[: len(buffer)]
        buffer[: len(given)] = given
        self._rest = self._rest[len(given) :]
        return len(given)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(TRANSCODE_BLOCK_BYTES):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _western_example(path: Path) -> str | None:
    """A word with a non-ASCII letter, if every byte of the file is plausible in cp1252 and hardly
    any in UTF-8.
    """
    high = as_utf8 = 0
    example = None
    with path.open("rb") as file:
        while block := file.read(TRANSCODE_BLOCK_BYTES):
            if _NO_WESTERN.search(block) or _FOREIGN_WORD.search(block):
                return None
            high += len(block.translate(None, _ASCII))
            as_utf8 += len(_AS_UTF8.findall(block))
            if example is None and (found := _EXAMPLE.search(block)):
                example = found.group().decode("cp1252")
    return example if as_utf8 * 5 < high else None
