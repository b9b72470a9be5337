"""Bounded reading of safetensors headers, without loading a weight: names, dtypes, shapes, files.

    8 bytes     length of the header, little-endian
    header      JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__":
                {...}}
    data        the tensors, contiguous

Layout: the README of safetensors. An index, `model.safetensors.index.json`, maps each tensor to
its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..errors import PartError
from ..file_types import HEAD_BYTES, sniff

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 32_000_000  # bytes; Phi-3.5's two headers have 17 thousand together
MAX_TENSORS = 20_000
DTYPE_BYTES = {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
}  # I64: position_ids saved by older versions
#: Dtypes of quantized tensors, which are valid but not the trained weights.
QUANTIZED_DTYPES = (
    "U8",
    "I8",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E8M0",
    "I16",
    "U16",
    "I32",
    "U32",
    "U64",
    "F64",
    "BOOL",
)
# Buffers that older versions saved; they are recomputed.
BUFFER_SUFFIXES = (".position_ids", ".inv_freq")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as described in its file's header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files of a folder: `model.safetensors`, else those in the index, else all."""
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / name for name in indexed_files(folder)]
    return sorted(folder.glob("*.safetensors"))


def indexed_files(folder: Path) -> list[str]:
    """The files that the index names.

    Raises PartError unless each is the plain name of a safetensors file in the folder.
    """
    from .documents import read_json_object

    told = read_json_object(folder / INDEX_FILE).get("weight_map")
    if (
        not isinstance(told, dict)
        or not told
        or not all(isinstance(name, str) for name in told.values())
    ):
        raise PartError(
            f"{folder / INDEX_FILE} names no files",
            got="no weight_map of names",
            do="Download the whole part again",
        )
    names = sorted(set(told.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise PartError(
                f"{folder / INDEX_FILE} names something that is no file of the folder",
                got=name[:200],
                wanted="names of safetensors beside it, without a path",
            )
        if not (folder / name).is_file():
            raise PartError(
                f"{folder} is incomplete",
                got=f"no {name}, which its index names",
                do="Download the whole part again",
            )
    return names


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by name.

    Raises PartError for a damaged safetensors file, an index that disagrees, or quantized weights.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for name, one in read_header(path).items():
            if name in found:
                raise PartError(
                    f"{folder} holds a weight twice",
                    got=f"{name} in {found[name].file.name} and {path.name}",
                )
            found[name] = one
    _check_index(folder, found)
    return found


def _check_index(folder: Path, found: Mapping[str, StoredTensor]) -> None:
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return
    from .documents import read_json_object

    told = read_json_object(folder / INDEX_FILE)["weight_map"]
    assert isinstance(told, dict)  # `indexed_files` has read it
    odd = sorted(
        name
        for name in told.keys() | found.keys()
        if name not in found or told.get(name) != found[name].file.name
    )
    if odd:
        raise PartError(
            f"the index of {folder} does not fit its files",
            got=f"{len(odd)} weights elsewhere or nowhere, such as {odd[0][:200]}",
            do="Download the whole part again",
        )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, from its header.

    Raises PartError, naming the actual file type if the first bytes reveal it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    # The length field may look like any file signature, so signatures are not looked for where a
    # header begins.
    kind = sniff(head) if head[8:9] != b"{" else None
    if kind is not None:
        raise PartError(
            f"{path} is no safetensors file", got=f"one that is {kind.name}", do=kind.do
        )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _damaged_error(
                path,
                (
                    f"a header of {length:,} bytes in a file of {size:,}"
                    if length >= 0
                    else f"{size} bytes"
                ),
            )
        text = file.read(length)
    try:
        told: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _damaged_error(path, f"a header that is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise _damaged_error(path, f"a header that is a JSON {type(told).__name__}")
    told.pop("__metadata__", None)
    if not 0 < len(told) <= MAX_TENSORS:
        raise _damaged_error(path, f"{len(told):,} tensors")
    ranges = sorted((*_range(path, name, one), name) for name, one in told.items())
    end = 0
    for begin, after, name in ranges:
        if begin != end:
            raise _damaged_error(
                path, f"{name[:200]} at byte {begin:,} of the data where {end:,} follows"
            )
        end = after
    if end != size - 8 - length:
        raise _damaged_error(
            path, f"{size - 8 - length:,} bytes of data", f"{end:,}, which its header tells of"
        )
    return {
        name: StoredTensor(path, one["dtype"], tuple(one["shape"])) for name, one in told.items()
    }


def _range(path: Path, name: str, one: Any) -> tuple[int, int]:
    """Byte range of the tensor within the data."""
    if not isinstance(one, dict) or len(name) > 1000:
        raise _damaged_error(path, f"an entry {name[:60]} that is none")
    dtype: Any = one.get("dtype")
    shape: Any = one.get("shape")
    offsets: Any = one.get("data_offsets")
    if dtype in QUANTIZED_DTYPES:
        raise PartError(
            f"the weights in {path.parent} are quantised",
            got=dtype,
            wanted="float32, float16 or bfloat16",
            do="Take the original",
        )
    whole = all(
        isinstance(part, list) and all(type(n) is int and 0 <= n < 2**48 for n in part)
        for part in (shape, offsets)
    )
    if dtype not in DTYPE_BYTES or not whole or len(shape) > 8 or len(offsets) != 2:
        raise _damaged_error(
            path,
            f"{name[:200]} of dtype {str(dtype)[:20]}, shape {str(shape)[:60]}, offsets"
            f" {str(offsets)[:60]}",
        )
    begin, end = offsets
    if end - begin != DTYPE_BYTES[dtype] * math.prod(shape):
        raise _damaged_error(
            path,
            f"{name[:200]} with {end - begin:,} bytes",
            f"{DTYPE_BYTES[dtype] * math.prod(shape):,} for {dtype} {shape}",
        )
    return begin, end


def _damaged_error(path: Path, got: str, wanted: str | None = None) -> PartError:
    return PartError(f"{path} cannot be opened", got=got, wanted=wanted, do="Download it again")
