"""Compute devices of this machine: their instruction sets, supported dtypes and memory."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..errors import UsageError
from ..pipeline.records import Record, omitted

# ATEN_CPU_CAPABILITY hides instructions from PyTorch; hide them from oneDNN, too, or bfloat16
# attention packs for the kernels of one, runs those of the other and fails ("pack_vnni2"). oneDNN
# reads the variable when it first computes.
if (
    _hidden := {"avx2": "AVX2", "default": "SSE41"}.get(os.environ.get("ATEN_CPU_CAPABILITY", ""))
) is not None:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", _hidden)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Instruction sets that change which kernels run, by their names in Linux.
_REPORTED_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)
_LIBRARIES = ("phisense", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


def pick_device(name: str = "auto") -> torch.device:
    """Resolve a device name; `auto` is a GPU if there is one. Raises UsageError for a device that
    does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("unknown device", got=name, wanted="auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", got=name, wanted="auto or cpu")
    return device


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 matmul instructions that PyTorch may use.

    `ATEN_CPU_CAPABILITY=avx2` disables them: PyTorch then reports a capability below AVX512.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def peak_memory() -> int | None:
    """Peak memory of this process in bytes: GPU memory if there is a GPU, else RAM; None if it is
    unknown.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts(Record):
    """What measurements depend on besides the code: the processor, those of its instruction sets
    that are reported, the capability that PyTorch uses, threads, library versions, and the GPU.
    """

    processor: str
    instructions: tuple[str, ...]
    capability: str
    threads: int
    libraries: Mapping[str, str]
    gpu: str | None = omitted()


def describe_machine(device: torch.device) -> MachineFacts:
    """The facts about this machine; `gpu` only if the device is one."""
    processor, instructions = _processor()
    gpu = None
    if device.type == "cuda":
        has = torch.cuda.get_device_properties(device)
        gpu = f"{has.name}, compute capability {has.major}.{has.minor}"
    return MachineFacts(
        processor=processor,
        instructions=instructions,
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        libraries={name: found for name in _LIBRARIES if (found := _version(name))},
        gpu=gpu,
    )


@functools.cache
def _processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and those of its instruction sets that are reported."""
    told = Path("/proc/cpuinfo")
    if not told.is_file():
        return platform.processor() or platform.machine(), ()
    lines = [
        line.split(":", 1)
        for line in told.read_text(errors="replace").split("\n\n")[0].splitlines()
        if ":" in line
    ]
    facts = {key.strip().lower(): value.strip() for key, value in lines}
    has = set(facts.get("flags", facts.get("features", "")).split())
    return facts.get("model name", platform.machine()), tuple(
        name for name in _REPORTED_INSTRUCTIONS if name in has
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
