"""Which of several processes this is, where `accelerate launch` or `torchrun` started it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True, slots=True)
class Processes:
    """`wait` waits for all the others, `total` adds up a number and `gather` joins a list over all; each of them must call them."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    total: Callable[[float], float] = lambda number: number
    gather: Callable[[list[str]], list[str]] = lambda found: found

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what is written once."""
        return self.rank == 0


def this_process() -> Processes:
    """Raises UsageError where the launcher was told to cut the model up: what is saved and compared here is whole."""
    for flag, what in {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}.items():
        if os.environ.get(flag, "false").lower() == "true":
            raise UsageError(
                "phisense train keeps a whole model in every process", got=what,
                do="Launch with --multi_gpu, or by torchrun; docs/recipes.md says why",
            )  # fmt: skip
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=not torch.cuda.is_available())  # unless told so, it takes processes without GPUs for strangers

    def total(number: float) -> float:
        held = torch.tensor(number, dtype=torch.float64, device=state.device)
        torch.distributed.all_reduce(held)
        return float(held)

    return Processes(state.process_index, state.num_processes, state.wait_for_everyone, total, gather_object)
