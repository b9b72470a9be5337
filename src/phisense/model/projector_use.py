"""Batches without images, of which the projector and a trained vision tower learn nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class ProjectorUse:
    """Lets a batch without images go through the projector, and through a trained vision tower: it
    adds a zero to the embeddings that depends on each of their trained weights.

    Where the projector alone is trained, a batch without images has no gradient otherwise, and
    torch refuses its backward pass. DistributedDataParallel fails if a weight has a gradient in one
    process and none in another. Processes that share a model have to gather the same weights and
    shard the same gradients, in the same order: without images nothing would lead back through
    frozen layers to the projector in one process, while in another it does. `used` is whether a
    batch had images since it was last set to False: a step in which none had, in any process, must
    leave these weights alone, moments included.
    """

    def __init__(self, root: Any) -> None:
        marks = ("multi_modal_projector", "vision_tower")
        self.modules = [module for name, module in root.named_modules() if name.endswith(marks)]
        self.used = self._idle = False

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trained weights that only images use; while a sharded model computes, whole."""
        return [p for module in self.modules for p in module.parameters() if p.requires_grad]

    def before(self, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        """Hook of the root: note whether its batch has images."""
        self._idle = torch.is_grad_enabled() and kwargs.get("pixel_values") is None
        self.used = self.used or (torch.is_grad_enabled() and not self._idle)

    def embedded(self, _: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook of the embedding table: add the zero."""
        if self._idle:
            for weight in self.weights:
                output = output + weight.flatten()[:0].sum()
        return output

    def attach(self, root: Any) -> list[RemovableHandle]:
        """Register the hooks with the model, and return their handles."""
        return [
            root.register_forward_pre_hook(self.before, with_kwargs=True),
            root.get_input_embeddings().register_forward_hook(self.embedded),
        ]


@contextmanager
def projector_always_used(root: Any) -> Iterator[ProjectorUse]:
    """Inside the context every batch goes through the projector of a model in one piece."""
    use = ProjectorUse(root)
    handles = use.attach(root)
    try:
        yield use
    finally:
        for handle in handles:
            handle.remove()
