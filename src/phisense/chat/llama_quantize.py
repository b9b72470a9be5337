"""llama.cpp's quantization of a whole file, and its reverse."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError
from .llama_context import capture_errors

#: By tensor: mean squares of its inputs, one for each number of a row.
Importance = Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]
_FLOAT32 = 0  # file type, and tensor type


def quantize_file(
    source: Path,
    target: Path,
    file_type: int,
    *,
    threads: int,
    importance: Importance | None = None,
) -> None:
    """Write `target` with the tensors that llama.cpp chooses for `file_type`. Raises ArtifactError,
    with its message, if it fails.
    """
    import llama_cpp

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread = file_type, threads
    # `entries` and `values` own the memory that llama.cpp reads
    values = {name.encode(): np.ascontiguousarray(one) for name, one in (importance or {}).items()}
    if values:
        entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for entry, (name, one) in zip(entries, values.items(), strict=False):
            entry.name, entry.size = name, one.size
            entry.data = one.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        how.imatrix = entries
    _run(source, target, how, f"quantize {source.name} to file type {file_type}")


def widen_file(source: Path, target: Path, *, threads: int) -> None:
    """Write `target` with every tensor in float32, as llama.cpp itself dequantizes it.

    Raises ArtifactError, with its message, if it fails.
    """
    import llama_cpp

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread, how.allow_requantize = _FLOAT32, threads, True
    how.output_tensor_type = how.token_embedding_type = _FLOAT32
    _run(source, target, how, f"widen {source.name}")


def _run(source: Path, target: Path, how: Any, what: str) -> None:
    import llama_cpp

    with capture_errors() as heard:
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(how)
        )
    if code != 0:
        raise ArtifactError(
            f"llama.cpp could not {what}",
            got=heard.last or f"code {code}",
            do="Free some space",
        )
