"""Consistency checks of a Whisper folder in the format of transformers or CTranslate2, before
either loads it.

    model.bin   version, spec name, spec revision, count; then for each weight its name, rank,
                dimensions, dtype, byte count, data; then the number of aliases and two names for
                each. Numbers are little-endian; a string is preceded by its length (2 bytes) and
                null-terminated (ctranslate2/specs/model_spec.py). The header is interleaved with
                the data and is read by seeking.

CTranslate2 uses the ids of tokens, languages and suppressed tokens as indices without a bounds
check.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import PartError
from ..safe_parsing import MAX_DEPTH, nesting_depth, read_bounded_json
from .files import check_regular_file
from .headers import MAX_TENSORS
from .sandbox import check_whisper_opens

MODEL_BIN, VOCABULARY_FILE = "model.bin", "vocabulary.json"
SPEC_NAME, MAX_SPEC_VERSION = "WhisperSpec", 6  # the version that CTranslate2 4 writes and reads
# float32, int8, int16, int32, float16, bfloat16 (ctranslate2/specs/model_spec.py)
CTRANSLATE2_DTYPE_BYTES = (4, 1, 2, 4, 2, 2)
MAX_NAME_LENGTH, MAX_RANK = 1000, 8
MAX_WHISPER_VOCABULARY_BYTES = 64_000_000  # bytes of vocabulary.json; large-v3's has one million
REQUIRED_TOKENS = ("<|startoftranscript|>", "<|endoftext|>", "<|transcribe|>", "<|notimestamps|>")
_TOKEN_ID_LISTS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "suppress_ids",
    "suppress_ids_begin",
    "lang_ids",
)
# defaults for absent keys
FRONT_END_DEFAULTS = {
    "feature_size": 80,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "chunk_length": 30,
}


@dataclass(frozen=True, slots=True)
class WhisperShape:
    """Dimensions of a Whisper, from its weights: vocabulary rows, mel bins, encoder positions,
    decoder layers and heads.
    """

    vocab_size: int
    num_mel_bins: int
    max_source_positions: int
    decoder_layers: int
    decoder_attention_heads: int


def read_model_bin(folder: Path) -> dict[str, tuple[int, ...]]:
    """Dimensions of every weight by name. Raises PartError for a damaged model.bin."""
    path = folder / MODEL_BIN
    found: dict[str, tuple[int, ...]] = {}
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (version,) = struct.unpack("<I", file.read(4))
            spec = _text(file)
            _, count = struct.unpack("<II", file.read(8))
            if version > MAX_SPEC_VERSION or spec != SPEC_NAME or not 0 < count <= MAX_TENSORS:
                raise _damaged_error(
                    folder, f"version {version} of {spec[:60]!r} with {count:,} weights"
                )
            for _ in range(count):
                name, rank = _text(file), file.read(1)[0]
                if rank > MAX_RANK or name in found:
                    raise _damaged_error(folder, f"{name[:60]!r} of rank {rank}, or twice")
                dimensions = struct.unpack(f"<{rank}I", file.read(4 * rank))
                kind, length = struct.unpack("<BI", file.read(5))
                if kind >= len(CTRANSLATE2_DTYPE_BYTES) or length != CTRANSLATE2_DTYPE_BYTES[
                    kind
                ] * math.prod(dimensions):
                    raise _damaged_error(
                        folder, f"{name[:60]!r} of type {kind}, {dimensions} in {length:,} bytes"
                    )
                if file.tell() + length > size:
                    raise _damaged_error(folder, "a model.bin that ends too soon")
                file.seek(length, os.SEEK_CUR)
                found[name] = dimensions
            (aliases,) = struct.unpack("<I", file.read(4))
            if aliases > MAX_TENSORS:
                raise _damaged_error(folder, f"{aliases:,} aliases")
            for _ in range(aliases):
                alias, name = _text(file), _text(file)
                if name not in found:
                    raise _damaged_error(folder, f"an alias of {name[:60]!r}, which is not there")
                found[alias] = found[name]
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise _damaged_error(folder, "a model.bin that ends too soon") from error
    return found


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    if not 0 < length <= MAX_NAME_LENGTH:
        raise struct.error("no name")
    return file.read(length).rstrip(b"\0").decode()


def _damaged_error(folder: Path, got: str) -> PartError:
    return PartError(f"the converted Whisper {folder} is damaged", got=got, do="Convert it again")


def check_converted(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise PartError unless CTranslate2 can transcribe with the folder.

    Its files are validated first; then it transcribes in a subprocess.
    """
    read: dict[str, Any] = {}
    for path in sorted((folder / MODEL_BIN, *folder.glob("*vocabulary.*"))):
        check_regular_file(path, folder)
        if path.suffix == ".json":
            read[path.name] = read_bounded_json(path, PartError, MAX_WHISPER_VOCABULARY_BYTES)
        elif path.name != MODEL_BIN and path.stat().st_size > MAX_WHISPER_VOCABULARY_BYTES:
            raise PartError(
                f"{path} cannot be read",
                got=f"{path.stat().st_size:,} bytes",
                wanted=f"at most {MAX_WHISPER_VOCABULARY_BYTES:,}",
            )
    words = read.get(VOCABULARY_FILE)
    if words is not None and not (
        isinstance(words, list) and all(isinstance(word, str) for word in words)
    ):
        raise PartError(
            f"{folder / VOCABULARY_FILE} holds no words",
            wanted="a list of texts",
            do="Convert it again",
        )
    weights = read_model_bin(folder)
    try:
        rows, _ = weights["decoder/embeddings/weight"]
        _, bins, _ = weights["encoder/conv1/weight"]
        positions, _ = weights["encoder/position_encodings/encodings"]
    except (KeyError, ValueError) as error:
        raise _damaged_error(folder, f"no Whisper's weights: {error}") from error
    _check_names(folder, weights)
    layers = len({name.split("/")[1] for name in weights if name.startswith("decoder/layer_")})
    shape = WhisperShape(rows, bins, positions, layers, 1 << 10)
    check_consistent(folder, documents, shape)
    _check_config(folder / "config.json", documents["config.json"], shape)
    sot = _tokens(documents["tokenizer.json"])[REQUIRED_TOKENS[0]]
    check_whisper_opens(folder / MODEL_BIN, bins=bins, frames=2 * positions, prompt=sot)


