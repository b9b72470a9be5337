"""Bounded reader and validator of a GGUF header, run before llama.cpp opens the file: it must be a
file as `export` writes it.

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
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import PartError
from ..families import GGUFFormat, gguf_formats

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
_REQUIRED_KEYS: dict[str, type[int] | type[float]] = {
    "context_length": int,
    "embedding_length": int,
    "feed_forward_length": int,
    "block_count": int,
    "attention.head_count": int,
    "attention.head_count_kv": int,
    "attention.layer_norm_rms_epsilon": float,
    "rope.dimension_count": int,
}
_OPTIONAL_KEYS = (
    "rope.freq_base",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "attention.sliding_window",
)
_GENERAL = re.compile(r"general\.(?!alignment)|tokenizer\.")


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


def validate_gguf(path: Path) -> GGUFHeader:
    """Read and validate the header of a text model.

    Raises PartError for a damaged file, or one that `phisense export` would not write.
    """
    header = read_gguf_header(path)
    made_as = _format_of(path, header.keys)
    sizes = _sizes(path, header.keys, made_as.architecture)
    _check_vocabulary(path, header.keys)
    wanted = _shapes(header, sizes, made_as)
    found = {name: one.shape for name, one in header.tensors.items()}
    odd = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if odd:
        name = odd[0]
        raise _unexpected_value(
            path,
            f"tensor {name[:80]} of shape {found.get(name, 'none')}",
            f"{wanted.get(name, 'no such tensor')}",
        )
    return header


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header.

    Raises PartError unless every length, count, type and offset is valid for the file.
    """
    if not path.is_file():
        raise PartError(
            f"{path} cannot be read", got="no such file", do="Run phisense export again"
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


def _format_of(path: Path, keys: Mapping[str, Any]) -> GGUFFormat:
    """The format of a language family with the file's architecture. Raises PartError for others."""
    told = keys.get("general.architecture")
    known = {one.architecture: one for one in gguf_formats()}
    if not isinstance(told, str) or told not in known:
        raise _unexpected_value(path, f"general.architecture {str(told)[:60]}", " or ".join(known))
    return known[told]


def _sizes(path: Path, keys: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The keys of the architecture, without its prefix.

    Raises PartError unless all required keys are present and consistent.
    """
    prefix = f"{architecture}."
    own = {
        name.removeprefix(prefix): value for name, value in keys.items() if name.startswith(prefix)
    }
    strange = sorted(
        name
        for name in keys
        if not name.startswith(prefix) and not _GENERAL.match(name) and name != "general.alignment"
    )
    strange += sorted(
        prefix + name for name in own.keys() - _REQUIRED_KEYS.keys() - set(_OPTIONAL_KEYS)
    )
    if strange:
        raise _unexpected_value(
            path, f"the key {strange[0][:80]}", "those that phisense export writes"
        )
    for name, kind in _REQUIRED_KEYS.items():
        value = own.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < float(value) < 1 << 24:
            raise _unexpected_value(path, f"{prefix}{name} {str(value)[:40]}", "a number above 0")
    for name in _OPTIONAL_KEYS:
        if name in own and (
            isinstance(own[name], bool)
            or not isinstance(own[name], (int, float))
            or not 0 <= own[name] < 1e12
        ):
            raise _unexpected_value(path, f"{prefix}{name} {str(own[name])[:40]}", "a number")
    heads, groups, width, turned = (
        own[name]
        for name in (
            "attention.head_count",
            "attention.head_count_kv",
            "embedding_length",
            "rope.dimension_count",
        )
    )
    together = (
        width % heads == 0
        and heads % groups == 0
        and turned % 2 == 0
        and turned <= width // heads
        and own["block_count"] <= 512
    )
    if not together or own["attention.layer_norm_rms_epsilon"] >= 1:
        raise _unexpected_value(
            path,
            f"{heads} heads, {groups} of keys, width {width}, {turned} dimensions turned",
            "sizes that go together",
        )
    return own


def _check_vocabulary(path: Path, keys: Mapping[str, Any]) -> None:
    """Check that token types, scores or merges match the pieces in number, and that the vocabulary
    has the special tokens.
    """
    model, pieces, kinds = (
        keys.get(f"tokenizer.ggml.{name}") for name in ("model", "tokens", "token_type")
    )
    if (
        model not in ("llama", "gpt2")
        or not isinstance(pieces, list)
        or not all(isinstance(one, str) for one in pieces)
        or not pieces
    ):
        raise _unexpected_value(
            path, f"tokenizer.ggml.model {str(model)[:40]}", "llama or gpt2, with its tokens"
        )
    if (
        not isinstance(kinds, list)
        or len(kinds) != len(pieces)
        or not all(type(one) is int and 0 < one <= 6 for one in kinds)
    ):
        raise _unexpected_value(
            path,
            "tokenizer.ggml.token_type of other length or kinds",
            f"{len(pieces)} numbers of 1 to 6",
        )
    scores, merges = keys.get("tokenizer.ggml.scores"), keys.get("tokenizer.ggml.merges")
    if scores is not None and (
        not isinstance(scores, list)
        or len(scores) != len(pieces)
        or not all(map(_is_number, scores))
    ):
        raise _unexpected_value(
            path, "tokenizer.ggml.scores of other length", f"{len(pieces)} numbers"
        )
    if (scores is None and model == "llama") or (model == "gpt2" and not isinstance(merges, list)):
        raise _unexpected_value(path, "no scores or merges", "those of the vocabulary")
    if isinstance(merges, list) and not all(
        isinstance(one, str) and " " in one[1:] for one in merges
    ):
        raise _unexpected_value(path, "tokenizer.ggml.merges that are none", "pairs of pieces")
    for name, value in keys.items():
        if (
            name.startswith("tokenizer.ggml.")
            and name.endswith("_token_id")
            and not (type(value) is int and 0 <= value < len(pieces))
        ):
            raise _unexpected_value(path, f"{name} {str(value)[:40]}", f"0 to {len(pieces) - 1}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _shapes(
    header: GGUFHeader, own: Mapping[str, Any], made_as: GGUFFormat
) -> dict[str, tuple[int, ...]]:
    """Expected tensor shapes of a model with these hyperparameters, by name."""
    width, heads = own["embedding_length"], own["attention.head_count"]
    rows = len(header.keys["tokenizer.ggml.tokens"])
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, rows),
        "output_norm.weight": (width,),
    }
    if "output.weight" in header.tensors:  # else the embedding is the output matrix, too
        wanted["output.weight"] = (width, rows)
    if any(name.startswith("rope_factors") for name in header.tensors):
        wanted |= {
            f"rope_factors_{length}.weight": (own["rope.dimension_count"] // 2,)
            for length in ("long", "short")
        }
    block = made_as.block_shapes(
        width, own["feed_forward_length"], heads, own["attention.head_count_kv"]
    )
    return wanted | {
        f"blk.{layer}.{name}.weight": shape
        for layer in range(own["block_count"])
        for name, shape in block.items()
    }


def _damaged_error(path: Path, got: str, wanted: str | None = None) -> PartError:
    return PartError(
        f"{path} is no whole GGUF file", got=got, wanted=wanted, do="Run phisense export again"
    )


def _unexpected_value(path: Path, got: str, wanted: str) -> PartError:
    return PartError(
        f"{path} is no text model of phisense export",
        got=got,
        wanted=wanted,
        do="Run phisense export again",
    )
