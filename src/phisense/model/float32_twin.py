"""Float32 reference of a model, computed by plain products: training in another dtype or with 4-bit
kernels is checked against it.

No weights are copied permanently. Inside `computed_in_float32` each frozen Linear, in 4 bits or in
a narrower dtype, multiplies by its weight in float32, converted for each product, forward and
backward; the few other narrow weights are held in float32; autocast is off.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from .quantized import dequantized_weight, four_bit_layers
from .sharding import is_linear, is_sharded


class _Product(torch.autograd.Function):
    """`x` `(..., K)` times a frozen layer's weight `(N, K)` in float32; nothing is saved for the
    backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.float()
        return nn.functional.linear(x, _float32_weight(layer), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] @ _float32_weight(ctx.layer), None


def _float32_weight(layer: Any) -> torch.Tensor:
    if getattr(layer.weight, "quant_state", None) is not None:
        return dequantized_weight(layer)
    weight: torch.Tensor = layer.weight.detach().float()
    return weight


def _multiply(layer: Any, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(x.float(), layer)  # type: ignore[no-untyped-call]
    return product


def _require_no_autocast(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    assert not torch.is_autocast_enabled(given[0].device.type), (
        "somebody turned autocast on inside the twin"
    )


@contextmanager
def computed_in_float32(model: Any) -> Iterator[None]:
    """Inside the context, `model` computes in float32. Trained weights must be float32 already, as
    they are in every stage.

    Accelerate's autocast wrapper around `forward` is removed inside it, and TF32 is off.
    """
    with ExitStack() as put_back:
        plain = {id(layer): layer for _, layer in four_bit_layers(model)}
        # Only Linear itself: the weight of a subclass, as in nn.MultiheadAttention, may be read
        # without its forward pass.
        plain |= {id(m): m for m in model.modules() if is_linear(m) and _is_narrow(m.weight)}
        for layer in plain.values():
            _replace(put_back, layer, "forward", functools.partial(_multiply, layer))
        for module in model.modules():
            if id(module) not in plain:
                _widen(put_back, module)
        # the model of an earlier stage is nested in that of the next, each with its own autocast
        # wrapper around forward
        for module in model.modules():
            if "_original_forward" in module.__dict__:
                _replace(put_back, module, "forward", MethodType(type(module).forward, module))
        hook = model.get_output_embeddings().register_forward_pre_hook(_require_no_autocast)
        put_back.callback(hook.remove)
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        put_back.callback(torch.set_float32_matmul_precision, precision)
        device = next(model.parameters()).device.type
        put_back.enter_context(torch.autocast(device, enabled=False))
        yield


def _is_narrow(weight: Any) -> bool:
    return (
        isinstance(weight, torch.Tensor)
        and weight.is_floating_point()
        and weight.dtype is not torch.float32
        and not weight.requires_grad
    )


def _widen(put_back: ExitStack, module: nn.Module) -> None:
    """Convert the module's own frozen weights and buffers to float32; of sharded weights, which are
    gathered as they are, the outputs.
    """
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if is_sharded(tensor) and _is_narrow(tensor):
            hook = module.register_forward_hook(lambda _, __, output: output.float())
            put_back.callback(hook.remove)
        elif _is_narrow(tensor):
            put_back.callback(setattr, tensor, "data", tensor.data)
            tensor.data = tensor.data.float()


def _replace(put_back: ExitStack, holder: Any, name: str, value: Any) -> None:
    """Set an instance attribute until the stack is closed."""
    before = holder.__dict__.get(name)
    if before is None:
        put_back.callback(holder.__dict__.pop, name)
    else:
        put_back.callback(holder.__dict__.__setitem__, name, before)
    holder.__dict__[name] = value
