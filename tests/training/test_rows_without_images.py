"""Rows of which some, whole steps even, have no image: the projector learns of the others, and
nothing moves it meanwhile; by one process or by several.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.training import stages

from ..tiny import make_root
from .sharded_runs import run

pytestmark = pytest.mark.slow

MOVES = "the idle projector moves"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    """Twelve conversations, of which four have an image."""
    root = tmp_path_factory.mktemp("text")
    make_root(root)
    rows = json.loads((root / "rows.json").read_text())
    verb("features", root / "tiny.yaml", "--set", "features.folder=features/tiny")
    for i, row in enumerate(rows):
        if i % 3:
            del row["image"]
            question = row["conversations"][0]
            question["value"] = question["value"].replace("<image>\n", "")
    (root / "rows.json").write_text(json.dumps(rows))
    return root


def options(name: str, *, batch: int, micro: int, checkpointing: bool) -> list[str]:
    every = [
        f"name={name}",
        "features.folder=features/tiny",
        "compute_dtype=float32",
        "train.share_pictures=false",
        "train.log_every=1",
        "train.eval.questions=0",
        f"train.gradient_checkpointing={str(checkpointing).lower()}",
        *(
            f"train.{stage}.{key}={value}"
            for stage in ("align", "instruct")
            for key, value in (("batch_size", batch), ("micro_batch_size", micro), ("max_steps", 6))
        ),
        "train.lora.dropout=0.0",
    ]
    return [word for change in every for word in ("--set", change)]


def trained(root: Path, name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of both stages, and the weights that each ended with."""
    folder = root / "runs" / name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = {
        f"{stage}: {key}": weight
        for stage in ("align", "instruct")
        for key, weight in load_file(folder / "stages" / stage / "trainable.safetensors").items()
    }
    return [row["loss"] for row in rows if "loss" in row], weights


def apart(
    some: tuple[list[float], dict[str, torch.Tensor]],
    others: tuple[list[float], dict[str, torch.Tensor]],
) -> tuple[float, float]:
    losses = max(abs(a - b) for a, b in zip(some[0], others[0], strict=True))
    weights = max(float((some[1][k] - others[1][k]).abs().max()) for k in some[1])
    return losses, weights


@pytest.mark.parametrize("batch", [1, 4])
def test_rows_without_an_image_align_with_and_without_checkpointing(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """One at a time, so that whole steps, or micro-batches, have none; alike in both ways."""
    told = {}
    for checkpointing in (True, False):
        name = f"{batch}-{checkpointing}"
        words = options(name, batch=batch, micro=1, checkpointing=checkpointing)
        verb("train", root / "tiny.yaml", *words)
        told[checkpointing] = trained(root, name)
    losses, weights = apart(told[True], told[False])
    assert losses <= 1e-5
    assert weights <= 1e-5

    @contextmanager
    def nothing(run: Any, model: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(stages, "use_of_projector", nothing)
    words = options(f"{batch}-control", batch=batch, micro=1, checkpointing=False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        verb("train", root / "tiny.yaml", *words)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_two_processes_train_as_one(root: Path, checkpointing: bool) -> None:
    """Though in most steps one of them has no image, and in some none has."""
    told = []
    for count in (1, 2):
        words = options(f"of-{count}", batch=2, micro=2 // count, checkpointing=checkpointing)
        words.append("--overwrite")
        run(count, root / "told" / str(count), ["train", str(root / "tiny.yaml"), *words])
        told.append(trained(root, f"of-{count}"))
    losses, weights = apart(*told)
    assert losses <= 1e-5
    assert weights <= 1e-5
    # The control: a step without images moves the projector by its momentum.
    run(2, root / "told" / "moved", ["train", str(root / "tiny.yaml"), *words], MOVES)
    assert apart(told[0], trained(root, "of-2"))[1] > 1e-4
