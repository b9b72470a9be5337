"""What this machine computes with: its devices, their instructions, and the number formats that those multiply in."""

from __future__ import annotations

import functools
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError

# What hides instructions from PyTorch hides them from oneDNN, too: else attention in bfloat16 packs for the one's kernels, runs the other's
# and fails ("pack_vnni2"). oneDNN reads this when it first computes.
if (_hidden := {"avx2": "AVX2", "default": "SSE41"}.get(os.environ.get("ATEN_CPU_CAPABILITY", ""))) is not None:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", _hidden)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Instructions that change which kernels run, as Linux names them.
_TOLD = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
_LIBRARIES = ("phisense", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


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


def format_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16, and PyTorch was not told to leave them alone.

    `ATEN_CPU_CAPABILITY=avx2` hides them: PyTorch then reports a capability below AVX512.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def peak_memory() -> int | None:
    """The most bytes that this process held so far: of the GPU where there is one, else of the machine; None where nothing tells."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code: `processor`, `instructions`, what of them PyTorch uses (`capability`), `threads`,
    versions of `libraries`, and a GPU's name."""
    processor, instructions = _processor()
    facts: dict[str, Any] = {
        "processor": processor,
        "instructions": list(instructions),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts["gpu"] = f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}"
    return facts


@functools.cache
def _processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and those of its instructions that are worth telling."""
    told = Path("/proc/cpuinfo")
    if not told.is_file():
        return platform.processor() or platform.machine(), ()
    lines = [line.split(":", 1) for line in told.read_text(errors="replace").split("\n\n")[0].splitlines() if ":" in line]
    facts = {key.strip().lower(): value.strip() for key, value in lines}
    has = set(facts.get("flags", facts.get("features", "")).split())
    return facts.get("model name", platform.machine()), tuple(name for name in _TOLD if name in has)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
