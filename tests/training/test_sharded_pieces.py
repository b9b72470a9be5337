"""Shards of a model: steps, files, moments and sums are those of the whole one. Without Trainer, so
in seconds; test_sharding.py has the whole road.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from safetensors.torch import load_file

from ..killable import start_process
from . import sharded_pieces as pieces

pytestmark = pytest.mark.slow
BOUND = 1e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process found, and what the first of two did."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    steps, weights = pieces.train_alone(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        start_process(pieces.train_together, rank, port, str(one), str(two)) for rank in range(2)
    ]
    for process in started:
        process.join(600)
        assert process.exitcode == 0
    told = [json.loads((two / f"found-{rank}.json").read_text()) for rank in range(2)]
    return {"alone": steps, "weights": weights, "folder": two, **told[0], "other": told[1]}


def apart(one: Any, other: Any) -> float:
    """The largest difference of losses and gradient norms."""
    return max(
        abs(a - b)
        for step, its in zip(one, other, strict=True)
        for a, b in zip(step, its, strict=True)
    )


def test_steps_are_those_of_one_process(found: dict[str, Any]) -> None:
    assert apart(found["alone"], found["steps"]) < BOUND
    end = load_file(found["folder"] / "end.safetensors")
    assert pieces.largest(found["weights"], end) < BOUND
    assert found["steps"] == found["other"]["steps"]


def test_each_process_holds_about_half(found: dict[str, Any]) -> None:
    assert found["held"] + found["other"]["held"] == pytest.approx(1.0)
    assert 0.4 < found["held"] < 0.6


def test_a_checkpoint_goes_on_in_any_number_of_processes(found: dict[str, Any]) -> None:
    assert found["again"] == found["steps"][3:], "to the last bit"
    assert found["again, weights"] == 0
    assert apart(found["from one"], found["alone"][3:]) < BOUND
    assert found["from one, weights"] < BOUND
    model, optimizer = pieces.resumed(found["folder"], shard=False)
    steps = pieces.take_steps(model, optimizer, range(3, pieces.BATCHES))
    assert apart(steps, found["alone"][3:]) < BOUND
    assert pieces.largest(pieces.weights_of(model), found["weights"]) < BOUND


def test_the_gradient_check_sums_over_the_processes(found: dict[str, Any]) -> None:
    for name in ("norms", "products"):
        assert found[name][0] == pytest.approx(found[name][1])
    assert found["direction"] == pytest.approx(1.0)
    assert found["slope"][0] == pytest.approx(found["slope"][1], rel=0.02)
    assert found["moved back"] == 0
    assert found["linear"] == [True, False, True]


def test_training_goes_on_behind_questions(found: dict[str, Any]) -> None:
    assert found["after questions"]
