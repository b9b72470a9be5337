"""Validator of a GGUF text model by its header, before llama.cpp opens the file: it must be a file
as `export` writes it, or, to be imported, one of a language family's architecture.
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
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "attention.sliding_window",
)
#: Required keys that other converters leave out, and further ones that they write.
_IMPLIED_KEYS, _FOREIGN_KEYS = ("attention.head_count_kv", "rope.dimension_count"), ("vocab_size",)
_GENERAL = re.compile(r"general\.(?!alignment)|tokenizer\.|quantize\.imatrix\.")


@dataclass(frozen=True, slots=True)
class GGUFSizes:
    """Sizes of a model in a GGUF file; `head` is the width of a head, `rope_dimensions` how many
    of its numbers are rotated.
    """

    width: int
    mlp: int
    heads: int
    key_heads: int
    head: int
    rope_dimensions: int
    blocks: int


def validate_gguf(path: Path) -> GGUFHeader:
    """Read and validate the header of a text model.

    Raises PartError for a damaged file, or one that `phisense export` would not write.
    """
    header = read_gguf_header(path)
    try:
        _validate(header, foreign=False)
    except _Unfit as error:
        raise PartError(
            f"{path} is no text model of phisense export",
            got=error.got,
            wanted=error.wanted,
            do="Run phisense export again",
        ) from error
    return header


def validate_foreign_gguf(path: Path) -> tuple[GGUFHeader, GGUFFormat, GGUFSizes]:
    """Read and validate the header of a file that another converter wrote.

    Raises PartError for a damaged file, an architecture that no language family has, or a key or
    tensor that would have to mean something and that is not known here.
    """
    header = read_gguf_header(path)
    try:
        return header, *_validate(header, foreign=True)
    except _Unfit as error:
        raise PartError(
            f"{path} cannot be imported as a language part",
            got=error.got,
            wanted=error.wanted,
            do="Take a file that holds one whole language model",
        ) from error


def _validate(header: GGUFHeader, *, foreign: bool) -> tuple[GGUFFormat, GGUFSizes]:
    """Check keys, vocabulary and tensors against each other."""
    made_as = _format_of(header.keys)
    sizes = _sizes(header.keys, made_as.architecture, foreign=foreign)
    _check_vocabulary(header.keys)
    wanted = _shapes(header, sizes, made_as)
    found = {name: one.shape for name, one in header.tensors.items()}
    odd = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if odd:
        name = odd[0]
        raise _Unfit(
            f"tensor {name[:80]} of shape {found.get(name, 'none')}",
            f"{wanted.get(name, 'no such tensor')}",
        )
    return made_as, sizes


def _format_of(keys: Mapping[str, Any]) -> GGUFFormat:
    """The format of a language family with the file's architecture. Raises _Unfit for others."""
    told = keys.get("general.architecture")
    known = {one.architecture: one for one in gguf_formats()}
    if not isinstance(told, str) or told not in known:
        raise _Unfit(f"general.architecture {str(told)[:60]}", " or ".join(known))
    return known[told]


