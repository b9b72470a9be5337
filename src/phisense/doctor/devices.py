"""The device of a plan: the local device, a named GPU, or a GPU with a given amount of memory."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UsageError
from ..model.arithmetic import Arithmetic, choose_arithmetic
from ..model.device import pick_device
from ..model.varlen_attention import VARLEN

GB = 1e9
#: Resident memory of a process after importing torch, transformers, PEFT and bitsandbytes. Fitted
#: by `bench/memory.py`.
CPU_BASELINE = 0.68 * GB
#: CUDA's context and kernels, outside PyTorch's allocator. An assumption: nothing here was measured
#: on a GPU.
CUDA_BASELINE = 0.6 * GB
#: Fraction of the throughput of one large matmul that a whole training step reaches. Both are
#: assumed.
CPU_UTILISATION, CUDA_UTILISATION = 0.6, 0.35

#: name -> (memory in GB, dense peak in TFLOP/s in phisense's compute format: bfloat16, or float32
#: where bfloat16 is unsupported, that format). From NVIDIA's data sheets; consumer cards with
#: float32 accumulation.
GPUS: dict[str, tuple[int, float, str]] = {
    "T4": (16, 8.1, "float32"),
    "V100-16": (16, 15.7, "float32"),
    "V100-32": (32, 15.7, "float32"),
    "RTX-3060": (12, 25.5, "bfloat16"),
    "RTX-3090": (24, 71.0, "bfloat16"),
    "RTX-4060-Ti-16": (16, 44.0, "bfloat16"),
    "RTX-4080": (16, 97.5, "bfloat16"),
    "RTX-4090": (24, 165.2, "bfloat16"),
    "RTX-5090": (32, 209.5, "bfloat16"),
    "A10": (24, 125.0, "bfloat16"),
    "A10G": (24, 70.0, "bfloat16"),
    "L4": (24, 121.0, "bfloat16"),
    "L40S": (48, 362.0, "bfloat16"),
    "A100-40": (40, 312.0, "bfloat16"),
    "A100-80": (80, 312.0, "bfloat16"),
    "H100": (80, 989.0, "bfloat16"),
    "H200": (141, 989.0, "bfloat16"),
    "B200": (180, 2250.0, "bfloat16"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """`memory` in bytes; `rate` in floating point operations per second that a training step
    reaches; `processes` share a sharded model, each with a device like this one.
    """

    name: str
    cuda: bool
    memory: float
    dtype: str
    attention: str
    baseline: float
    rate: float
    basis: str
    processes: int = 1

    @property
    def itemsize(self) -> int:
        """Bytes per element of the compute format."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def varlen(self) -> bool:
        """Whether training uses variable-length attention, without padding."""
        return self.attention == VARLEN


def find_devices(
    gpu: str | None = None, memory: str | None = None, *, compute_dtype: str = "auto"
) -> list[Device]:
    """The named GPU, else the local devices. `memory`, such as 16GB, overrides the GPU's memory;
    alone, it plans for a GPU of that size.

    `compute_dtype` is the recipe's.
    """
    size = parse_memory(memory) if memory is not None else None
    if gpu is not None:
        return [_known_gpu(gpu, size, compute_dtype=compute_dtype)]
    if size is not None:
        return [
            _known_gpu(
                "RTX-4090", size, label=f"a GPU of {size / GB:g} GB", compute_dtype=compute_dtype
            )
        ]
    return local_devices(compute_dtype)


def local_devices(compute_dtype: str = "auto") -> list[Device]:
    """Every GPU of this machine, or its CPU."""
    if not torch.cuda.is_available():
        arithmetic = choose_arithmetic("train", torch.device("cpu"), compute_dtype=compute_dtype)
        rate, basis = _measure_rate(arithmetic, CPU_UTILISATION)
        return [
            Device(
                "the CPU here",
                False,
                cpu_memory(),
                arithmetic.format,
                arithmetic.attention,
                CPU_BASELINE,
                rate,
                basis,
            )
        ]
    found = []
    for number in range(torch.cuda.device_count()):
        where = pick_device(f"cuda:{number}")
        facts = torch.cuda.get_device_properties(where)
        arithmetic = choose_arithmetic("train", where, compute_dtype=compute_dtype)
        rate, basis = _measure_rate(arithmetic, CUDA_UTILISATION)
        name = f"cuda:{number}, {facts.name}"
        memory = float(facts.total_memory)
        found.append(
            Device(
                name,
                True,
                memory,
                arithmetic.format,
                arithmetic.attention,
                CUDA_BASELINE,
                rate,
                basis,
                torch.cuda.device_count(),
            )
        )
    return found


def parse_memory(text: str) -> float:
    """`16GB`, `16 GB`, `16GiB` or `16` in bytes. Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB|G|MB|MiB)?\s*", text, re.IGNORECASE)
    units = {"": GB, "g": GB, "gb": GB, "gib": 2.0**30, "mb": 1e6, "mib": 2.0**20}
    size = float(match[1]) * units[(match[2] or "").lower()] if match else 0.0
    if size <= 0:
        raise UsageError(
            "--device-memory is no amount of memory", got=repr(text), wanted="for example 16GB"
        )
    return size


def cpu_memory() -> float:
    """Bytes of the machine's memory, or of the container's limit if that is lower."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(whole, float(text)) if text.isdigit() else whole


def _known_gpu(
    gpu: str, size: float | None, label: str | None = None, *, compute_dtype: str = "auto"
) -> Device:
    names = {name.lower().replace("-", ""): name for name in GPUS}
    key = gpu.lower().replace("-", "").replace(" ", "").removeprefix("nvidia")
    if key not in names:
        raise UsageError(
            "unknown --gpu", got=gpu, wanted=", ".join(GPUS), do="Or say --device-memory 16GB"
        )
    memory, peak, dtype = GPUS[names[key]]
    # an eighth of the throughput, by the data sheets of these cards, without TF32
    if compute_dtype == "float32" and dtype == "bfloat16":
        peak, dtype = peak / 8, "float32"
    basis = (
        f"{peak:g} TFLOP/s in {dtype} by the data sheet{' of an RTX-4090' if label else ''},"
        f" {CUDA_UTILISATION:.0%} of it assumed"
    )
    return Device(
        label or names[key],
        True,
        size or memory * GB,
        dtype,
        "sdpa",
        CUDA_BASELINE,
        peak * 1e12 * CUDA_UTILISATION,
        basis,
    )


@torch.inference_mode()
def _measure_rate(arithmetic: Arithmetic, utilisation: float) -> tuple[float, str]:
    """Measured throughput of a large matmul times `utilisation`; takes well under a second."""
    where, dtype = arithmetic.device, arithmetic.dtype
    side = 4096 if where.type == "cuda" else 768
    a, b = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        made = a @ b
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - started))
        del made
    return (
        best * utilisation,
        (
            f"{best / 1e9:,.0f} GFLOP/s measured in {arithmetic.format}, {utilisation:.0%} of it"
            " reached"
        ),
    )
