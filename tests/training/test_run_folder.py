"""Runs that are held, stopped by SIGTERM, and listed; in processes of their own, on parts with
random weights.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.errors import ArtifactError, RecipeError, TrainingError
from phisense.training import checkpoints, trainer
from phisense.training.run_folder import list_runs, lock_run

from ..killable import run_command, start_process
from ..tiny import make_root

pytestmark = pytest.mark.slow

LONG = ("--set", "train.instruct.max_steps=60", "--set", "train.log_every=1")


@pytest.fixture
def root(tmp_path: Path, verb: Any) -> Path:
    make_root(tmp_path)
    verb("features", tmp_path / "tiny.yaml")
    return tmp_path


def start(root: Path, *words: str) -> BaseProcess:
    return start_process(
        run_command, root / "errors", "train", str(root / "tiny.yaml"), *LONG, *words
    )


def end(process: BaseProcess, root: Path) -> tuple[int | None, str]:
    """Exit code and errors."""
    process.join(300)
    return process.exitcode, (root / "errors").read_text()


def until_step(root: Path, step: int) -> None:
    """Waits until *instruct* has logged that many steps."""
    log = root / "runs" / "tiny" / "metrics.jsonl"
    for _ in range(1200):
        if log.is_file() and log.read_text().count('"stage":"instruct"') >= step:
            return
        time.sleep(0.1)
    raise AssertionError("training never got there")


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "runs" / "tiny" / "adapter" / "adapter_model.safetensors")


def test_sigterm_saves_and_a_resumed_run_ends_the_same(root: Path, verb: Any) -> None:
    straight = start(root)
    until_step(root, 1)
    assert [(run.name, run.state) for run in list_runs(root)] == [("tiny", "running")]
    with pytest.raises(TrainingError, match="another process is training in"):
        verb("train", root / "tiny.yaml")
    code, errors = end(straight, root)
    assert code == 0, errors
    assert [run.state for run in list_runs(root)] == ["finished"]
    wanted = weights(root)

    # or its steps would be taken for those of the next
    (root / "runs" / "tiny" / "metrics.jsonl").unlink()
    stopped = start(root, "--overwrite")
    until_step(root, 8)
    stopped.terminate()
    code, errors = end(stopped, root)
    assert code == 143
    assert "stopped by SIGTERM" in errors
    run, before = list_runs(root)
    assert (before.name, before.state) == ("tiny~", "finished")
    assert (run.state, run.stage, run.resumable) == ("stopped", "instruct", True)
    assert run.step is not None
    assert 8 <= run.step < 60
    assert verb("runs", root) == [run.to_dict(), before.to_dict()]

    with (root / "runs" / "tiny" / "metrics.jsonl").open("ab") as log:
        log.write(b'{"stage":"instruct","st')  # as a machine that lost its power may leave it
    again = start(root, "--resume")
    code, errors = end(again, root)
    assert code == 0, errors
    resumed = weights(root)
    assert wanted.keys() == resumed.keys()
    assert all(torch.equal(wanted[name], resumed[name]) for name in wanted)
    lines = [
        json.loads(line)
        for line in (root / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [
        line["step"] for line in lines if line["stage"] == "instruct" and "loss" in line
    ] == list(range(1, 61))
    assert [
        line["step"] for line in lines if line["stage"] == "instruct" and "held_out" in line
    ] == [15, 30, 45, 60]


def die_at_the_first_step(stage: str, errors: Path, *words: str) -> None:
    step = trainer.StageTrainer.training_step

    def dies(self: trainer.StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.about["stage"] == stage:
            os._exit(9)
        return step(self, *args, **kwargs)

    trainer.StageTrainer.training_step = dies  # type: ignore[method-assign]
    run_command(errors, *words)


def die_before_the_stage_is_written(errors: Path, *words: str) -> None:
    checkpoints.finish_stage = lambda *_, **__: os._exit(9)
    run_command(errors, *words)


def test_killed_between_the_stages_it_ends_the_same(root: Path) -> None:
    """What LoRA begins with is drawn after *align*, so the place in the random numbers is part of
    what a stage leaves.
    """
    words = ("train", str(root / "tiny.yaml"), "--set", "train.log_every=1")
    assert end(start_process(run_command, root / "errors", *words), root)[0] == 0
    wanted = weights(root)
    for killed in (partial(die_at_the_first_step, "instruct"), die_before_the_stage_is_written):
        shutil.rmtree(root / "runs")
        code, errors = end(start_process(killed, root / "errors", *words), root)
        assert code == 9, errors
        code, errors = end(start_process(run_command, root / "errors", *words, "--resume"), root)
        assert code == 0, errors
        resumed = weights(root)
        assert all(torch.equal(wanted[name], resumed[name]) for name in wanted)


def test_a_changed_run_is_resumed_only_if_told_so(root: Path, verb: Any) -> None:
    """Recipe, data and features: each difference is named. A stage that had ended is compared,
    too.
    """
    quick = [
        word
        for change in ("train.align.max_steps=2", "train.instruct.max_steps=2")
        for word in ("--set", change)
    ]
    verb("train", root / "tiny.yaml", *quick)
    shutil.rmtree(root / "runs" / "tiny" / "stages" / "instruct")
    verb("train", root / "tiny.yaml", *quick, "--resume")  # the control: unchanged, it goes on
    rate = ("--set", "train.instruct.learning_rate=1.0e-4")
    with pytest.raises(
        ArtifactError,
        match=(
            r"got recipe\.train\.instruct\.learning_rate was \S+, is 0\.0001\. .*--accept-changes"
        ),
    ):
        verb("train", root / "tiny.yaml", *quick, *rate, "--resume")
    rows = (root / "rows.json").read_text()
    talks = json.loads(rows)
    talks[0]["conversations"][1]["value"] = "Something else."
    (root / "rows.json").write_text(json.dumps(talks))
    with pytest.raises(ArtifactError, match=r"got data\.sha256 was \w+, is \w+\."):
        verb("train", root / "tiny.yaml", *quick, "--resume")
    (root / "rows.json").write_text(rows)
    pictures = sorted(path for path in root.rglob("*.png") if "runs" not in path.parts)
    shutil.copy(pictures[0], pictures[1])
    shutil.rmtree(root / "features")
    verb("features", root / "tiny.yaml")
    with pytest.raises(ArtifactError, match=r"got features\.sha256 was \w+, is \w+\."):
        verb("train", root / "tiny.yaml", *quick, "--resume")
    facts = verb("train", root / "tiny.yaml", *quick, *rate, "--resume", "--accept-changes")
    assert facts["stages"]["instruct"]["steps"] == 2


def test_a_killed_run_is_no_running_one(root: Path) -> None:
    process = start(root)
    until_step(root, 1)
    process.kill()
    process.join()
    (run,) = list_runs(root)
    assert run.state == "stopped"
    with lock_run(root / "runs" / "tiny"):  # the control: held, it looks alive
        assert [one.state for one in list_runs(root)] == ["running"]


def test_no_runs_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there are no runs in"):
        list_runs(tmp_path)


def test_further_stages_go_on_with_the_same_adapter(root: Path, verb: Any) -> None:
    talks = json.loads((root / "rows.json").read_text())
    (root / "few.json").write_text(json.dumps(talks[:6]))
    polish = (
        "train.further={polish: {data: [few.json], max_steps: 3, batch_size: 6,"
        " micro_batch_size: 3,"
        " learning_rate: 1.0e-3, max_length: 256}}"
    )
    plain = verb("train", root / "tiny.yaml")
    before = weights(root)
    facts = verb("train", root / "tiny.yaml", "--set", polish, "--overwrite")
    assert list(facts["stages"]) == ["align", "instruct", "polish"]
    assert facts["stages"]["polish"]["samples"] == 6
    assert facts["stages"]["polish"]["steps"] == 3
    assert facts["trainable"] == plain["trainable"]
    after = weights(root)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    staged = load_file(root / "runs" / "tiny" / "stages" / "instruct" / "trainable.safetensors")
    assert any(
        torch.equal(weight, before[name.replace(".default", "")])
        for name, weight in staged.items()
        if "lora_B" in name
    )
    for wrong in ("instruct", "Polish"):
        with pytest.raises(RecipeError, match=f"a further stage cannot be called {wrong}"):
            verb("train", root / "tiny.yaml", "--set", polish.replace("polish", wrong))
    with pytest.raises(
        RecipeError, match="unknown key train.further.polish.epoch; .*Did you mean epochs"
    ):
        verb("train", root / "tiny.yaml", "--set", polish, "--set", "train.further.polish.epoch=2")
