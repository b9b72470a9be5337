"""lmms-eval on a merged folder: a task of the practice world where it is installed, and sentences
where it is not or does not fit.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import PhisenseError, UsageError
from phisense.evaluation import lmms

TASK = """
task: practice_world
dataset_path: json
dataset_kwargs: {{data_files: {rows}, token: false}}
test_split: train
output_type: generate_until
doc_to_visual: !function look.picture
doc_to_text: !function look.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
process_results: !function look.score
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
LOOK = """
from PIL import Image

def picture(doc):
    return [Image.open({images!r} + "/" + doc["image"]).convert("RGB")]

def question(doc, kwargs=None):
    return doc["text"]

def score(doc, results):
    return {{"right": float(results[0].strip() == doc["answer"])}}
"""


def test_where_it_is_not_installed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms, "find_spec", lambda name: None)
    with pytest.raises(
        PhisenseError, match="lmms-eval is not installed here. pip install lmms-eval"
    ):
        lmms.run_lmms_eval(model, "pope", tmp_path)


def test_the_verb_runs_it_and_says_what_does_not_go_together(
    model: Path,
    tmp_path: Path,
    verb: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def run(folder: Path, tasks: str, out: Path, **more: Any) -> lmms.LmmsEvalResult:
        asked.append((folder, tasks, out, more))
        return lmms.LmmsEvalResult({"pope": {"pope_accuracy": 0.875}}, {}, "there")

    monkeypatch.setattr(lmms, "run_lmms_eval", run)
    result = verb(
        "evaluate", model, "--lmms-eval", "pope", "--out", tmp_path, "--limit", 8, "--device", "cpu"
    )
    assert result == {
        "tasks": {"pope": {"pope_accuracy": 0.875}},
        "versions": {},
        "report": "there",
    }
    assert asked == [(model, "pope", tmp_path, {"device": "cpu", "include": None, "limit": 8})]
    assert "0.8750" in capsys.readouterr().out
    with pytest.raises(UsageError, match="asks its own questions in its own way; got --data"):
        verb("evaluate", model, "--lmms-eval", "pope", "--data", "questions.jsonl")


def test_folders_that_its_adapter_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "aya_vision"}')
    with pytest.raises(
        UsageError, match="adapter does not open .*; got model type aya_vision; wanted llava"
    ):
        lmms.run_lmms_eval(tmp_path, "pope", tmp_path)


def test_one_that_fails_or_writes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(lmms, "find_spec", lambda name: object())
    for code in (3, 0):
        monkeypatch.setattr(
            lmms,
            "words",
            lambda *asked, code=code: [sys.executable, "-c", f"raise SystemExit({code})"],
        )
        with pytest.raises(
            PhisenseError, match=f"lmms-eval ended without results; got exit code {code}"
        ):
            lmms.run_lmms_eval(model, "pope", tmp_path)


def test_its_words(tmp_path: Path) -> None:
    line = " ".join(lmms.words(tmp_path, "pope,gqa", tmp_path / "out", "cpu", None, 5))
    assert f"--tasks pope,gqa --model_args pretrained={tmp_path},device=cpu,device_map=cpu" in line
    assert line.endswith("--limit 5")


@pytest.mark.slow
def test_a_task_of_ones_own(
    model: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("lmms_eval") is None:
        pytest.skip("lmms-eval is not installed")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = (world / "data" / "heldout.jsonl").read_text().splitlines()[:20]
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "task" / "practice_world.yaml").write_text(
        TASK.format(rows=tmp_path / "task" / "rows.jsonl")
    )
    (tmp_path / "task" / "look.py").write_text(LOOK.format(images=str(world / "data" / "images")))
    scores = lmms.run_lmms_eval(
        model, "practice_world", tmp_path / "out", device="cpu", include=tmp_path / "task", limit=12
    )
    assert scores.tasks["practice_world"]["right"] >= 0.75
    samples = (
        next((tmp_path / "out").rglob("*samples_practice_world.jsonl")).read_text().splitlines()
    )
    assert len(samples) == 12
    assert {json.loads(one)["doc_id"] for one in samples} == set(range(12))
