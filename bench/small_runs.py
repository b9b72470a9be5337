"""Trainings of some seconds, for the benchmarks that kill them and break what they wrote."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from phisense.recipe import load_recipe
from phisense.training import Training, checkpoints
from phisense.training.trainer import StageTrainer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tiny import make_root

STEPS = 60  # of each stage, and a checkpoint each twenty
CHANGES = (
    f"train.align.max_steps={STEPS}",
    f"train.instruct.max_steps={STEPS}",
    "train.log_every=1",
    "features.folder=features/tiny",
)


def make(root: Path) -> None:
    from phisense.cli import run_verb

    make_root(root)
    run_verb("features", root / "tiny.yaml", "--set", CHANGES[-1])


def train(root: Path, name: str, resume: bool, die_at: int | None = None, seed: int = 0) -> None:
    """One life, on one thread: sums in another order differ in their last bit. Each checkpoint's
    optimizer goes into a list of digests.

    `die_at` is the step of *instruct* at which it ends as if killed.
    """
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(root / f"{name}.errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    finish = checkpoints.finish_checkpoint

    def noting(path: Path, *, about: dict[str, Any], keep: int) -> None:
        state = torch.load(path / "optimizer.pt", weights_only=True)["state"]
        digest = hashlib.sha256()
        for number in sorted(state):
            for key in sorted(state[number]):
                digest.update(torch.as_tensor(state[number][key]).numpy().tobytes())
        with (root / f"{name}.optimizers").open("a") as file:
            file.write(json.dumps([path.parent.name, path.name, digest.hexdigest()]) + "\n")
        finish(path, about=about, keep=keep)

    checkpoints.finish_checkpoint = noting
    step = StageTrainer.training_step

    def dying(trainer: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if trainer.about["stage"] == "instruct" and trainer.state.global_step == die_at:
            os._exit(0)
        return step(trainer, *args, **kwargs)

    if die_at is not None:
        StageTrainer.training_step = dying  # type: ignore[method-assign]
    Training(
        load_recipe(root / "tiny.yaml", (*CHANGES, f"name={name}", f"seed={seed}")),
        lambda row: None,
        resume=resume,
        device="cpu",
    )()


def outcome(root: Path, name: str) -> tuple[bytes, list[Any], set[Any]]:
    """Final weights, the loss curve, and the optimizer at each checkpoint."""
    run = root / "runs" / name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [
        (row["stage"], row["step"], row["loss"], row["grad_norm"], row["learning_rate"])
        for row in rows
    ]
    digests = {
        tuple(json.loads(line)) for line in (root / f"{name}.optimizers").read_text().splitlines()
    }
    return (run / "adapter" / "adapter_model.safetensors").read_bytes(), curve, digests
