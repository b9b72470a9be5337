"""The adapter's changes added to the base, and held to what the adapter's own layers compute.

For a matrix with LoRA, PEFT computes `W x + scale * B (A x)`; merged it is `(W + scale * B A) x`.
Both are computed on the same random inputs, in float32: equal up to rounding, or nothing is merged.
No figure on questions could tell that so surely: an adapter that is added 1.1 times often lowers
the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from ..errors import MergeError
from ..model import Phi3WithProjector
from ..model.quantized import frozen_linear
from ..model.trainable import get_projector
from ..parts import load_auto, resolve_part
from ..recipe import Recipe

_ROWS = 4  # random inputs of each layer
_MAX_ERROR = 1e-3  # of the adapter's change
_ROUNDING = 5e-6  # of the output: float32 sums in another order


@torch.no_grad()
def add_adapter(adapted: Phi3WithProjector) -> Phi3WithProjector:
    """Base + scale * B A in float32; the result has plain Linear layers without PEFT. `adapted` is
    used up. A model without an adapter, after full fine-tuning, is returned as it is.

    Raises MergeError if a merged layer computes something else than the adapter's.
    """
    plain = adapted.model
    for name, module in list(plain.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            base = module.get_base_layer()
            merged = frozen_linear(
                base.weight.detach().float() + module.get_delta_weight("default").float(),
                base.bias,
            )
            _check_sum(name, module, merged)
            plain.set_submodule(name, merged)
    plain.model.multi_modal_projector = get_projector(plain)
    return Phi3WithProjector(plain.eval(), adapted.processor, adapted.prompt, adapted.window)


def _check_sum(name: str, adapted: Any, merged: nn.Linear) -> None:
    weight = merged.weight
    random = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, weight.shape[1], generator=random).to(weight.device)
    wanted, base = adapted(x), adapted.get_base_layer()(x)
    error, change = float((merged(x) - wanted).norm()), float((wanted - base).norm())
    if not error <= _MAX_ERROR * change + _ROUNDING * float(wanted.norm()):
        raise MergeError(
            "a merged layer does not compute what the adapter's layer computes, so nothing was"
            " written",
            got=f"{error:.3g} apart in {name}, where the adapter changes {change:.3g}",
            wanted=f"at most {_MAX_ERROR:g} of the change",
            do=(
                "This is a fault of phisense, or of a peft that it does not know; please report it"
                " with phisense doctor's output"
            ),
        )


def reverse_layers(recipe: Recipe) -> Callable[[str], str]:
    """A function that maps a weight's name to that of the mirrored layer: the first becomes the
    last.
    """
    whole = load_auto(AutoConfig, resolve_part(recipe.language.part))
    layers = getattr(whole, "text_config", whole).num_hidden_layers

    def rename(name: str) -> str:
        head, within, tail = name.partition(".language_model.layers.")
        number, dot, rest = tail.partition(".")
        return f"{head}{within}{layers - 1 - int(number)}{dot}{rest}" if within else name

    return rename
