"""A step's loss and what is learned from it do not depend on how the step is cut: into
micro-batches, or among processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.distributed import ProcessGroup
from phisense.errors import TrainingError, UsageError
from phisense.recipe import load_recipe
from phisense.training import Training
from phisense.training.data import Samples
from phisense.training.objectives import supervised
from phisense.training.run_folder import list_runs
from phisense.training.sampler import LengthGroupedSampler

from ..tiny import make_root

pytestmark = pytest.mark.slow

BATCH = 8
#: Ten conversations in batches of eight: the second step of an epoch is two rows long.
CHANGES = (
    "train.share_pictures=false",
    "train.quantize=false",
    "train.log_every=1",
    "train.lora.dropout=0.0",
    "seed=3",
    *(
        f"train.{stage}.{key}"
        for stage in ("align", "instruct")
        for key in (f"batch_size={BATCH}", "max_steps=4")
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    root = tmp_path_factory.mktemp("processes")
    make_root(root)
    rows = json.loads((root / "rows.json").read_text())[:10]
    for i, row in enumerate(rows):
        row["conversations"][1]["value"] = (
            "the circle is red and the star is blue " * (i % 4) + "yes."
        )
    (root / "rows.json").write_text(json.dumps(rows))
    verb("features", root / "tiny.yaml", *changed())
    return root


def changed(*more: str) -> list[str]:
    return [word for change in (*CHANGES, *more) for word in ("--set", change)]


#: How far losses and weights may be apart when a step is cut otherwise. In float32 only the order
#: of sums differs. In bfloat16 each product is rounded to 8 bits, and rows that are computed
#: together decide in which order a kernel sums before it rounds; and AdamW divides a gradient by
#: its size, so where one is all rounding, a weight goes another way by up to the learning rate
#: (0.001) a step.
BOUNDS = {"float32": (1e-6, 1e-5), "bfloat16": (5e-3, 8e-3)}


def micro(rows: int, name: str, compute: str = "float32") -> list[str]:
    batches = (f"train.{stage}.micro_batch_size={rows}" for stage in ("align", "instruct"))
    return [
        "--overwrite",
        *changed(
            f"name={name}", f"compute_dtype={compute}", "features.folder=features/tiny", *batches
        ),
    ]


def told(root: Path, name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and trained weights."""
    rows = [
        json.loads(line)
        for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 8, "four steps of each stage"
    return (
        losses,
        load_file(root / "runs" / name / "adapter" / "adapter_model.safetensors"),
    )


def apart(one: Any, other: Any) -> tuple[float, float]:
    """The largest difference of losses, and of weights."""
    losses = max(abs(a - b) for a, b in zip(one[0], other[0], strict=True))
    return losses, max(float((one[1][name] - other[1][name]).abs().max()) for name in one[1])


@pytest.mark.parametrize("compute", BOUNDS)
def test_one_step_however_it_is_cut(
    root: Path, verb: Any, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb("train", root / "tiny.yaml", *micro(8, "whole", compute))
    verb("train", root / "tiny.yaml", *micro(1, "cut", compute))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [
        "-m",
        "phisense",
        "train",
        str(root / "tiny.yaml"),
        *micro(4, "two", compute),
        "--json",
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *words,
    ]
    ran = subprocess.run(
        torchrun, capture_output=True, text=True, timeout=300, check=False, env=env
    )
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)  # once, not by each
    if compute == "bfloat16":  # else there is no twin
        assert_gradients_checked(facts)
    whole = told(root, "whole")
    for name in ("cut", "two"):
        losses, weights = apart(whole, told(root, name))
        assert losses <= BOUNDS[compute][0], (name, losses)
        assert weights <= BOUNDS[compute][1], (name, weights)
    one = json.loads((root / "runs" / "whole" / "train.json").read_text())["stages"]["instruct"]
    assert facts["stages"]["instruct"]["tokens"] == one["tokens"], "each token counted once"

    def mean_of_means(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        wanted = labels[:, 1:][labels[:, 1:] != -100]
        return torch.nn.functional.cross_entropy(outputs.logits.float(), wanted) / BATCH

    monkeypatch.setattr(supervised, "supervised_loss", mean_of_means)
    verb("train", root / "tiny.yaml", *micro(1, "control", compute))
    assert apart(whole, told(root, "control"))[0] > 2 * BOUNDS[compute][0], (
        "each conversation's mean, as much as the next one's"
    )


def test_two_machines(root: Path, verb: Any) -> None:
    """As far as one can play two: a launcher for each, which find one another by an address and a
    port, and a folder both reach. How processes share a step is the same in each format.
    """
    compute = "float32"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["-m", "phisense", "train", str(root / "tiny.yaml"), *micro(4, "nodes", compute)]
    place = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", *place]
    machines = [
        subprocess.Popen(
            [*launch, "--node-rank", str(rank), *words], stderr=subprocess.PIPE, text=True, env=env
        )
        for rank in range(2)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    verb("train", root / "tiny.yaml", *micro(8, "alone", compute))
    losses, weights = apart(told(root, "alone"), told(root, "nodes"))
    assert losses <= BOUNDS[compute][0]
    assert weights <= BOUNDS[compute][1]


def test_the_gradient_is_checked_in_every_stage(root: Path) -> None:
    """In bfloat16, where Accelerate wraps the same model anew for each stage: the float32 twin must
    be found under all of it. Here of all weights; `test_one_step_however_it_is_cut` has LoRA's.
    """
    name = "checked"
    further = "{more: {data: [rows.json], batch_size: 8, micro_batch_size: 4, max_steps: 2}}"
    changes = ("train.lora=null", f"train.further={further}")
    words = [
        "-m",
        "phisense",
        "train",
        str(root / "tiny.yaml"),
        *micro(4, name, "bfloat16"),
        "--json",
    ]
    words += [word for change in changes for word in ("--set", change)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *words,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        torchrun, capture_output=True, text=True, timeout=300, check=False, env=env
    )
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert list(facts["stages"]) == ["align", "instruct", "more"]
    assert_gradients_checked(facts)


def assert_gradients_checked(facts: dict[str, Any]) -> None:
    for stage in facts["stages"].values():
        assert stage["gradient_check"]
        for one in stage["gradient_check"]:
            assert all(part["error"] < 0.02 and part["cosine"] > 0.98 for part in one["parts"])


@pytest.mark.parametrize("flag", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launcher_that_cuts_the_model_up_is_refused(
    root: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flag, "true")
    with pytest.raises(UsageError, match="does not let the launcher shard the model.*train.shard"):
        Training(load_recipe(root / "tiny.yaml"), lambda row: None)


def test_sigterm_stops_all_processes_at_the_same_step(root: Path) -> None:
    words = [
        "-m",
        "phisense",
        "train",
        str(root / "tiny.yaml"),
        *micro(4, "stopped"),
        "--set",
        "train.instruct.max_steps=400",
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *words,
    ]
    log = root / "runs" / "stopped" / "metrics.jsonl"
    with subprocess.Popen(
        torchrun, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        for _ in range(1200):
            if log.is_file() and log.read_text().count('"stage":"instruct"') >= 6:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # torchrun hands it on to each
        _, errors = process.communicate(timeout=120)
    assert "stopped by SIGTERM" in errors
    (run,) = (one for one in list_runs(root) if one.name == "stopped")
    assert (run.state, run.stage, run.resumable) == ("stopped", "instruct", True)
    assert run.step is not None
    assert 6 <= run.step < 400
    (whole,) = {
        path.name for path in (log.parent / "stages" / "instruct").glob(f"checkpoint-{run.step}")
    }
    assert (log.parent / "stages" / "instruct" / whole / "manifest.json").is_file()


def test_a_batch_that_the_processes_cannot_share_is_refused(root: Path) -> None:
    changes = tuple(word for word in micro(4, "three") if not word.startswith("--"))
    training = Training(
        load_recipe(root / "tiny.yaml", changes), lambda row: None, processes=ProcessGroup(0, 3)
    )
    with pytest.raises(
        TrainingError,
        match="the processes cannot share a batch; got 8 conversations in 8 rows, 3 processes",
    ):
        training()


def test_rows_of_several_conversations_make_the_same_step_however_it_is_cut() -> None:
    samples = Samples.__new__(Samples)
    samples.rows, samples.conversations = [None] * 100, 194  # type: ignore[list-item]
    assert [samples.rows_for(n) for n in (1, 2, 4, 8, 16, 20, 128)] == [1, 1, 2, 4, 8, 10, 64]
    for micro_batch_size, processes, rows in (
        (128, 1, 64),
        (16, 1, 8),
        (16, 2, 8),
        (1, 4, 1),
        (128, 4, 16),
        (7, 1, 4),
    ):
        assert samples.micro_batch_rows(128, micro_batch_size, processes) == rows
    samples.rows = [None] * 194  # type: ignore[list-item]
    assert samples.rows_for(31) == 31, "each row one conversation"


def test_an_epochs_last_batch_is_filled_up() -> None:
    lengths = [5, 3, 9, 4, 7]
    assert sorted(LengthGroupedSampler(lengths, 4, seed=0)) == [0, 1, 2, 3, 4]
    filled = LengthGroupedSampler(lengths, 4, seed=0, fill_last=True)
    order = list(filled)
    assert len(order) == len(filled) == 8
    assert sorted(order[:5]) == [0, 1, 2, 3, 4]
    assert order[5:] == [~1] * 3, "the shortest, with nothing to learn from it"
