"""The arithmetic of each step: the device, the number format and the kernels that it computes with, and why.

It is chosen in this one place, from what the recipe asks for, the device, and what the processor multiplies in:

step       `auto` means                                                                           attention       4-bit layers
features   bfloat16 on GPUs that have it; float32 on CPUs, so that a store does not depend on them    sdpa            –
train      bfloat16 where the device multiplies in it, else float32                               spans (CPU)     kept readable
merge      float32, whatever is asked: what is measured is the merge, not the format              sdpa            kept readable
evaluate   float32 for a model stored in it; else as in training                                  sdpa            kept readable
chat       as evaluate                                                                            sdpa            laid out for inference
export     float32: the reference that llama.cpp's files are held to                              sdpa            –

The layout for inference is faster for a few tokens at once, as a chat has them, and slower for the many of an evaluation
(docs/benchmarks.md). float16 ends at 65,504, which Phi-3's activations pass, so no step that trains computes in it. `doctor` shows every
choice with its reason; runs, reports and model folders record it together with the machine (`Arithmetic.as_dict`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .device import DTYPES, format_name, machine, multiplies_in_bfloat16, pick_device
from .spans import SPANS

Step = Literal["features", "train", "merge", "evaluate", "chat", "export"]
STEPS: tuple[Step, ...] = ("features", "train", "merge", "evaluate", "chat", "export")
READABLE, INFERENCE = "readable", "inference"  # how 4-bit layers may lie: see quantized.py
_FLOAT32_ALWAYS: dict[str, str] = {
    "merge": "a merge is measured in float32, whatever computes later",
    "export": "llama.cpp's files are held to the model in float32",
}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`reason` says in words why the format was chosen; `layout` what is allowed to the 4-bit layers."""

    step: Step
    device: torch.device
    dtype: torch.dtype
    reason: str
    attention: str
    layout: str

    @property
    def format(self) -> str:
        return format_name(self.dtype)

    @property
    def token_multiple(self) -> int:
        """To a multiple of how many tokens a batch of training is filled up: oneDNN compiles a kernel for each new shape in bfloat16."""
        return 64 if self.device.type == "cpu" and self.dtype is torch.bfloat16 else 1

    def as_dict(self) -> dict[str, Any]:
        """What is recorded with whatever the step makes."""
        return {
            "step": self.step,
            "device": self.device.type,
            "format": self.format,
            "reason": self.reason,
            "attention": self.attention,
            "four_bit_layout": self.layout,
            **machine(self.device),
        }


def choose(step: Step, device: torch.device | str = "auto", *, asked: str = "auto", stored: torch.dtype | None = None) -> Arithmetic:
    """The arithmetic of one step. `asked` is the recipe's `compute_dtype`, `stored` the format of the weights if they lie in one."""
    where = pick_device(device) if isinstance(device, str) else device
    dtype, reason = _format(step, where, asked, stored)
    attention = training_attention(where) if step == "train" else "sdpa"
    layout = INFERENCE if step == "chat" and dtype is torch.bfloat16 else READABLE  # its kernels compute in bfloat16
    return Arithmetic(step, where, dtype, reason, attention, layout)


def training_attention(device: torch.device) -> str:
    """Spans on a CPU, where padding is computed in full; padded rows with a mask on a GPU."""
    return SPANS if device.type == "cpu" else "sdpa"


def _format(step: Step, where: torch.device, asked: str, stored: torch.dtype | None) -> tuple[torch.dtype, str]:
    if step in _FLOAT32_ALWAYS:
        return torch.float32, _FLOAT32_ALWAYS[step]
    has = multiplies_in_bfloat16(where)
    if asked == "float16" and step == "train":
        return torch.float32, "float16 was asked for, but Phi-3's activations pass 65,504 in training"
    if asked != "auto":
        emulated = asked == "bfloat16" and not has
        return DTYPES[asked], "the recipe asks for it" + (
            "; without instructions for it here, so it is emulated and slow" if emulated else ""
        )
    if step == "features" and where.type == "cpu":
        return torch.float32, "features are encoded in float32 on every CPU, so that a store is the same on all"
    if step in ("evaluate", "chat") and stored is torch.float32:
        return torch.float32, "the model is stored in float32"
    name = "GPU" if where.type == "cuda" else "processor"
    if has:
        return torch.bfloat16, f"the {name} multiplies in bfloat16"
    return torch.float32, f"the {name} has no instructions for bfloat16, or they are hidden"
