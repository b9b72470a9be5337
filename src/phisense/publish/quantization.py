"""Quantization of a GGUF file by llama.cpp, with or without an importance matrix.

`q4_k_m`, `q5_k_m` and `q6_k` have blocks of 256 numbers. Of a matrix whose rows are no multiple of
256 llama.cpp stores other types, in blocks of 32: Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K.

An importance matrix has the mean square of what is multiplied with each column of a matrix, over
texts that the model is used on. Rounding is then chosen so that columns that matter keep more.
`q8_0` and `f16` do not use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..chat.llama_quantize import Importance, quantize_file


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization: llama.cpp's file type, the types of its matrices, whether it takes an
    importance matrix, and the least share of the model's answers that it should leave the same.
    """

    file_type: int
    tensor_types: tuple[str, ...]
    takes_importance: bool
    min_same_answers: float


#: From the smallest to the largest.
QUANTIZATIONS = {
    "q4_k_m": Quantization(15, ("Q4_K", "Q6_K", "Q5_0", "Q8_0"), True, 0.85),
    "q5_k_m": Quantization(17, ("Q5_K", "Q6_K", "Q5_1", "Q8_0"), True, 0.85),
    "q6_k": Quantization(18, ("Q6_K", "Q8_0"), True, 0.85),
    "q8_0": Quantization(7, ("Q8_0",), False, 0.95),
    "f16": Quantization(1, ("F16",), False, 0.95),
}


def quantize(
    source: Path, target: Path, quant: str, threads: int, importance: Importance | None = None
) -> None:
    """Quantize a GGUF file. Raises ArtifactError, with llama.cpp's message, if it fails."""
    chosen = QUANTIZATIONS[quant]
    taken = importance if chosen.takes_importance else None
    quantize_file(source, target, chosen.file_type, threads=threads, importance=taken)
