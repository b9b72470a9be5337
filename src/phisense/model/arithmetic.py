"""Compute settings of each step: device, dtype and kernels, with the reason for the choice.

They are chosen in this one place, from the recipe, the device, and its hardware support. `auto`
means

step       dtype                                              attention     4-bit layers
features   bfloat16 on GPUs that support it, else float32;   sdpa          –
           a CPU with instructions for bfloat16 measures which
           (vision/encoders/number_format.py)
train      bfloat16 if the device supports it, else float32   spans (CPU)   not repacked
merge      float32, always: the merge is measured, not the    sdpa          not repacked
           dtype
evaluate   float32 for a model stored in it, else as train    sdpa          not repacked
chat       as evaluate                                        sdpa          repacked (inference)
export     float32: the reference for llama.cpp's files       sdpa          –

The inference layout is faster for a few tokens at a time, as in a chat, and slower for the many of
an evaluation (docs/benchmarks.md). float16 ends at 65,504, which Phi-3's activations exceed, so
training never computes in it. `doctor` shows every choice with its reason; runs, reports and model
folders record it together with the machine (`Arithmetic.to_dict`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .device import DTYPES, describe_machine, dtype_name, pick_device, supports_bfloat16
from .varlen_attention import VARLEN

Step = Literal["features", "train", "merge", "evaluate", "chat", "export"]
STEPS: tuple[Step, ...] = ("features", "train", "merge", "evaluate", "chat", "export")
READABLE, INFERENCE = "readable", "inference"  # layouts of 4-bit layers: see quantized.py
_FLOAT32_ALWAYS: dict[str, str] = {
    "merge": "a merge is measured in float32, whatever computes later",
    "export": "llama.cpp's files are held to the model in float32",
}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Compute settings of one step. `reason` explains the dtype; `layout` is the layout allowed for
    4-bit layers.
    """

    step: Step
    device: torch.device
    dtype: torch.dtype
    reason: str
    attention: str
    layout: str

    @property
    def format(self) -> str:
        """Name of the dtype, e.g. `bfloat16`."""
        return dtype_name(self.dtype)

    @property
    def token_multiple(self) -> int:
        """Multiple to which a training batch's token count is padded: oneDNN compiles a kernel for
        each new shape in bfloat16.
        """
        return 64 if self.device.type == "cpu" and self.dtype is torch.bfloat16 else 1

    def to_dict(self) -> dict[str, object]:
        """The settings as recorded with the step's output."""
        from .quantized import four_bit_backend

        return {
            "step": self.step,
            "device": self.device.type,
            "format": self.format,
            "reason": self.reason,
            "attention": self.attention,
            "four_bit_layout": self.layout,
            "four_bit_backend": four_bit_backend(self.device),
            **describe_machine(self.device).to_dict(),
        }


def choose_arithmetic(
    step: Step,
    device: torch.device | str = "auto",
    *,
    compute_dtype: str = "auto",
    stored: torch.dtype | None = None,
) -> Arithmetic:
    """Choose the compute settings of one step. `compute_dtype` is the recipe's, `stored` the dtype
    of stored weights if there are any.
    """
    where = pick_device(device) if isinstance(device, str) else device
    dtype, reason = _choose_dtype(step, where, compute_dtype, stored)
    attention = training_attention(where) if step == "train" else "sdpa"
    # the kernels of the inference layout compute in bfloat16
    layout = INFERENCE if step == "chat" and dtype is torch.bfloat16 else READABLE
    return Arithmetic(step, where, dtype, reason, attention, layout)


def training_attention(device: torch.device) -> str:
    """Varlen attention on CPUs, where padding costs full computation; padded rows with a mask on
    GPUs.
    """
    return VARLEN if device.type == "cpu" else "sdpa"


def _choose_dtype(
    step: Step, device: torch.device, compute_dtype: str, stored: torch.dtype | None
) -> tuple[torch.dtype, str]:
    if step in _FLOAT32_ALWAYS:
        return torch.float32, _FLOAT32_ALWAYS[step]
    has = supports_bfloat16(device)
    if compute_dtype == "float16" and step == "train":
        return (
            torch.float32,
            "float16 was asked for, but Phi-3's activations pass 65,504 in training",
        )
    if compute_dtype != "auto":
        emulated = compute_dtype == "bfloat16" and not has
        return DTYPES[compute_dtype], "the recipe asks for it" + (
            "; without instructions for it here, so it is emulated and slow" if emulated else ""
        )
    if step == "features" and device.type == "cpu" and has:
        return (
            torch.float32,
            "the encoder is loaded in it; a new store is made in bfloat16 if that is measured to be"
            " faster and to give the same features",
        )
    if step in ("evaluate", "chat") and stored is torch.float32:
        return torch.float32, "the model is stored in float32"
    name = "GPU" if device.type == "cuda" else "processor"
    if has:
        return torch.bfloat16, f"the {name} multiplies in bfloat16"
    return torch.float32, f"the {name} has no instructions for bfloat16, or they are hidden"
