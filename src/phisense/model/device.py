"""Which device, and in which number format it computes."""

from __future__ import annotations

import sys

import torch

from ..errors import UsageError
from .spans import SPANS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(asked: str = "auto") -> torch.device:
    """`auto` takes a GPU where there is one. Raises UsageError for a device that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError("unknown device", got=asked, wanted="auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", got=asked, wanted="auto or cpu")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it, else float32 (float16 overflows in Phi-3's activations)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def peak_memory() -> int | None:
    """The most bytes that this process held so far: of the GPU where there is one, else of the machine; None where nothing tells."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def training_attention(device: torch.device) -> str:
    """Spans on a CPU, where padding is computed in full; padded rows with a mask on a GPU."""
    return SPANS if device.type == "cpu" else "sdpa"


def _cpu_has_bfloat16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
