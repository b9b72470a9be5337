"""Stream raw rows from JSON lists and JSON lines: data sets larger than memory pass through a
buffer of a few megabytes.

A list is decoded element by element (`json`'s C scanner finds the end of each), and so are values
in sequence without a list; in JSON lines each line is independent, so an invalid line costs one
row. Invalid input is yielded as a fault, never raised.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from .. import safe_parsing

#: code and sentence, as in `defects.DEFECT_KINDS`
Fault = tuple[str, str]
#: number (from 1), value, and what is wrong with it as JSON
NumberedRow = tuple[int, Any, Fault | None]

BLOCK_BYTES = 4 * 2**20
MAX_ROW_BYTES = 64 * 2**20
_SPACE = re.compile(r"[ \t\n\r]*")
UTF8_BOM = codecs.BOM_UTF8
_SURROGATE = re.compile("[\udc80-\udcff]")


def json_rows(file: BinaryIO, *, listed: bool) -> Iterator[NumberedRow]:
    """The rows of a JSON list (`listed`) or of JSON lines, in order."""
    return _list_rows(file) if listed else _line_rows(file)


def too_deep_row(number: int) -> NumberedRow:
    """The row in place of one that is nested so deeply that Python could not even print it."""
    return (
        number,
        None,
        ("malformed-json", f"is nested more than {safe_parsing.MAX_DEPTH} levels deep"),
    )


class _Constants:
    """Detects NaN, Infinity and overflowing numbers such as 1e999, which Python's decoder accepts
    and JSON does not have.
    """

    def __init__(self) -> None:
        self.seen: str | None = None
        self.decoder = json.JSONDecoder(parse_constant=self._note, parse_float=self._number)

    def _note(self, name: str) -> float:
        self.seen = safe_parsing.truncate(name)
        return float(name)

    def _number(self, digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else self._note(digits)

    def fault(self) -> Fault | None:
        name, self.seen = self.seen, None
        return ("not-finite", f"holds {name}, which is not JSON") if name else None


class _Window:
    """The buffered part of a text file. `start` is the index in `text` of the first unconsumed
    character.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.start, self.ended = "", 0, False
        self._damaged = False
        self._lines, self._column = 0, 0

    def read_more(self) -> bool:
        """Read as much again as is buffered and unconsumed; False at the end of the file."""
        if self.ended:
            return False
        data = self._file.read(max(BLOCK_BYTES, len(self.text) - self.start))
        self.ended = not data
        rest = self._decode.decode(data, final=self.ended)
        self._damaged = self._damaged or not (rest.isascii() or safe_parsing.is_encodable(rest))
        self._count(self.start)
        self.text = self.text[self.start :] + rest
        self.start = 0
        return bool(rest) or not self.ended

    def line_and_column(self, index: int) -> str:
        """Line and column (from 1) of `text[index]`."""
        breaks = self.text.count("\n", 0, index)
        column = index - self.text.rfind("\n", 0, index) if breaks else index + 1 + self._column
        return f"line {self._lines + breaks + 1} column {column}"

    def damage(self, start: int, end: int) -> Fault | None:
        """The fault of that part of the text if it was not UTF-8."""
        found = _SURROGATE.search(self.text, start, end) if self._damaged else None
        if found is None:
            return None
        return (
            "not-utf8",
            f"is not UTF-8: {self.line_and_column(found.start())} is"
            f" {ord(found.group()) - 0xDC00:#04x}",
        )

    def _count(self, until: int) -> None:
        breaks = self.text.count("\n", 0, until)
        self._lines += breaks
        self._column = (
            until - self.text.rfind("\n", 0, until) - 1 if breaks else self._column + until
        )

    def skip_space(self) -> str:
        """The next character that is not whitespace, without consuming it; empty at the end of the
        file.
        """
        while True:
            match = _SPACE.match(self.text, self.start)
            assert match is not None
            self.start = match.end()
            if self.start < len(self.text):
                return self.text[self.start]
            if not self.read_more():
                return ""


def _list_rows(file: BinaryIO) -> Iterator[NumberedRow]:
    window, constants = _Window(file), _Constants()
    _skip_bom(window)
    window.start += 1  # skip the opening bracket
    number = 0
    following = window.skip_space()
    while following != "]":
        number += 1
        try:
            yield _row(window, constants, number)
        except _InvalidJsonError as error:
            yield number, None, error.fault
            return
        following = window.skip_space()
        if following == ",":
            window.start += 1
            following = window.skip_space()
            if following == "]":
                yield (
                    number + 1,
                    None,
                    _invalid_json(window, window.start, "expecting a row after ','"),
                )
                return
        elif following != "]":
            found = f"found {following!r}" if following else "the file ends"
            yield (
                number + 1,
                None,
                _invalid_json(window, window.start, f"expecting ',' or ']', {found}"),
            )
            return
    window.start += 1
    if window.skip_space():
        yield (
            number + 1,
            None,
            _invalid_json(window, window.start, "text after the end of the list"),
        )


