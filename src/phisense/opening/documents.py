"""Bounded reading of a model folder's JSON files: none can hang the process, exhaust its memory, or
hold values that no reader expects.

What is rejected here would otherwise be a traceback, an endless loop or gigabytes of memory inside
the libraries that read the file a second time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from ..artifacts import detect_file_type
from ..errors import PartError

MAX_JSON_FILE_BYTES = 4_000_000  # Phi-3's tokenizer_config.json has 3,311
MAX_VOCABULARY_BYTES = 64_000_000  # of tokenizer.json or an index; Gemma's has 33 million
MAX_CONFIG_DEPTH = 24
MAX_CONFIG_NODES = 200_000  # values in a configuration
MAX_STRING_LENGTH = 4096
MAX_TEMPLATE_LENGTH = 65_536  # characters of a chat template
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json")
#: Vocabulary files: strings of any length, some files a JSON array. The strings of those that are
#: loaded are checked by `check_string_lengths`.
_WORD_LIST_FILES = (*VOCABULARY_FILES, "normalizer.json", "tekken.json")
#: transformers writes int(1e30) where a tokenizer has no limit.
_UNLIMITED = ("model_max_length",)


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; an empty one for a vocabulary file that holds an array.

    Raises PartError for a file that holds no object, is too large or nested too deeply, or has
    numbers that are not finite or exceed 2^53.
    """
    large = path.name in VOCABULARY_FILES or path.name.endswith(".index.json")
    most = MAX_VOCABULARY_BYTES if large else MAX_JSON_FILE_BYTES
    try:
        size = path.stat().st_size
        if size > most:
            raise _unreadable_error(path, f"{size:,} bytes", f"at most {most:,}")
        found: Any = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        kind = detect_file_type(path)
        if kind is not None:
            raise PartError(
                f"{path} is no JSON", got=f"a file that is {kind.name}", do=kind.do
            ) from error
        raise _unreadable_error(path, str(error).splitlines()[0]) from error
    words = path.name in _WORD_LIST_FILES
    if words and path.name != "tokenizer.json" and isinstance(found, list):
        _check_bounds(path, {"": found}, 40 * MAX_CONFIG_NODES, texts=False)
        return {}
    if not isinstance(found, dict):
        raise _unreadable_error(path, f"a JSON {type(found).__name__}", "an object")
    _check_bounds(
        path, found, 40 * MAX_CONFIG_NODES if large else MAX_CONFIG_NODES, texts=not words
    )
    return dict(found)


def check_string_lengths(path: Path, document: Mapping[str, object]) -> None:
    """Raise PartError for a string in a vocabulary file that is longer than any model needs."""
    _check_bounds(path, document, 40 * MAX_CONFIG_NODES, texts=True)


def _check_bounds(path: Path, document: Mapping[str, object], nodes: int, *, texts: bool) -> None:
    """Walk the document level by level, without recursion."""
    level: list[tuple[str, object]] = list(document.items())
    seen = 0
    for _ in range(MAX_CONFIG_DEPTH):
        below: list[tuple[str, object]] = []
        for key, value in level:
            if isinstance(value, dict):
                below += value.items()
            elif isinstance(value, list):
                below += [(key, one) for one in value]
            elif not isinstance(value, bool) and isinstance(value, (int, float)):
                _check_number(path, key, value)
            elif (
                texts
                and isinstance(value, str)
                and len(value) > (MAX_TEMPLATE_LENGTH if "template" in key else MAX_STRING_LENGTH)
            ):
                raise _unreadable_error(path, f"{key[:60]} of {len(value):,} characters")
        seen += len(level)
        if seen + len(below) > nodes:
            raise _unreadable_error(path, f"more than {nodes:,} values")
        if not below:
            return
        level = below
    raise _unreadable_error(path, f"values nested more than {MAX_CONFIG_DEPTH} deep")


def _check_number(path: Path, key: str, value: float) -> None:
    if key not in _UNLIMITED and not (math.isfinite(value) and abs(value) <= 2**53):
        raise _unreadable_error(path, f"{key[:60]} {value:g}", "numbers of at most 2^53")


def _unreadable_error(path: Path, got: str, wanted: str | None = None) -> PartError:
    return PartError(f"{path} cannot be read", got=got, wanted=wanted)
