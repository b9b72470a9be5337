"""The importance matrix: mean squares of what each matrix of the language model is multiplied with.

Measured in torch, on conversations with images. llama.cpp's own `llama-imatrix` computes the same
of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from ..chat.llama_quantize import Importance


class ImportanceMeter:
    """Sums the squares of the inputs of linear layers while a model computes.

    `layer_names` maps weights of a layer to tensors of a block, as `GGUFFormat` does.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], layer_names: Mapping[str, str]) -> None:
        self._modules: dict[str, torch.nn.Linear] = {}
        for i, layer in enumerate(layers):
            for name, there in layer_names.items():
                module = layer.get_submodule(name)
                if isinstance(module, torch.nn.Linear):
                    self._modules[f"blk.{i}.{there}.weight"] = module
        self._sums: dict[str, torch.Tensor] = {}
        self._positions: dict[str, int] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Whatever is computed inside the block counts."""
        hooks = [
            module.register_forward_pre_hook(partial(self._add, name))
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def matrix(self) -> Importance:
        """Mean squares by tensor, one for each number of a row."""
        return {
            name: (sums / self._positions[name]).float().numpy()
            for name, sums in self._sums.items()
        }

    def _add(self, name: str, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2).double()
        found = rows.square().sum(0)
        self._sums[name] = self._sums[name] + found if name in self._sums else found
        self._positions[name] = self._positions.get(name, 0) + len(rows)