def _sizes(keys: Mapping[str, Any], architecture: str, *, foreign: bool) -> GGUFSizes:
    """The sizes of the model, from the keys of its architecture.

    Raises _Unfit unless all required keys are present and consistent.
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
        prefix + name
        for name in own.keys()
        - _REQUIRED_KEYS.keys()
        - {*_OPTIONAL_KEYS, *(_FOREIGN_KEYS if foreign else ())}
    )
    if strange:
        raise _Unfit(f"the key {strange[0][:80]}", "a key that is known here")
    if foreign:
        own = _imply(own)
    for name, kind in _REQUIRED_KEYS.items():
        value = own.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < float(value) < 1 << 24:
            raise _Unfit(f"{prefix}{name} {str(value)[:40]}", "a number above 0")
    for name in _OPTIONAL_KEYS:
        if name in own and (
            isinstance(own[name], bool)
            or not isinstance(own[name], (int, float))
            or not 0 <= own[name] < 1e12
        ):
            raise _Unfit(f"{prefix}{name} {str(own[name])[:40]}", "a number")
    heads, groups, width, turned = (
        own[name]
        for name in (
            "attention.head_count",
            "attention.head_count_kv",
            "embedding_length",
            "rope.dimension_count",
        )
    )
    head = own.get("attention.key_length") or width // heads
    together = (
        (width % heads == 0 or "attention.key_length" in own)
        and own.get("attention.value_length", head) == head
        and type(head) is int
        and heads % groups == 0
        and turned % 2 == 0
        and turned <= head < 1 << 16
        and own["block_count"] <= 512
    )
    if not together or own["attention.layer_norm_rms_epsilon"] >= 1:
        raise _Unfit(
            f"{heads} heads, {groups} of keys, width {width}, {turned} dimensions turned",
            "sizes that go together",
        )
    return GGUFSizes(
        width=width,
        mlp=own["feed_forward_length"],
        heads=heads,
        key_heads=groups,
        head=head,
        rope_dimensions=turned,
        blocks=own["block_count"],
    )


def _imply(own: dict[str, Any]) -> dict[str, Any]:
    """The keys, with what llama.cpp takes for those that are left out: as many heads of keys as of
    queries, and whole heads that are rotated.
    """
    heads, width = own.get("attention.head_count"), own.get("embedding_length")
    head = own.get("attention.key_length")
    if head is None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        head = width // heads
    implied = dict(zip(_IMPLIED_KEYS, (heads, head), strict=True))
    return {**implied, **own}


def _check_vocabulary(keys: Mapping[str, Any]) -> None:
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
        raise _Unfit(f"tokenizer.ggml.model {str(model)[:40]}", "llama or gpt2, with its tokens")
    if (
        not isinstance(kinds, list)
        or len(kinds) != len(pieces)
        or not all(type(one) is int and 0 < one <= 6 for one in kinds)
    ):
        raise _Unfit(
            "tokenizer.ggml.token_type of other length or kinds",
            f"{len(pieces)} numbers of 1 to 6",
        )
    scores, merges = keys.get("tokenizer.ggml.scores"), keys.get("tokenizer.ggml.merges")
    if scores is not None and (
        not isinstance(scores, list)
        or len(scores) != len(pieces)
        or not all(map(_is_number, scores))
    ):
        raise _Unfit("tokenizer.ggml.scores of other length", f"{len(pieces)} numbers")
    if (scores is None and model == "llama") or (model == "gpt2" and not isinstance(merges, list)):
        raise _Unfit("no scores or merges", "those of the vocabulary")
    if isinstance(merges, list) and not all(
        isinstance(one, str) and " " in one[1:] for one in merges
    ):
        raise _Unfit("tokenizer.ggml.merges that are none", "pairs of pieces")
    for name, value in keys.items():
        if (
            name.startswith("tokenizer.ggml.")
            and name.endswith("_token_id")
            and not (type(value) is int and 0 <= value < len(pieces))
        ):
            raise _Unfit(f"{name} {str(value)[:40]}", f"0 to {len(pieces) - 1}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _shapes(
    header: GGUFHeader, sizes: GGUFSizes, made_as: GGUFFormat
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
    if "rope_freqs.weight" in header.tensors:  # Llama 3's factors
        wanted["rope_freqs.weight"] = (sizes.rope_dimensions // 2,)
    block = made_as.block_shapes(width, sizes.mlp, sizes.heads, sizes.key_heads, sizes.head)
    return wanted | {
        f"blk.{layer}.{name}" + ("" if name.endswith(".bias") else ".weight"): shape
        for layer in range(sizes.blocks)
        for name, shape in block.items()
    }


class _Unfit(Exception):  # noqa: N818, translated for whoever asked
    """What a header says, and what it should."""

    def __init__(self, got: str, wanted: str) -> None:
        super().__init__(got)
        self.got, self.wanted = got, wanted
