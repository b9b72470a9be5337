"""Writes the tensors of a GGUF file one at a time, so a model is never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import ArtifactError
from ..pipeline.progress import OnEvent, Progress
from .weights import WeightReader


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the file: its source name or its values; `reorder` is applied to what is read.

    Matrices are stored as float16, vectors as float32.
    """

    name: str
    shape: tuple[int, ...]
    source: str | np.ndarray[Any, Any]
    reorder: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def dtype(self) -> Any:
        """NumPy dtype in the file: float16 for matrices, float32 for vectors and position
        embeddings.
        """
        return np.dtype(
            np.float16
            if len(self.shape) > 1 and not self.name.endswith("position_embd.weight")
            else np.float32
        )


def take_weight(
    weights: WeightReader,
    name: str,
    source: str,
    reorder: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> PlannedTensor:
    """The tensor `name` of the file, from the weight `source` of the folder.

    Raises ArtifactError if the folder has no such weight.
    """
    return PlannedTensor(name, tuple(weights.shape(source)), source, reorder)


def write_tensors(
    writer: Any, weights: WeightReader, plan: list[PlannedTensor], on_event: OnEvent
) -> None:
    """Write the header, then each tensor as it is read."""
    for one in plan:
        writer.add_tensor_info(
            one.name, one.shape, one.dtype, math.prod(one.shape) * one.dtype.itemsize
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, one in enumerate(plan):
        on_event(Progress("writing", done, len(plan), "tensors"))
        values = one.source
        if isinstance(values, str):
            read = weights.read(values)
            read = read if one.reorder is None else one.reorder(read)
            values = read.to(torch.float16 if one.dtype == np.float16 else torch.float32).numpy()
        if not np.isfinite(values).all():
            raise ArtifactError(
                f"{one.name} does not fit float16",
                got="a number past 65504, or none at all",
                do="Merge again in float32",
            )
        writer.write_tensor_data(np.ascontiguousarray(values))
    writer.close()
    on_event(Progress("writing", len(plan), len(plan), "tensors"))
