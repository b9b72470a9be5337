"""`phisense.pipeline.evaluate`: the step as a function, on a tiny model with random weights."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phisense import artifacts
from phisense.errors import ArtifactError, UsageError
from phisense.evaluation.results import SCORED, EvaluationReport
from phisense.model.folder import MODEL_KIND
from phisense.pipeline import evaluate as step
from phisense.pipeline.evaluate import compare_reports, evaluate, score_answers
from phisense.pipeline.progress import Event, Notice, Progress

from ..evaluation.samples import lines, pope
from ..tiny import make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    """A tiny recipe, walked to its model folder; its recipe cuts answers at 4 tokens."""
    root = tmp_path_factory.mktemp("tiny")
    make_root(root)
    verb("features", root / "tiny.yaml")
    verb("train", root / "tiny.yaml", "--set", "evaluate.batch_size=5")
    verb("merge", root / "runs" / "tiny")
    return root


@pytest.fixture
def asked(root: Path) -> dict[str, Any]:
    return {"data": root / "rows.json", "images": [root / "images"], "device": "cpu"}


@pytest.fixture(scope="module")
def report(root: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationReport:
    return evaluate(
        root / "models" / "tiny",
        data=[root / "rows.json"],
        images=[root / "images"],
        out=tmp_path_factory.mktemp("reports") / "tiny",
        device="cpu",
    )


@pytest.mark.slow
def test_the_result_is_what_lies_on_disk(report: EvaluationReport) -> None:
    assert report.folder is not None
    assert EvaluationReport.load(report.folder) == report
    assert report.to_dict() == json.loads((report.folder / "scores.json").read_text())
    assert tuple(report.conditions) == SCORED
    assert 0 <= report.real.accuracy.low <= report.real.accuracy.value <= report.real.accuracy.high
    assert (report.questions, report.verdict) == (12, "too few")


@pytest.mark.slow
def test_the_verb_prints_the_same(
    root: Path, verb: Any, report: EvaluationReport, tmp_path: Path
) -> None:
    words = ["--data", root / "rows.json", "--images", root / "images", "--device", "cpu"]
    printed = verb("evaluate", root / "models" / "tiny", *words, "--out", tmp_path / "tiny")
    found, wanted = dict(printed), dict(report.to_dict())
    assert found.pop("report") == str(tmp_path / "tiny" / "report.html")
    for one in (found, wanted):
        one["about"] = {k: v for k, v in one["about"].items() if k != "seconds"}
    assert found == wanted


@pytest.mark.slow
def test_what_the_recipe_says_holds_unless_an_option_says_otherwise(
    root: Path, report: EvaluationReport, asked: dict[str, Any], tmp_path: Path
) -> None:
    assert (report.about.batch_size, report.about.max_new_tokens) == (5, 4)
    asked |= {"conditions": ["real"], "limit": 3}
    said = evaluate(
        root / "models" / "tiny", batch_size=2, max_new_tokens=3, out=tmp_path / "said", **asked
    )
    assert (said.about.batch_size, said.about.max_new_tokens) == (2, 3)
    run = evaluate(root / "runs" / "tiny", out=tmp_path / "run", **asked)
    assert (run.about.batch_size, run.about.max_new_tokens) == (5, 4)
    assert run.about.model == "tiny-unmerged"
    changed = evaluate(
        root / "runs" / "tiny", out=tmp_path / "changed", changes=["evaluate.batch_size=7"], **asked
    )
    assert changed.about.batch_size == 7


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [None, {}, {"recipe": {}}])
def test_a_model_of_no_recipe_has_the_defaults(
    recorded: Any, root: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    """The control: what was honoured above is the recipe's."""
    model = tmp_path / "model"
    shutil.copytree(root / "models" / "tiny", model)
    about = artifacts.read_manifest(model, kind=MODEL_KIND)
    (model / "training.json").unlink()
    if recorded is not None:
        artifacts.write_json(model / "training.json", recorded)
    artifacts.write_manifest(model, kind=MODEL_KIND, about=about)
    found = evaluate(model, out=tmp_path / "out", conditions=["real"], limit=3, **asked)
    assert (found.about.batch_size, found.about.max_new_tokens) == (step.DEFAULT_BATCH_SIZE, 64)


