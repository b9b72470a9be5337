"""4-bit layers: held so that one can train through them and read them back; and a digest of their codes.

bitsandbytes repacks a `Linear4bit` for inference in its first forward pass in evaluation mode, on CPUs with AVX512-BF16
(`support_avx512bf16_for_cpu`). The repacked product has no gradient, so nothing below such a layer learns, and it rounds the scales to
bfloat16. So no layer may repack itself unless `allow_inference_layout` is called, which is done for answers alone; what is trained
through or read back asks `require_readable` first, and a stage of training compares `codes_digest` before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ..errors import PhisenseError

_REPACK = "support_avx512bf16_for_cpu"  # bitsandbytes' flag of a layer; without the instructions it is false anyway
_PACKED = "packing_format_for_cpu"  # bitsandbytes' mark on the state of a layer that it repacked
_INFERENCE_ROWS = 32  # the repacked layout is made of so many output rows at a time


def nf4(dtype: torch.dtype, skip: Sequence[str] | None = None) -> BitsAndBytesConfig:
    """NF4 with double quantisation, computing in `dtype`; modules to `skip` are named by their full paths, or nothing is skipped."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=None if skip is None else list(skip),
    )  # fmt: skip


def four_bit_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every 4-bit layer with its name, in the model's order."""
    for name, module in model.named_modules():
        if getattr(module._parameters.get("weight"), "quant_state", None) is not None:  # not an adapter around such a layer
            yield name, module


@torch.no_grad()
def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts a model with 4-bit layers to the format that it computes in, the codes as they are: each weight that is not in 4 bits, and
    what the 4-bit ones become when they are multiplied by. The codes are thus made of the stored numbers, whatever computes."""
    held = {id(layer.weight): layer for _, layer in four_bit_layers(model)}
    for layer in held.values():
        layer.weight.quant_state.dtype = dtype
    for parameter in model.parameters():
        if id(parameter) not in held and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def keep_readable(model: nn.Module) -> None:
    """Forbids every 4-bit layer to repack itself. Raises PhisenseError if one has done so already."""
    require_readable(model, "loading the model", may_repack=True)
    for _, layer in four_bit_layers(model):
        setattr(layer, _REPACK, False)


def allow_inference_layout(model: nn.Module) -> int:
    """Lets the 4-bit layers that can repack themselves for inference on CPUs with AVX512-BF16; returns how many.

    For answers alone: a repacked layer has no gradient and its scales are rounded to bfloat16.
    """
    from bitsandbytes.functional import has_avx512bf16

    allowed = 0
    for _, layer in four_bit_layers(model):
        rows, columns = layer.weight.quant_state.shape
        if has_avx512bf16() and layer.weight.device.type == "cpu" and rows % _INFERENCE_ROWS == 0 and columns % layer.weight.blocksize == 0:
            setattr(layer, _REPACK, True)
            allowed += 1
    return allowed


def require_readable(model: nn.Module, doing: str, *, may_repack: bool = False) -> None:
    """Raises PhisenseError if a 4-bit layer was repacked for inference or, unless `may_repack`, may repack itself while `doing`."""
    found = {
        name: "repacked" if is_repacked(layer) else "free to repack itself"
        for name, layer in four_bit_layers(model)
        if is_repacked(layer) or (getattr(layer, _REPACK, False) and not may_repack)
    }
    if found:
        name, state = next(iter(found.items()))
        raise PhisenseError(
            f"{doing} needs 4-bit layers as they were quantised",
            got=f"{len(found)} that are or may be laid out for inference, the first {name or 'itself'}, which is {state}",
            wanted="none: a repacked layer has no gradient and rounded scales",
            do="This is a fault of phisense, or of a bitsandbytes that it does not know; please report it",
        )


def is_repacked(layer: Any) -> bool:
    return bool(getattr(layer.weight.quant_state, _PACKED, False))


def codes_digest(model: nn.Module) -> str | None:
    """SHA-256 over the codes of every 4-bit layer, in the order of their names; None if there is no such layer.

    The names are those of the layers without an adapter, so that LoRA beside them changes nothing. Raises PhisenseError for a layer that
    was repacked: its codes are no longer those that were quantised.
    """
    return _digest(model, lambda layer: (layer.weight.data,))


def scales_digest(model: nn.Module) -> str | None:
    """As `codes_digest`, over what the codes are multiplied by. To compare within a process only: the scales are quantised less their mean,
    whose last digits depend on the processor and the number of threads."""
    return _digest(model, lambda layer: _scales(layer.weight.quant_state))


def _digest(model: nn.Module, tensors: Callable[[Any], tuple[torch.Tensor, ...]]) -> str | None:
    layers = {name.removesuffix(".base_layer"): layer for name, layer in four_bit_layers(model)}
    if not layers:
        return None
    require_readable(model, "a digest of the codes", may_repack=True)
    digest = hashlib.sha256()
    for name in sorted(layers):
        state = layers[name].weight.quant_state
        digest.update(f"{name} {tuple(state.shape)} {state.quant_type} {state.blocksize}".encode())
        for tensor in tensors(layers[name]):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weight_of(layer: Any) -> torch.Tensor:
    """The float32 weight `(N, K)` that a 4-bit layer multiplies by, which is what NF4 left of the original.

    Raises PhisenseError if the layer was repacked.
    """
    from bitsandbytes.functional import dequantize_4bit

    if is_repacked(layer):
        require_readable(layer, "reading a layer back", may_repack=True)
    dequantized: torch.Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return dequantized


def dequantize(model: nn.Module) -> None:
    """Puts a plain float32 Linear in the place of every 4-bit one: what training multiplied by, before its format rounded it."""
    for name, layer in list(four_bit_layers(model)):
        model.set_submodule(name, linear(weight_of(layer), layer.bias))


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A frozen Linear of a weight `(N, K)`, without a copy of it."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return made


def _scales(state: Any) -> tuple[torch.Tensor, ...]:
    """What the codes are multiplied by: with double quantisation, codes of scales and their own scales."""
    second = (state.offset, state.state2.absmax) if state.nested else ()
    return (state.absmax, *(one for one in second if isinstance(one, torch.Tensor)))
