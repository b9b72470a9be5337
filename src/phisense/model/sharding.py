"""Sharding: every process holds its rows of each weight, and of its gradient and moments (FSDP2).

    group                      whole while
    each decoder layer         its forward and its backward pass run
    embeddings, output matrix  theirs do; if they are one tensor, it belongs to the root
    root                       the model's forward and backward pass run: norm and projector

Torch's `fully_shard` gathers a group before it computes and shards its gradients, averaged over the
processes, afterwards. Outside of that a parameter is a DTensor, of which `local` is this process's
rows; `whole` gathers them. What gathers or sums over processes is a collective: every process must
call it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .projector_use import ProjectorUse

_USE = "_phisense_projector_use"


def _as_dtensor(tensor: torch.Tensor) -> Any | None:
    """The tensor if it is a DTensor. Their module is imported only where something is sharded: not
    every build of torch has it, and most of phisense never needs it.
    """
    return tensor if hasattr(tensor, "device_mesh") else None


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each process holds only some rows of the tensor."""
    return _as_dtensor(tensor) is not None


def is_sharded_module(module: nn.Module) -> bool:
    """Whether `shard_module` made a group of the module's parameters."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; of a sharded one the gathered rows, a copy. A collective."""
    sharded = _as_dtensor(tensor)
    found: torch.Tensor = tensor if sharded is None else sharded.full_tensor()
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows that this process holds, the same memory; all of them if it is not sharded."""
    sharded = _as_dtensor(tensor)
    found: torch.Tensor = tensor if sharded is None else sharded.to_local()
    return found


def local_rows(tensor: torch.Tensor) -> slice:
    """Which rows `local` returns: of N rows and P processes ceil(N / P) each, the last ones the
    rest. A tensor without dimensions is not sharded.
    """
    sharded = _as_dtensor(tensor)
    if sharded is None:
        return slice(0, tensor.shape[0] if tensor.ndim else None)
    mesh, rows = sharded.device_mesh, tensor.shape[0]
    each = -(-rows // mesh.size())
    start = min(mesh.get_local_rank() * each, rows)
    found = slice(start, min(start + each, rows))
    assert local(tensor).shape[0] == found.stop - found.start, "torch shards otherwise"
    return found


def sum_over_shards(total: float, tensors: Sequence[torch.Tensor]) -> float:
    """`total`, a sum over the local rows of `tensors`, summed over the processes if these are
    sharded. A collective.
    """
    sharded = next((one for one in map(_as_dtensor, tensors) if one is not None), None)
    if sharded is None:
        return total
    held = torch.tensor(total, dtype=torch.float64, device=sharded.device)
    torch.distributed.all_reduce(held, group=sharded.device_mesh.get_group())
    return float(held)


@functools.cache
def process_mesh(device: str) -> Any:
    """All processes of the launcher as a row, with `device` "cpu" or "cuda"."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (torch.distributed.get_world_size(),))


def shard_module(module: nn.Module, device: torch.device) -> None:
    """Shard the module's parameters, apart from those of modules in it that are sharded already, as
    one group. This process keeps copies of its rows.
    """
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=process_mesh(device.type), reshard_after_forward=True)


def shard_root(root: Any, device: torch.device) -> None:
    """Shard what is left of a model whose layers are sharded, and make it ready for training.
    `requires_grad` of no parameter may change after this.
    """
    use = ProjectorUse(root)
    root.__dict__[_USE] = use
    use.attach(root)
    shard_module(root, device)
    for module in root.modules():
        # torch chooses the root at the first use, and keeps what it allocates at the first: it must
        # be in no inference mode
        if is_sharded_module(module):
            module.unshard()
            module.reshard()


def projector_use(root: Any) -> ProjectorUse | None:
    """That of a model that `shard_root` sharded, None of any other."""
    found: ProjectorUse | None = root.__dict__.get(_USE)
    return found


@contextmanager
def root_gathered(root: Any) -> Iterator[None]:
    """Inside the context the root's group stays whole, so that its modules can be called without
    it, as the projector is when questions are answered. Nothing changes for a model in one piece.
    """
    if not is_sharded_module(root):
        yield
        return
    root.set_reshard_after_forward(False, recurse=False)
    root.unshard()
    try:
        yield
    finally:
        root.reshard()
        root.set_reshard_after_forward(True, recurse=False)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is `nn.Linear` itself, sharded or not, and of no subclass."""
    kind: type = type(module)
    # `fully_shard` puts a class of its own between a module and its class
    return (kind.__bases__[1] if is_sharded_module(module) else kind) is nn.Linear


def rows_like(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`rows` as the local ones of a tensor that is sharded as `tensor` is; `rows` themselves if it
    is not.
    """
    sharded = _as_dtensor(tensor)
    if sharded is None:
        return rows
    from torch.distributed.tensor import DTensor

    found: torch.Tensor = DTensor.from_local(
        rows,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return found