@pytest.mark.slow
def test_a_damaged_record_is_a_sentence(root: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(root / "models" / "tiny", model)
    about = artifacts.read_manifest(model, kind=MODEL_KIND)
    artifacts.write_json(model / "training.json", {"recipe": {"evaluate": {"batch": "many"}}})
    artifacts.write_manifest(model, kind=MODEL_KIND, about=about)
    with pytest.raises(ArtifactError, match="batch is not a whole number; got 'many'"):
        evaluate(model, out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_benchmark_has_its_own_length_of_answers(root: Path, tmp_path: Path) -> None:
    questions = Path(pope(tmp_path))
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for row in rows:
        row["image"] = "red.png"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(
        root / "models" / "tiny", "pope", data=questions, images=root / "images",
        conditions=["real"], out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    assert (found.task, found.about.max_new_tokens, found.about.batch_size) == ("pope", 16, 5)


@pytest.mark.slow
def test_progress_counts_questions(root: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    events: list[Event] = []
    evaluate(
        root / "models" / "tiny", conditions=["real", "blind"], batch_size=5,
        out=tmp_path / "out", on_event=events.append, **asked,
    )  # fmt: skip
    counted = [one for one in events if isinstance(one, Progress) and one.unit == "questions"]
    assert counted == [
        Progress(condition, done, 12, "questions")
        for condition in ("real", "blind")
        for done in (5, 10, 12)
    ]
    maps = [one for one in events if isinstance(one, Progress) and one.unit == "images"]
    assert [one.done for one in maps] == list(range(1, len(maps) + 1))
    assert len(counted) + len(maps) == len(events)


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes_and_ends_the_same(
    root: Path, report: EvaluationReport, asked: dict[str, Any], tmp_path: Path
) -> None:
    """What `on_event` raises stops it, as an interrupt does; the same call goes on."""

    def stopping(event: Event) -> None:
        if event == Progress("blind", 5, 12, "questions"):
            raise Stop

    with pytest.raises(Stop):
        evaluate(root / "models" / "tiny", out=tmp_path / "out", on_event=stopping, **asked)
    assert not (tmp_path / "out").exists()
    events: list[Event] = []
    found = evaluate(
        root / "models" / "tiny", out=tmp_path / "out", on_event=events.append, **asked
    )
    assert events[0] == Notice("17 answers of an interrupted evaluation are kept")
    assert found.about.answers_kept == 17
    assert (found.conditions, found.looks) == (report.conditions, report.looks)
    assert found.folder is not None
    assert report.folder is not None
    for name in ("predictions.jsonl", "gaze.json", "facts.json"):
        assert (found.folder / name).read_bytes() == (report.folder / name).read_bytes()


@pytest.mark.slow
def test_a_keyboard_interrupt_says_what_is_kept(
    root: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    told: list[str] = []

    def pressed(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)
        elif event == Progress("real", 10, 12, "questions"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(root / "models" / "tiny", out=tmp_path / "out", on_event=pressed, **asked)
    assert told == ["interrupted: 10 answers are kept, and the same command goes on behind them"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"conditions": ["reel"]}, "unknown picture condition; got reel; wanted real, blind"),
        ({"conditions": []}, "there is no condition to evaluate under; wanted real, blind"),
        ({"engine": "vllm"}, "unknown engine; got vllm; wanted auto, torch, llama or remote"),
        (
            {"changes": ["evaluate.batch_size=2"]},
            "only a run has a recipe to change; got --set evaluate",
        ),
        ({"batch_size": 0}, "batch_size is too small; got 0; wanted at least 1"),
        ({"limit": 0}, "limit is too small; got 0; wanted at least 1"),
        ({"data": []}, "there is nothing to ask"),
        ({"task": "nothing"}, "unknown task; got nothing"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(
    more: dict[str, Any], sentence: str, root: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        evaluate(root / "models" / "tiny", **{**asked, "out": tmp_path / "out", **more})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nothing_is_replaced_unasked(
    root: Path, asked: dict[str, Any], report: EvaluationReport
) -> None:
    with pytest.raises(UsageError, match="is there already; got a finished report"):
        evaluate(root / "models" / "tiny", out=report.folder, **asked)


def test_answers_are_scored(tmp_path: Path) -> None:
    rows = [{"question_id": i, "answer": "yes"} for i in range(1, 5)]
    found = score_answers(
        "pope", questions=pope(tmp_path), answers=lines(tmp_path / "a.jsonl", rows)
    )
    assert (found.metrics["accuracy"].value, found.questions, found.missing) == (0.5, 4, 0)


@pytest.mark.slow
def test_reports_are_compared(
    root: Path, asked: dict[str, Any], report: EvaluationReport, tmp_path: Path
) -> None:
    assert report.folder is not None
    other = evaluate(root / "models" / "tiny", out=tmp_path / "other", max_new_tokens=2, **asked)
    assert other.folder is not None
    events: list[Event] = []
    reports, comparison = compare_reports([report.folder, other.folder], on_event=events.append)
    assert [one.scores for one in reports] == [report, other]
    [group] = comparison.groups
    assert (group.questions, comparison.notes) == (12, [])
    assert events == [
        Progress("reading", 1, 2, "reports"),
        Progress("reading", 2, 2, "reports"),
        Progress("comparing", 1, 1, "pairs"),
    ]
    with pytest.raises(UsageError, match="a report is named twice"):
        compare_reports([report.folder, report.folder])


def test_every_parameter_is_explained_and_torch_waits() -> None:
    """What is imported to call it is light; the model is what costs."""
    explained = str(inspect.getdoc(evaluate))
    for name in ("model", "data", "images", "out", "limit", "seed", "on_event", "changes"):
        assert f"`{name}`" in explained
    code = "import sys, phisense.pipeline.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
