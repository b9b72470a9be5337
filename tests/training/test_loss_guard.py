"""A bad step is never taken: the run stops with its conversations' names, or leaves it out and goes
on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.distributed import ProcessGroup
from phisense.errors import TrainingError
from phisense.recipe import Stage, Train
from phisense.training import loss_guard, trainer
from phisense.training.loss_guard import LossGuard
from phisense.training.objectives import supervised

from ..tiny import make_root

pytestmark = pytest.mark.slow

STEPS, BAD = 30, 14
CHANGES = (
    "train.align=null",
    f"train.instruct.max_steps={STEPS}",
    "train.log_every=1",
    "features.folder=features/tiny",
    "train.instruct.batch_size=4",
    "train.instruct.warmup_ratio=0.0",
    "train.instruct.micro_batch_size=2",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    root = tmp_path_factory.mktemp("guard")
    make_root(root)
    verb("features", root / "tiny.yaml")
    return root


def train(root: Path, verb: Any, *changes: str, resume: tuple[str, ...] = ()) -> Any:
    words = [word for change in (*CHANGES, *changes) for word in ("--set", change)]
    return verb("train", root / "tiny.yaml", *words, *(resume or ("--overwrite",)))


def spoil(
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[torch.Tensor], torch.Tensor],
    steps: tuple[int, ...] = (BAD,),
) -> list[Any]:
    """The losses of these steps, counted from 0, become what `how` makes of them. Returns the
    weights before each step and at the end.
    """
    seen: list[Any] = []
    step, loss = trainer.StageTrainer.training_step, supervised.supervised_loss
    now: list[int] = [0]

    def noting(self: Any, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        now[0] = self.state.global_step
        if len(seen) <= now[0]:
            seen.append(
                {
                    name: p.detach().clone()
                    for name, p in model.named_parameters()
                    if p.requires_grad
                }
            )
        return step(self, model, *args, **kwargs)

    def spoilt(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = loss(*args, **kwargs)
        return how(found) if now[0] in steps else found

    monkeypatch.setattr(trainer.StageTrainer, "training_step", noting)
    monkeypatch.setattr(supervised, "supervised_loss", spoilt)
    return seen


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]


WAYS = [
    pytest.param(lambda loss: loss * float("nan"), "the loss is not finite", id="nan"),
    pytest.param(lambda loss: loss * float("inf"), "the loss is not finite", id="inf"),
    pytest.param(lambda loss: loss + 100.0, "the loss jumped", id="jump"),
    pytest.param(
        lambda loss: loss + (loss - loss.detach()) * 1e38 * 1e38,
        "the gradient is not finite",
        id="gradient",
    ),
]


@pytest.mark.parametrize(("how", "why"), WAYS)
def test_a_bad_step_stops_the_run(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, how: Any, why: str
) -> None:
    spoil(monkeypatch, how)
    with pytest.raises(
        TrainingError, match=f"{why} at step {BAD + 1}; .* from the conversations .*accept-changes"
    ):
        train(root, verb, "name=stopped")
    last = rows(root, "stopped")[-1]
    assert last["why"] == why
    assert 1 <= len(last["skipped"]) <= 4
    assert set(last["skipped"]) <= {
        row["id"] for row in json.loads((root / "rows.json").read_text())
    }


@pytest.mark.parametrize(("how", "why"), WAYS)
def test_a_bad_step_can_be_left_out(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, how: Any, why: str
) -> None:
    seen = spoil(monkeypatch, how)
    train(root, verb, "name=skipped", "train.bad_step=skip")
    changed = [
        any(not torch.equal(one[name], other[name]) for name in one)
        for one, other in itertools.pairwise(seen)
    ]
    assert [step for step, moved in enumerate(changed) if not moved] == [BAD], (
        "the weights stay at that step, and at no other"
    )
    (row,) = (row for row in rows(root, "skipped") if "skipped" in row)
    assert (row["step"], row["why"]) == (BAD + 1, why)
    weights = load_file(root / "runs" / "skipped" / "adapter" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_without_the_guard_one_bad_step_spoils_the_weights(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(LossGuard, "on_pre_optimizer_step", lambda *_, **__: None)
    seen = spoil(monkeypatch, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match="training did not move the projector"):
        train(root, verb, "name=control")
    assert all(bool(torch.isfinite(weight).all()) for weight in seen[BAD].values())
    assert not any(bool(torch.isfinite(weight).all()) for weight in seen[BAD + 1].values())


def test_what_stopped_can_be_resumed_with_skipping(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, lambda loss: loss * float("nan"), (22,))
        train(root, verb, "name=straight", "train.bad_step=skip")
    with monkeypatch.context() as patch:
        spoil(patch, lambda loss: loss * float("nan"), (22,))
        with pytest.raises(TrainingError, match="at step 23"):
            train(root, verb, "name=resumed")
    with monkeypatch.context() as patch:
        spoil(patch, lambda loss: loss * float("nan"), (22,))
        train(
            root,
            verb,
            "name=resumed",
            "train.bad_step=skip",
            resume=("--resume", "--accept-changes"),
        )
    straight, resumed = (
        load_file(root / "runs" / name / "adapter" / "adapter_model.safetensors")
        for name in ("straight", "resumed")
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_run_of_bad_steps_stops_whatever_the_recipe_says(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda loss: loss * float("nan"), tuple(range(10, 25)))
    with pytest.raises(TrainingError, match="wanted fewer than 10 such steps in a row"):
        train(root, verb, "name=lost", "train.bad_step=skip")


def test_the_guard_goes_on_where_it_was() -> None:
    one, other = (
        LossGuard(Train(instruct=Stage()), ProcessGroup(), lambda row: None) for _ in range(2)
    )
    one.recent.extend(float(i) for i in range(loss_guard.WINDOW_STEPS + 5))
    one.consecutive = 3
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (list(other.recent), other.consecutive) == (list(one.recent), 3)
    assert len(other.recent) == loss_guard.WINDOW_STEPS
