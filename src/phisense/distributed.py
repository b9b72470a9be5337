"""Rank, world size and collectives of a process under `accelerate launch` or `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """`barrier` waits for all processes, `all_reduce_sum` sums a number and `all_gather`
    concatenates a list over them. They are collectives: every process must call them.
    """

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None
    all_reduce_sum: Callable[[float], float] = lambda number: number
    all_gather: Callable[[list[str]], list[str]] = lambda found: found

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0


def is_first_process() -> bool:
    """Whether the launcher made this the first process, or there is no launcher; forms no group."""
    return os.environ.get("RANK", "0") == "0"


def current_process_group() -> ProcessGroup:
    """The process group of the launcher, or a single process. Raises UsageError if the launcher is
    to shard the model by FSDP or DeepSpeed: Accelerate shards nothing on CPUs, without a word, and
    leaves out what it cannot shard. `train.shard` does it instead.
    """
    for flag, what in {
        "ACCELERATE_USE_FSDP": "FSDP",
        "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    }.items():
        if os.environ.get(flag, "false").lower() == "true":
            raise UsageError(
                "phisense train does not let the launcher shard the model", got=what,
                do="Launch with --multi_gpu, or by torchrun, and set train.shard: true",
            )  # fmt: skip
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ProcessGroup()
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    # without `cpu=True`, PartialState does not form a group of processes that have no GPU
    state = PartialState(cpu=not torch.cuda.is_available())

    def total(number: float) -> float:
        held = torch.tensor(number, dtype=torch.float64, device=state.device)
        torch.distributed.all_reduce(held)
        return float(held)

    return ProcessGroup(
        state.process_index, state.num_processes, state.wait_for_everyone, total, gather_object
    )
