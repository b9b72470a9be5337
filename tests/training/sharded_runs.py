"""Processes that train one model together, without a launcher, each of which can be made to do
something wrong.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..killable import run_command, start_process


def start(count: int, folder: Path, words: Sequence[str], fault: str = "") -> list[BaseProcess]:
    """Start `phisense WORDS` in so many processes of one group; `fault` is a name of `FAULTS`, or
    STAGE:STEP, where the first process kills itself behind a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start_process(
            _one_of_them,
            str(folder),
            {
                name: str(value)
                for name, value in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()
            }
            if count > 1
            else {},
            fault,
            *words,
        )
        for rank in range(count)
    ]


def run(count: int, folder: Path, words: Sequence[str], fault: str = "") -> None:
    """Let them finish. What a process printed is in `folder`."""
    started = start(count, folder, words, fault)
    for rank, process in enumerate(started):
        process.join(1200)
        told = (folder / f"errors-{rank}").read_text()[-3000:]
        assert process.exitcode == 0, f"process {rank} of {words}: {told}"


def run_until_killed(count: int, folder: Path, words: Sequence[str], where: str) -> None:
    """Kill all of them when the first has killed itself."""
    started = start(count, folder, words, where)
    started[0].join(1200)
    for process in started:
        process.kill()
        process.join(60)
    assert started[0].exitcode == -signal.SIGKILL, (folder / "errors-0").read_text()[-3000:]


def held(folder: Path, count: int) -> list[tuple[int, int]]:
    """For each process the weights that it held when the run was saved, and those of the model."""
    told = [json.loads((folder / f"held-{rank}").read_text()) for rank in range(count)]
    return [(int(mine), int(whole)) for mine, whole in told]


def _one_of_them(folder: str, env: dict[str, str], fault: str, *words: str) -> None:
    os.environ.update(env)
    rank = env.get("RANK", "0")
    os.dup2(os.open(f"{folder}/printed-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    _note_what_is_held(Path(folder) / f"held-{rank}")
    if ":" in fault:
        if rank == "0":
            _die_behind(*fault.split(":"))
    elif fault:
        FAULTS[fault]()
    run_command(Path(folder) / f"errors-{rank}", *words)


def _note_what_is_held(path: Path) -> None:
    from phisense.model import trainable
    from phisense.model.sharding import local

    save = trainable.save_trained

    def noted(model: Any, *args: Any, **kwargs: Any) -> None:
        weights = [weight for name, weight in model.named_parameters()]
        mine = sum(local(weight).numel() for weight in weights)
        path.write_text(json.dumps((mine, sum(weight.numel() for weight in weights))))
        save(model, *args, **kwargs)

    trainable.save_trained = noted


def _die_behind(stage: str, step: str) -> None:
    from phisense.training import checkpoints

    finish = checkpoints.finish_checkpoint

    def finished(path: Path, **kwargs: Any) -> None:
        finish(path, **kwargs)
        if (path.parent.name, path.name) == (stage, f"checkpoint-{step}"):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.finish_checkpoint = finished


def _sum_gradients() -> None:
    """Gradients are summed over the processes, not averaged."""
    from torch.distributed import ReduceOp
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    def undivided(*_: Any, **__: Any) -> tuple[None, None, Any, Any]:
        return None, None, ReduceOp.SUM, ReduceOp.SUM

    # torch's own way, a factor of 1, needs NCCL
    _fsdp_collectives._get_gradient_divide_factors = undivided


def _train_alone() -> None:
    """The model is neither sharded nor wrapped: each process learns from its own rows."""
    from phisense.training import run_context, stage_run, trainer

    run_context.RunContext.shards = property(lambda self: False)  # type: ignore[assignment,misc]
    prepared = trainer.StageTrainer.__init__

    def unwrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        prepared(self, *args, **kwargs)
        trainer.prepare_unwrapped(self.accelerator)

    trainer.StageTrainer.__init__ = unwrapped  # type: ignore[method-assign]
    assert stage_run.StageTrainer is trainer.StageTrainer


def _move_idle_projector() -> None:
    """A step without images moves the projector by its momentum."""
    from phisense.training import sharded_steps

    sharded_steps.IdleProjector.on_pre_optimizer_step = (  # type: ignore[method-assign]
        lambda *_, **__: None  # type: ignore[assignment]
    )


FAULTS: dict[str, Callable[[], None]] = {
    "gradients are summed": _sum_gradients,
    "each trains alone": _train_alone,
    "the idle projector moves": _move_idle_projector,
}
