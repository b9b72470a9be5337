"""4-bit layers in a layout that supports training and dequantization; and digests of the base's
weights in memory.

bitsandbytes repacks a `Linear4bit` for inference in its first forward pass in evaluation mode, on
CPUs with AVX512-BF16 (`support_avx512bf16_for_cpu`). The repacked product has no gradient, so
nothing below such a layer learns, and it rounds the scales to bfloat16. So no layer may repack
itself unless `allow_repacking` is called, which is done for chat only; training and dequantization
call `check_not_repacked` first, and a training stage compares `codes_digest` before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ..errors import PhisenseError
from .sharding import whole

# bitsandbytes' per-layer flag; always false on CPUs without the instructions
_REPACK = "support_avx512bf16_for_cpu"
_PACKED = "packing_format_for_cpu"  # set by bitsandbytes on a repacked quant state
#: bitsandbytes' defaults: weights with one scale, and scales with one scale of their own.
NF4_BLOCK, NF4_SCALES_BLOCK = 64, 256
_INFERENCE_ROWS = 32  # the repacked layout has blocks of this many output rows


def nf4_config(dtype: torch.dtype, skip: Sequence[str] | None = None) -> BitsAndBytesConfig:
    """NF4 with double quantization, computing in `dtype`; `skip` lists the full names of modules
    left unquantized.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=None if skip is None else list(skip),
    )


def four_bit_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every 4-bit layer with its name, in the model's order."""
    for name, module in model.named_modules():
        # the layer itself, not a LoRA wrapper around it
        if getattr(module._parameters.get("weight"), "quant_state", None) is not None:
            yield name, module