def _check_names(folder: Path, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Raise PartError for a weight that CTranslate2 would ignore silently.

    That is one with an unknown name, or one of a pair whose partner is missing.
    """
    for name, dimensions in weights.items():
        place, _, kind = name.rpartition("/")
        pair = {"gamma": "beta", "beta": "gamma", "bias": "weight", "weight": "bias"}.get(kind)
        alone = (
            pair is not None
            and not place.endswith(("embeddings", "projection"))
            and f"{place}/{pair}" not in weights
        )
        if alone or (
            dimensions
            and pair is None
            and kind not in ("encodings", "weight_scale", "weight_zero", "alignment_heads")
        ):
            raise _damaged_error(
                folder, f"the weight {name[:200]}{f' without {pair}' if alone else ''}"
            )


def check_consistent(
    folder: Path, documents: Mapping[str, Mapping[str, Any]], shape: WhisperShape
) -> None:
    """Raise PartError unless the tokenizer, the feature extractor and the suppressed tokens fit the
    weights.
    """
    ids = _tokens(documents["tokenizer.json"])
    lacking = [token for token in REQUIRED_TOKENS if token not in ids]
    if lacking or max(ids.values()) >= shape.vocab_size:
        got = f"no {lacking[0]}" if lacking else f"the id {max(ids.values()):,}"
        raise PartError(
            f"the tokenizer of {folder} is no Whisper's",
            got=got,
            wanted=f"its tokens, below {shape.vocab_size:,}",
        )
    told = documents.get("preprocessor_config.json", {})
    front = {key: told.get(key, usual) for key, usual in FRONT_END_DEFAULTS.items()}
    frames = front["chunk_length"] * front["sampling_rate"] // front["hop_length"]
    if (
        front["feature_size"] != shape.num_mel_bins
        or frames > 2 * shape.max_source_positions
        or front["sampling_rate"] != FRONT_END_DEFAULTS["sampling_rate"]
    ):
        raise PartError(
            f"preprocessor_config.json of {folder} does not fit its weights",
            got=f"{front['feature_size']} bins, {frames:,} frames at {front['sampling_rate']:,} Hz",
            wanted=(
                f"{shape.num_mel_bins} bins, at most {2 * shape.max_source_positions:,} frames at"
                f" {FRONT_END_DEFAULTS['sampling_rate']:,} Hz"
            ),
        )
    _check_config(
        folder / "generation_config.json", documents.get("generation_config.json", {}), shape
    )


def _tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    return {
        **tokenizer["model"]["vocab"],
        **{one["content"]: one["id"] for one in tokenizer.get("added_tokens", [])},
    }


def _check_config(path: Path, document: Mapping[str, Any], shape: WhisperShape) -> None:
    def are_ids(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) <= shape.vocab_size
            and all(type(one) is int and 0 <= one < shape.vocab_size for one in value)
        )

    for key in _TOKEN_ID_LISTS:
        value = document.get(key)
        if value is not None and not are_ids(value):
            raise PartError(
                f"{path} names no tokens of this Whisper",
                got=f"{key} {str(value)[:120]}",
                wanted=f"ids below {shape.vocab_size:,}",
            )
    languages = document.get("lang_to_id")
    if languages is not None and not (
        isinstance(languages, dict) and are_ids(list(languages.values()))
    ):
        raise PartError(
            f"{path} names no tokens of this Whisper",
            got=f"lang_to_id {str(languages)[:120]}",
            wanted="ids by language",
        )
    heads = document.get("alignment_heads")
    places = isinstance(heads, list) and all(
        isinstance(one, list) and len(one) == 2 and all(type(n) is int for n in one)
        for one in heads
    )
    if heads is not None and not (
        places
        and all(
            0 <= i < shape.decoder_layers and 0 <= j < shape.decoder_attention_heads
            for i, j in heads
        )
    ):
        raise PartError(
            f"{path} names no heads of this Whisper",
            got=f"alignment_heads {str(heads)[:120]}",
            wanted="pairs of layer and head",
        )
    if nesting_depth(dict(document)) > MAX_DEPTH:
        raise PartError(f"{path} is nested too deeply")
