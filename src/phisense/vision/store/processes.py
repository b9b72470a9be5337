"""Which of several processes this is, where `accelerate launch` or `torchrun` started it."""

from __future__ import annotations

import os

from .writing import Processes


def this_process() -> Processes:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # unless told so, it takes processes without GPUs for strangers
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)