@torch.no_grad()
def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model with 4-bit layers to its compute dtype: all unquantized weights, and the dtype
    that 4-bit weights dequantize to.

    The codes stay as they are, so they are quantized from the stored weights, whatever the compute
    dtype is.
    """
    held = {id(layer.weight): layer for _, layer in four_bit_layers(model)}
    for layer in held.values():
        layer.weight.quant_state.dtype = dtype
    for parameter in model.parameters():
        if id(parameter) not in held and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def forbid_repacking(model: nn.Module) -> None:
    """Forbid every 4-bit layer to repack itself. Raises PhisenseError if one has done so
    already.
    """
    check_not_repacked(model, "loading the model", may_repack=True)
    for _, layer in four_bit_layers(model):
        setattr(layer, _REPACK, False)


def four_bit_backend(device: torch.device) -> str:
    """Describe which code computes 4-bit layers on a device: bitsandbytes' compiled library, or its
    PyTorch operations.

    Kernels that the package `kernels` would download from the Hub are disabled
    (phisense/__init__.py), and reported if they are active all the same.
    """
    from bitsandbytes.backends.cpu import ops
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    if device.type == "cpu" and getattr(ops, "gemm_4bit_forward_kernel", None) is not None:
        return "native code that bitsandbytes fetched from the hub"
    if isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        return "bitsandbytes' operations in PyTorch; its compiled library is not there"
    return (
        f"bitsandbytes' own library for {'CUDA' if lib.compiled_with_cuda else 'CPUs'}, and nothing"
        " from the hub"
    )


def allow_repacking(model: nn.Module) -> int:
    """Allow 4-bit layers to repack themselves for inference on CPUs with AVX512-BF16, if they can;
    returns their number.

    For inference only: a repacked layer has no gradient and its scales are rounded to bfloat16.
    """
    from bitsandbytes.functional import has_avx512bf16

    allowed = 0
    for _, layer in four_bit_layers(model):
        rows, columns = layer.weight.quant_state.shape
        if (
            has_avx512bf16()
            and layer.weight.device.type == "cpu"
            and rows % _INFERENCE_ROWS == 0
            and columns % layer.weight.blocksize == 0
        ):
            setattr(layer, _REPACK, True)
            allowed += 1
    return allowed


def check_not_repacked(model: nn.Module, doing: str, *, may_repack: bool = False) -> None:
    """Raises PhisenseError if a 4-bit layer was repacked for inference or, unless `may_repack`, is
    allowed to repack itself.
    """
    found = {
        name: "repacked" if is_repacked(layer) else "free to repack itself"
        for name, layer in four_bit_layers(model)
        if is_repacked(layer) or (getattr(layer, _REPACK, False) and not may_repack)
    }
    if found:
        name, state = next(iter(found.items()))
        raise PhisenseError(
            f"{doing} needs 4-bit layers as they were quantised",
            got=(
                f"{len(found)} that are or may be laid out for inference, the first"
                f" {name or 'itself'}, which is {state}"
            ),
            wanted="none: a repacked layer has no gradient and rounded scales",
            do=(
                "This is a fault of phisense, or of a bitsandbytes that it does not know; please"
                " report it"
            ),
        )


def is_repacked(layer: Any) -> bool:
    """Whether bitsandbytes has repacked a 4-bit layer for inference on a CPU."""
    return bool(getattr(layer.weight.quant_state, _PACKED, False))


def codes_digest(model: nn.Module) -> str | None:
    """SHA-256 over the codes of every 4-bit layer, in the order of their names; None if there is no
    such layer.

    Names are those without an adapter, so that adding LoRA changes nothing. Raises PhisenseError
    for a repacked layer: its codes are no longer those that were quantized.
    """
    return _digest(model, lambda layer: (layer.weight.data,))


def plain_digest(model: nn.Module) -> str | None:
    """SHA-256 over every unquantized weight of the language part, by name, in its dtype in memory;
    None without a language part.

    Names are those without an adapter; LoRA weights are left out.
    """
    four_bit = {id(layer.weight) for _, layer in four_bit_layers(model)}
    plain = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in four_bit
        and ("language_model." in name or "lm_head." in name)
        and ".lora_" not in name
    }
    if not plain:
        return None
    digest = hashlib.sha256()
    for name in sorted(plain):
        digest.update(f"{name} {tuple(plain[name].shape)} {plain[name].dtype}".encode())
        digest.update(tensor_bytes(plain[name]))
    return digest.hexdigest()


def scales_digest(model: nn.Module) -> str | None:
    """As `codes_digest`, over the quantization scales.

    Comparable only within one process: the mean is subtracted from the scales before they are
    quantized, and its last digits depend on the processor and the number of threads.
    """
    return _digest(model, lambda layer: _scales(layer.weight.quant_state))


def _digest(model: nn.Module, tensors: Callable[[Any], tuple[torch.Tensor, ...]]) -> str | None:
    layers = {name.removesuffix(".base_layer"): layer for name, layer in four_bit_layers(model)}
    if not layers:
        return None
    check_not_repacked(model, "a digest of the codes", may_repack=True)
    digest = hashlib.sha256()
    for name in sorted(layers):
        state = layers[name].weight.quant_state
        digest.update(f"{name} {tuple(state.shape)} {state.quant_type} {state.blocksize}".encode())
        for tensor in tensors(layers[name]):
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in its own dtype, row by row, for a digest. Gathers a sharded one."""
    found: memoryview = (
        whole(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    )
    return found


def dequantized_weight(layer: Any) -> torch.Tensor:
    """Dequantized weight `(N, K)` of a 4-bit layer, computed in the layer's compute dtype, as
    float32.

    Raises PhisenseError if the layer was repacked.
    """
    from bitsandbytes.functional import dequantize_4bit

    if is_repacked(layer):
        check_not_repacked(layer, "reading a layer back", may_repack=True)
    dequantized: torch.Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return dequantized


def dequantize(model: nn.Module) -> None:
    """Replace every 4-bit layer with a plain float32 Linear that has its dequantized weight."""
    for name, layer in list(four_bit_layers(model)):
        model.set_submodule(name, frozen_linear(dequantized_weight(layer), layer.bias))


def frozen_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A frozen Linear with the weight `(N, K)`, which is not copied."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return made


def _scales(state: Any) -> tuple[torch.Tensor, ...]:
    """The quantization scales: with double quantization, the quantized scales and their own
    scales.
    """
    second = (state.offset, state.state2.absmax) if state.nested else ()
    return (state.absmax, *(one for one in second if isinstance(one, torch.Tensor)))