def concatenated_rows(file: BinaryIO) -> Iterator[NumberedRow]:
    """The rows of JSON values in sequence, on one or several lines each, optionally separated by
    commas.
    """
    window, constants = _Window(file), _Constants()
    following = _skip_bom(window)
    number = 0
    while following:
        number += 1
        try:
            yield _row(window, constants, number)
        except _InvalidJsonError as error:
            yield number, None, error.fault
            return
        following = window.skip_space()
        if following == ",":
            window.start += 1
            following = window.skip_space()


def _skip_bom(window: _Window) -> str:
    """The first character after an optional byte order mark."""
    if window.skip_space() == "\ufeff":
        window.start += 1
    return window.skip_space()


class _InvalidJsonError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def _invalid_json(window: _Window, index: int, why: str) -> Fault:
    return "malformed-json", f"is not JSON: {window.line_and_column(index)}: {why}"


def _row(window: _Window, constants: _Constants, number: int) -> NumberedRow:
    """Decode the next element; reads more while it may only be cut off by the end of the buffer.
    Raises _InvalidJsonError for invalid JSON.
    """
    while True:
        try:
            value, end = constants.decoder.raw_decode(window.text, window.start)
            # A number at the end of the buffer may continue after it.
            if end < len(window.text) or not window.read_more():
                brackets = (window.text.count(bracket, window.start, end) for bracket in "[{")
                is_deep = safe_parsing.may_be_deep(*brackets) and safe_parsing.is_too_deep(value)
                damage, fault = window.damage(window.start, end), constants.fault()
                window.start = end if end < len(window.text) else len(window.text)
                if damage is not None:
                    return number, None, damage
                return too_deep_row(number) if is_deep else (number, value, fault)
        except json.JSONDecodeError as error:
            cut_off = (
                error.msg.startswith("Unterminated string") or error.pos > len(window.text) - 16
            )
            if not cut_off or len(window.text) - window.start > MAX_ROW_BYTES:
                why = (
                    error.msg
                    if not cut_off
                    else f"{error.msg}, and more than {MAX_ROW_BYTES // 2**20} MB follow"
                )
                raise _InvalidJsonError(_invalid_json(window, error.pos, why)) from error
            at = error.pos - window.start
            if not window.read_more():
                raise _InvalidJsonError(
                    _invalid_json(window, window.start + at, f"{error.msg}; the file ends")
                ) from error
        except RecursionError:
            raise _InvalidJsonError(
                _invalid_json(window, window.start, "nested too deeply")
            ) from None
        except ValueError as error:  # an integer with more digits than Python converts
            raise _InvalidJsonError(_invalid_json(window, window.start, str(error))) from error
        constants.fault()


def _line_rows(file: BinaryIO) -> Iterator[NumberedRow]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(UTF8_BOM)
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(BLOCK_BYTES)
            yield (
                number,
                None,
                ("row-too-large", f"has more than {MAX_ROW_BYTES // 2**20} MB in one line"),
            )
        elif line.strip():
            _, value, fault = _parse_line(line, number)
            is_deep = safe_parsing.may_be_deep(
                line.count(b"["), line.count(b"{")
            ) and safe_parsing.is_too_deep(value)
            yield too_deep_row(number) if is_deep else (number, value, fault)


def _parse_line(line: bytes, number: int) -> NumberedRow:
    try:
        return number, orjson.loads(line), None
    except orjson.JSONDecodeError:
        return _parse_with_stdlib(line, number)


def _parse_with_stdlib(line: bytes, number: int) -> NumberedRow:
    """A line that orjson rejected: its fault, and its value if it can be determined."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return (
            number,
            None,
            (
                "not-utf8",
                f"is not UTF-8: line {number}, byte {error.start + 1} is {line[error.start]:#04x}",
            ),
        )
    constants = _Constants()
    try:
        value = constants.decoder.decode(text)
    except json.JSONDecodeError as error:
        return (
            number,
            None,
            ("malformed-json", f"is not JSON: line {number} column {error.colno}: {error.msg}"),
        )
    except RecursionError:
        return (
            number,
            None,
            ("malformed-json", f"is not JSON: line {number} column 1: nested too deeply"),
        )
    except ValueError as error:
        return number, None, ("malformed-json", f"is not JSON: line {number} column 1: {error}")
    return number, value, constants.fault()
