"""Facts about this machine, the attention implementation, and whether a recipe's parts and data
exist.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from ..errors import PhisenseError
from ..model.arithmetic import STEPS, Arithmetic, choose_arithmetic
from ..model.device import DTYPES, describe_machine, pick_device
from ..model.quantized import four_bit_backend
from ..openmp import wait_policy
from ..parts import resolve_part
from ..pipeline.records import Record
from ..recipe import Recipe
from ..speech_part import find_speech_part
from .devices import GB

_NEEDED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")
_OPTIONAL = {"gradio": "the app", "faster-whisper": "speech"}


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """One line of the report: what was checked, what was found, and whether it is sufficient."""

    what: str
    found: str
    state: Literal["ok", "note", "missing"] = "ok"


def examine(recipe: Recipe | None) -> list[Finding]:
    """All findings about the machine, then about the recipe if there is one."""
    found = [
        Finding("python", platform.python_version()),
        *_packages(),
        *_machine(),
        *_arithmetic(recipe),
    ]
    if recipe is not None:
        found += [*_parts(recipe), *_data(recipe)]
    return found


def _packages() -> list[Finding]:
    found = []
    for name in (*_NEEDED, *_OPTIONAL):
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            optional = name in _OPTIONAL
            found.append(
                Finding(
                    name,
                    f"not installed{f': needed for {_OPTIONAL[name]}' if optional else ''}",
                    "note" if optional else "missing",
                )
            )
    return found


def _machine() -> list[Finding]:
    device = pick_device()
    has = describe_machine(device)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name = f"{facts.name}, {facts.total_memory / GB:.0f} GB"
    else:
        name = f"CPU, {os.cpu_count()} cores: {has.processor}"
    waits = wait_policy()
    told = ", ".join(has.instructions) or "none that matter here"
    return [
        Finding("device", name),
        Finding("instructions", f"{told}; PyTorch uses {has.capability}"),
        Finding("waiting threads", waits.told, "note" if waits.late else "ok"),
        Finding("attention", attention(choose_arithmetic("train", device))),
        Finding("4-bit layers", four_bit_backend(device)),
        Finding("free disk here", f"{shutil.disk_usage('.').free / GB:.0f} GB"),
    ]


def _arithmetic(recipe: Recipe | None) -> list[Finding]:
    """The compute format of each step; steps with the same format and reason share a line."""
    asked = recipe.compute_dtype if recipe is not None else "auto"
    stored = DTYPES[recipe.merge.dtype] if recipe is not None else None
    together: dict[tuple[str, str], list[str]] = {}
    for step in STEPS:
        one = choose_arithmetic(step, compute_dtype=asked, stored=stored)
        together.setdefault((one.format, one.reason), []).append(step)
    return [
        Finding("computes in", f"{name} ({', '.join(steps)}): {why}")
        for (name, why), steps in together.items()
    ]


def attention(training: Arithmetic) -> str:
    """The attention implementation that will be used."""
    cuda = training.device.type == "cuda"
    if cuda and find_spec("flash_attn") is not None:
        return "sdpa (flash-attn is installed, and PyTorch's own flash kernels are used)"
    return "sdpa (PyTorch's fused kernels)" if cuda else f"sdpa; {training.attention} in training"


def _parts(recipe: Recipe) -> list[Finding]:
    parts = [
        _part("language", lambda: resolve_part(recipe.language.part, download=False)),
        _part("vision", lambda: resolve_part(recipe.vision.part, download=False)),
    ]
    if recipe.speech is not None:
        speech = recipe.speech.part
        parts.append(_part("speech", lambda: find_speech_part(speech, download=False).folder))
    return parts


def _part(name: str, find: Callable[[], Path]) -> Finding:
    """A part's folder, or why it is missing."""
    try:
        return Finding(f"{name} part", str(find()))
    except PhisenseError as error:
        return Finding(f"{name} part", str(error), "missing")


def _data(recipe: Recipe) -> list[Finding]:
    files = [*(one.path for one in recipe.data_sets), *recipe.data.held_out, *recipe.data.images]
    return [_path(recipe.path(file)) for file in files]


def _path(path: Path) -> Finding:
    if not path.exists():
        return Finding(path.name, f"not found: {path}", "missing")
    return Finding(path.name, str(path))
