"""Bounded reader of the header of a GGUF file, run before llama.cpp opens it.

    "GGUF"  version  tensor count  key count                4 + 4 + 8 + 8 bytes, little-endian
    for each key: name, type, value                         a string is preceded by its length
                                                            (8 bytes), an array by its type and
                                                            length
    for each tensor: name, rank, dimensions, type, offset   the first dimension is the row length
    data, aligned                                           offsets are relative to its start

Layout: ggml's docs/gguf.md, version 3. Block sizes: gguf-py's GGML_QUANT_SIZES.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import PartError

MAX_GGUF_TENSORS, MAX_GGUF_KEYS, MAX_GGUF_ARRAY_LENGTH, MAX_GGUF_STRING_BYTES = (
    20_000,
    512,
    1 << 21,
    1 << 20,
)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9
#: ggml's tensor types by number: name, values per block, bytes per block.
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Description of a tensor: `shape` in file order (row length first), `size` in bytes."""

    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata and tensor descriptions of a GGUF file."""

    keys: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header.

    Raises PartError unless every length, count, type and offset is valid for the file.
    """
    if not path.is_file():
        raise PartError(
            f"{path} cannot be read",
            got="no such file",
            do="Run phisense export again, or download it again",
        )
    try:
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except (struct.error, UnicodeDecodeError, OSError) as error:
        raise _damaged_error(
            path, f"an end or a text in the middle of its header: {error}"
        ) from error


def _read(path: Path, file: BinaryIO, size: int) -> GGUFHeader:
    magic, version, tensors, keys = struct.unpack("<4sIQQ", _take(file, 24))
    if magic != b"GGUF" or version != 3:
        raise _damaged_error(path, f"{magic!r}, version {version}", "GGUF, version 3")
    if tensors > MAX_GGUF_TENSORS or keys > MAX_GGUF_KEYS:
        raise _damaged_error(
            path,
            f"{tensors:,} tensors and {keys:,} keys",
            f"at most {MAX_GGUF_TENSORS:,} and {MAX_GGUF_KEYS}",
        )
    told: dict[str, Any] = {}
    for _ in range(keys):
        name = _text(path, file, size)
        if name in told:
            raise _damaged_error(path, f"the key {name[:80]} twice")
        told[name] = _value(path, file, size, *struct.unpack("<I", _take(file, 4)))
    alignment = told.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in (
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
        2048,
        4096,
    ):
        raise _damaged_error(path, f"general.alignment {alignment}", "a power of two")
    found: dict[str, GGUFTensor] = {}
    for _ in range(tensors):
        name = _text(path, file, size)
        if name in found or len(name) >= 64:  # GGML_MAX_NAME
            raise _damaged_error(path, f"the tensor {name[:80]}, twice or with too long a name")
        found[name] = _tensor(path, file, name, alignment)
    begin = -(-file.tell() // alignment) * alignment
    end = 0
    for name, one in sorted(found.items(), key=lambda item: item[1].offset):
        if one.offset != end:
            raise _damaged_error(
                path,
                f"the tensor {name[:80]} at byte {one.offset:,} of the data",
                f"{end:,}, behind the one before",
            )
        end = -(-(one.offset + one.size) // alignment) * alignment
    if found and begin + max(one.offset + one.size for one in found.values()) > size:
        raise _damaged_error(path, f"{size:,} bytes", f"{begin + end:,}, which its header tells of")
    return GGUFHeader(told, found)


def _tensor(path: Path, file: BinaryIO, name: str, alignment: int) -> GGUFTensor:
    (rank,) = struct.unpack("<I", _take(file, 4))
    if not 1 <= rank <= 4:
        raise _damaged_error(path, f"the tensor {name[:80]} of rank {rank}")
    *shape, kind, offset = struct.unpack(f"<{rank}QIQ", _take(file, 8 * rank + 12))
    if kind not in GGML_TYPES or not all(0 < one < 1 << 32 for one in shape):
        raise _damaged_error(
            path, f"the tensor {name[:80]} of type {kind} and shape {tuple(shape)}"
        )
    called, block, width = GGML_TYPES[kind]
    if shape[0] % block or offset % alignment:
        raise _damaged_error(
            path,
            f"the tensor {name[:80]} of shape {tuple(shape)} in {called}, at {offset:,}",
            f"rows of blocks of {block}",
        )
    return GGUFTensor(tuple(shape), called, offset, math.prod(shape) // block * width)


def _value(path: Path, file: BinaryIO, size: int, kind: int) -> Any:
    if kind == _TEXT:
        return _text(path, file, size)
    if kind == _LIST:
        inner, count = struct.unpack("<IQ", _take(file, 12))
        if count > MAX_GGUF_ARRAY_LENGTH or (inner not in _SCALARS and inner != _TEXT):
            raise _damaged_error(path, f"a list of {count:,} of type {inner}")
        if inner == _TEXT:
            return [_text(path, file, size) for _ in range(count)]
        code = f"<{count}{_SCALARS[inner]}"
        return list(struct.unpack(code, _take(file, struct.calcsize(code))))
    if kind not in _SCALARS:
        raise _damaged_error(path, f"a value of type {kind}")
    (value,) = struct.unpack(
        f"<{_SCALARS[kind]}", _take(file, struct.calcsize(f"<{_SCALARS[kind]}"))
    )
    if isinstance(value, float) and not math.isfinite(value):
        raise _damaged_error(path, f"a key of value {value:g}", "a number")
    return value


def _text(path: Path, file: BinaryIO, size: int) -> str:
    (length,) = struct.unpack("<Q", _take(file, 8))
    if length > min(MAX_GGUF_STRING_BYTES, size - file.tell()):
        raise _damaged_error(path, f"a text of {length:,} bytes at byte {file.tell():,}")
    return _take(file, length).decode()


def _take(file: BinaryIO, count: int) -> bytes:
    """Read `count` bytes; raises struct.error at the end of the file, as `struct.unpack` would."""
    data = file.read(count)
    if len(data) != count:
        raise struct.error("the file ends")
    return data


def _damaged_error(path: Path, got: str, wanted: str | None = None) -> PartError:
    return PartError(
        f"{path} is no whole GGUF file",
        got=got,
        wanted=wanted,
        do="Run phisense export again, or download it again",
    )
