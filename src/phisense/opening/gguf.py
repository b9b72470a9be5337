"""Validator of a GGUF text model by its header, before llama.cpp opens the file: it must be a file
as `export` writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PartError
from ..families import GGUFFormat, gguf_formats
from .gguf_header import GGUFHeader, read_gguf_header

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


def _format_of(path: Path, keys: Mapping[str, Any]) -> GGUFFormat:
    """The format of a language family with the file's architecture. Raises PartError for others."""
    told = keys.get("general.architecture")
    known = {one.architecture: one for one in gguf_formats()}
    if not isinstance(told, str) or told not in known:
        raise _unexpected_value(path, f"general.architecture {str(told)[:60]}", " or ".join(known))
    return known[told]


@dataclass(frozen=True, slots=True)
class _ModelSizes:
    width: int
    mlp: int
    heads: int
    key_heads: int
    rope_dimensions: int
    blocks: int


def _sizes(path: Path, keys: Mapping[str, Any], architecture: str) -> _ModelSizes:
    """The sizes of the model, from the keys of its architecture.

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
    return _ModelSizes(
        width=width,
        mlp=own["feed_forward_length"],
        heads=heads,
        key_heads=groups,
        rope_dimensions=turned,
        blocks=own["block_count"],
    )


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
    header: GGUFHeader, sizes: _ModelSizes, made_as: GGUFFormat
) -> dict[str, tuple[int, ...]]:
    """Expected tensor shapes of a model with these hyperparameters, by name."""
    width = sizes.width
    rows = len(header.keys["tokenizer.ggml.tokens"])
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, rows),
        "output_norm.weight": (width,),
    }
    if "output.weight" in header.tensors:  # else the embedding is the output matrix, too
        wanted["output.weight"] = (width, rows)
    if any(name.startswith("rope_factors") for name in header.tensors):
        wanted |= {
            f"rope_factors_{length}.weight": (sizes.rope_dimensions // 2,)
            for length in ("long", "short")
        }
    head = width // sizes.heads
    block = made_as.block_shapes(width, sizes.mlp, sizes.heads, sizes.key_heads, head)
    return wanted | {
        f"blk.{layer}.{name}" + ("" if name.endswith(".bias") else ".weight"): shape
        for layer in range(sizes.blocks)
        for name, shape in block.items()
    }


def _unexpected_value(path: Path, got: str, wanted: str) -> PartError:
    return PartError(
        f"{path} is no text model of phisense export",
        got=got,
        wanted=wanted,
        do="Run phisense export again",
    )
