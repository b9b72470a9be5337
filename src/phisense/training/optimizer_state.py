"""An optimizer's moments as safetensors, by the names of their weights: those of a sharded model,
which one process writes and any number of processes reads.

optimizer.safetensors    "<weight>/<moment>", e.g. ".../o_proj.weight/exp_avg"
optimizer.pt             what Trainer writes for a model in one piece
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ArtifactError
from ..model.sharded_files import read_rows, write_gathered
from ..model.sharding import local, local_rows
from .optimizer import CombinedOptimizer

STATE_FILE, WHOLE_STATE_FILE = "optimizer.safetensors", "optimizer.pt"
Names = Mapping[torch.Tensor, str]


def save_moments(optimizer: Any, model: Any, path: Path | None) -> None:
    """Write the moments to `path`, or only help another process to do so if it is None. A
    collective for a sharded model.
    """
    names = _names(model)
    write_gathered(
        {
            f"{names[weight]}/{key}": value
            for part in _parts(optimizer)
            for weight, moments in part.state.items()
            for key, value in moments.items()
        },
        path,
    )


def load_moments(optimizer: Any, model: Any, checkpoint: Path) -> None:
    """Read the moments of a checkpoint, each process as far as it holds their weights.

    Raises ArtifactError for a file that cannot be read or belongs to other weights.
    """
    try:
        if (checkpoint / STATE_FILE).is_file():
            _load_gathered(optimizer, _names(model), checkpoint / STATE_FILE)
        else:
            _load_whole(optimizer, checkpoint / WHOLE_STATE_FILE)
    except (SafetensorError, OSError, LookupError, RuntimeError) as error:
        raise ArtifactError(
            f"the optimizer's state in {checkpoint} cannot be read",
            got=(str(error).splitlines() or [type(error).__name__])[0],
            do="Remove this checkpoint: the one before it is taken then",
        ) from error


@torch.no_grad()
def _load_gathered(optimizer: Any, names: Names, path: Path) -> None:
    with safe_open(path, "pt") as file:
        stored: dict[str, list[str]] = {}
        for name in file.keys():  # noqa: SIM118, it is no dict
            weight, _, key = name.rpartition("/")
            stored.setdefault(weight, []).append(key)
        for part, weight in _weights(optimizer):
            for key in stored.pop(names[weight], ()):
                name = f"{names[weight]}/{key}"
                shape, dtype = file.get_slice(name).get_shape(), torch.float32
                moment = torch.empty_like(weight, dtype=dtype) if shape else torch.zeros(())
                read_rows(file, name, local(moment), local_rows(moment))
                part.state[weight][key] = moment
    if stored:
        raise KeyError(f"moments of {min(stored)}, which is not trained")


@torch.no_grad()
def _load_whole(optimizer: Any, path: Path) -> None:
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    parts = _parts(optimizer)
    for part, state in zip(parts, held.get("parts", [held]), strict=True):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        for number, moments in state["state"].items():
            weight = weights[number]
            for key, value in moments.items():
                moment = (
                    torch.empty_like(weight, dtype=value.dtype) if value.ndim else value.clone()
                )
                if value.ndim:
                    local(moment).copy_(value[local_rows(weight)])
                part.state[weight][key] = moment


def _parts(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    inner = getattr(optimizer, "optimizer", optimizer)  # out of Accelerate's wrapper
    return inner.optimizers if isinstance(inner, CombinedOptimizer) else (inner,)


def _weights(optimizer: Any) -> Iterator[tuple[torch.optim.Optimizer, torch.Tensor]]:
    """Each trained weight with the optimizer that moves it."""
    for part in _parts(optimizer):
        for group in part.param_groups:
            yield from ((part, weight) for weight in group["params"])


def _names(model: Any) -> Names:
    return {weight: name for name, weight in model.named_parameters() if weight.requires_grad}
