"""JSON lists and JSON lines as a stream of raw rows: sets larger than memory pass through a buffer of a few megabytes.

A list is decoded element by element (`json`'s own C scanner finds where each ends); a line of JSON lines stands alone, so a bad
one costs one row. What cannot be read is yielded as a fault, never raised.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

#: code and sentence, as in `defects.KINDS`
Fault = tuple[str, str]
#: number (from 1), value, and what is wrong with it as JSON
Raw = tuple[int, Any, Fault | None]

BLOCK = 4 * 2**20
MOST_ROW = 64 * 2**20
_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = codecs.BOM_UTF8


def is_list(path: Path) -> bool:
    """Whether the document is one JSON list, by its first character."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.removeprefix(_BOM).lstrip()[:1] == b"["


def document_rows(file: BinaryIO, *, listed: bool) -> Iterator[Raw]:
    """The rows of a JSON list (`listed`) or of JSON lines, in order."""
    return _list_rows(file) if listed else _line_rows(file)


class _Constants:
    """Notices NaN and Infinity, which Python's decoder accepts and JSON does not have."""

    def __init__(self) -> None:
        self.seen: str | None = None
        self.decoder = json.JSONDecoder(parse_constant=self._note)

    def _note(self, name: str) -> float:
        self.seen = name
        return float(name)

    def fault(self) -> Fault | None:
        name, self.seen = self.seen, None
        return ("not-finite", f"holds {name}, which is not JSON") if name else None


class _Window:
    """The part of a text file that is being decoded. `start` is the index in `text` of what was not consumed yet."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.start, self.ended = "", 0, False
        self._lines, self._column = 0, 0

    def more(self) -> bool:
        """Reads as much again as is held and not consumed; False at the end of the file."""
        if self.ended:
            return False
        data = self._file.read(max(BLOCK, len(self.text) - self.start))
        self.ended = not data
        rest = self._decode.decode(data, final=self.ended)
        self._count(self.start)
        self.text = self.text[self.start :] + rest
        self.start = 0
        return bool(rest) or not self.ended

    def place(self, at: int) -> str:
        """Line and column (from 1) of `text[at]`."""
        breaks = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) if breaks else at + 1 + self._column
        return f"line {self._lines + breaks + 1} column {column}"

    def _count(self, until: int) -> None:
        breaks = self.text.count("\n", 0, until)
        self._lines += breaks
        self._column = until - self.text.rfind("\n", 0, until) - 1 if breaks else self._column + until

    def skip_space(self) -> str:
        """The next character that is no white space, not consumed; empty at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.start)
            assert match is not None
            self.start = match.end()
            if self.start < len(self.text):
                return self.text[self.start]
            if not self.more():
                return ""


def _list_rows(file: BinaryIO) -> Iterator[Raw]:
    window, constants = _Window(file), _Constants()
    if window.skip_space() == "\ufeff":
        window.start += 1
        window.skip_space()
    window.start += 1  # the bracket
    number = 0
    following = window.skip_space()
    while following != "]":
        number += 1
        try:
            value = _element(window, constants)
        except _BrokenError as error:
            yield number, None, error.fault
            return
        yield number, value, constants.fault()
        following = window.skip_space()
        if following == ",":
            window.start += 1
            following = window.skip_space()
            if following == "]":
                yield number + 1, None, _broken(window, window.start, "expecting a row after ','")
                return
        elif following != "]":
            found = f"found {following!r}" if following else "the file ends"
            yield number + 1, None, _broken(window, window.start, f"expecting ',' or ']', {found}")
            return
    window.start += 1
    if window.skip_space():
        yield number + 1, None, _broken(window, window.start, "text after the end of the list")


class _BrokenError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def _broken(window: _Window, at: int, why: str) -> Fault:
    return "malformed-json", f"is not JSON: {window.place(at)}: {why}"


def _element(window: _Window, constants: _Constants) -> Any:
    """Decodes the next element, reading on while it may only be cut off by the end of the buffer."""
    while True:
        try:
            value, end = constants.decoder.raw_decode(window.text, window.start)
            # A number that touches the end of the buffer may go on behind it.
            if end < len(window.text) or not window.more():
                window.start = end if end < len(window.text) else len(window.text)
                return value
        except json.JSONDecodeError as error:
            cut_off = error.msg.startswith("Unterminated string") or error.pos > len(window.text) - 16
            if not cut_off or len(window.text) - window.start > MOST_ROW:
                why = error.msg if not cut_off else f"{error.msg}, and more than {MOST_ROW // 2**20} MB follow"
                raise _BrokenError(_broken(window, error.pos, why)) from error
            at = error.pos - window.start
            if not window.more():
                raise _BrokenError(_broken(window, window.start + at, f"{error.msg}; the file ends")) from error
        except RecursionError:
            raise _BrokenError(_broken(window, window.start, "nested too deeply")) from None
        except ValueError as error:  # an integer of more digits than Python converts
            raise _BrokenError(_broken(window, window.start, str(error))) from error
        constants.fault()


def _line_rows(file: BinaryIO) -> Iterator[Raw]:
    number = 0
    while line := file.readline(MOST_ROW + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > MOST_ROW:
            while line and not line.endswith(b"\n"):
                line = file.readline(BLOCK)
            yield number, None, ("row-too-large", f"has more than {MOST_ROW // 2**20} MB in one line")
        elif line.strip():
            try:
                yield number, orjson.loads(line), None
            except orjson.JSONDecodeError:
                yield _slowly(line, number)


def _slowly(line: bytes, number: int) -> Raw:
    """A line that orjson refused: what is wrong with it, and its value if that can be told."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return number, None, ("not-utf8", f"is not UTF-8: line {number}, byte {error.start + 1} is {line[error.start]:#04x}")
    constants = _Constants()
    try:
        value = constants.decoder.decode(text)
    except json.JSONDecodeError as error:
        return number, None, ("malformed-json", f"is not JSON: line {number} column {error.colno}: {error.msg}")
    except RecursionError:
        return number, None, ("malformed-json", f"is not JSON: line {number} column 1: nested too deeply")
    except ValueError as error:
        return number, None, ("malformed-json", f"is not JSON: line {number} column 1: {error}")
    return number, value, constants.fault()
