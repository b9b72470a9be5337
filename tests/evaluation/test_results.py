"""Typed results: what lies on disk reads and writes back unchanged, and what is missing is a
sentence. `report_0_1` is a report folder that phisense 0.1.0 wrote.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from phisense import artifacts
from phisense.errors import ArtifactError
from phisense.evaluation import lmms
from phisense.evaluation.caveats import Caveat
from phisense.evaluation.measurement import Measurement, QuestionFile
from phisense.evaluation.model_facts import ModelFacts
from phisense.evaluation.report import AttentionGrid, read_report
from phisense.evaluation.results import (
    ConditionScores,
    EvaluationReport,
    ImageUse,
    KindScore,
    ScoreReport,
)
from phisense.evaluation.scores import Prediction
from phisense.intervals import Interval, PairedDifference

from .made import FACTS, report
from .samples import lines, pope

OLD = Path(__file__).parent / "report_0_1"


def old(name: str) -> Any:
    return json.loads((OLD / name).read_text())


def as_json(value: object) -> Any:
    """What a reader of the file gets."""
    return orjson.loads(orjson.dumps(value))


def test_scores_of_an_earlier_version_read_and_write_back_to_the_byte() -> None:
    found = EvaluationReport.load(OLD)
    assert artifacts.json_bytes(found.to_dict(), indent=True) == (OLD / "scores.json").read_bytes()
    assert found.folder == OLD
    assert (found.task, found.headline, found.questions, found.units) == ("own", "accuracy", 12, 12)
    assert found.real.accuracy == Interval(0.0, 0.0, 0.2424940095530979)
    assert found.real.kinds["other"] == KindScore(0.0, 0.0, 0.2424940095530979, 12)
    assert found.blind.loss == 6.641160594092475
    assert found.verdict == "too few"
    assert found.looks is not None
    assert found.looks.over["shuffled"] == PairedDifference(0.0, 0.0, 0.0, False)
    about = found.about
    assert (about.model, about.seed, about.batch_size, about.max_new_tokens) == ("tiny", 0, 8, 4)
    assert about.data[0].name == "rows.json"
    assert about.arithmetic is not None
    assert (about.arithmetic.format, about.arithmetic.machine) == ("float32", "x86_64")
    assert (about.prompt, about.answers_kept) == ("What colour is it?", 0)
    assert len(about.fingerprint or "") == 64


def test_every_file_of_a_report_reads_and_writes_back() -> None:
    facts = old("facts.json")
    found = ModelFacts.from_dict(facts)
    assert found.to_dict() == facts
    assert found.stages is not None
    assert found.stages["align"].samples == 12
    assert found.stages["align"].gradient_checks[0].parts[0].cosine == 1.0
    assert found.merge is not None
    assert set(found.merge.weights) >= {"merged", "shuffled"}
    assert found.merge.gate is not None
    assert found.merge.gate.min_same_answers == facts["merge"]["gate"]["least_same_answers"]
    assert found.looks is not None
    assert found.looks.verdict == facts["looks"]["verdict"]
    for grid in old("gaze.json").values():
        assert as_json(AttentionGrid.from_dict(grid).to_dict()) == grid
    for line in (OLD / "predictions.jsonl").read_bytes().splitlines():
        assert orjson.dumps(Prediction.from_dict(orjson.loads(line)).to_dict()) == line


def test_the_figures_of_training_are_typed() -> None:
    found = ModelFacts.from_dict(FACTS)
    assert found.looks is not None
    assert found.looks.difference == Interval(0.125, 0.062, 0.19)
    assert found.curves["align"].held_out.blind == (0.125,)
    assert (found.data[0].rows, found.data[0].weight, found.seed) == (558128, 1.0, 3)
    assert found.to_dict() == FACTS
    assert not ModelFacts.from_dict({})
    assert ModelFacts.from_dict({}).stages is None


def test_a_report_folder_of_now(tmp_path: Path) -> None:
    made = report(tmp_path / "r", tmp_path / "pictures", "m", task="own")
    loaded = EvaluationReport.load(tmp_path / "r")
    assert loaded == made.scores
    assert as_json(loaded.to_dict()) == json.loads((tmp_path / "r" / "scores.json").read_text())
    assert loaded.to_dict()["about"] == made.about.to_dict()
    assert [p.to_dict() for p in read_report(tmp_path / "r").predictions] == [
        p.to_dict() for p in made.predictions
    ]


def test_what_is_not_defined_is_null_in_json_and_nan_in_python() -> None:
    unknown = Interval.from_dict({"value": None, "low": None, "high": None})
    assert math.isnan(unknown.value)
    assert unknown.to_dict() == {"value": None, "low": None, "high": None}
    document = old("scores.json")
    document["real"]["figures"]["f1"] = {"value": None, "low": None, "high": None}
    assert EvaluationReport.from_dict(document).to_dict() == document


def test_the_result_of_score_reads_back(verb: Any, tmp_path: Path) -> None:
    rows = [{"question_id": i, "answer": "<think>Hm.</think>Yes"} for i in range(1, 5)]
    printed = verb(
        "score", "pope", "--questions", pope(tmp_path), "--answers", lines(tmp_path / "a", rows)
    )
    found = ScoreReport.from_dict(as_json(printed))
    assert found.to_dict() == printed
    assert found.metrics["f1"].value == pytest.approx(2 / 3)
    assert (found.missing, found.caveats[0].code) == (0, "thought")
    assert list(printed) == [
        "task", "headline", "questions", "units", "missing", "caveats", "seed", "figures", "kinds",
    ]  # fmt: skip


def test_small_types_read_back() -> None:
    for one in (
        Caveat("empty", "answers are empty", 3),
        QuestionFile("a.json", "ab"),
        QuestionFile("org/set"),
        Interval(0.5, 0.25, 0.75),
        PairedDifference(0.5, 0.25, 0.75, True),
        KindScore(0.5, 0.25, 0.75, 9),
        ImageUse("looks", "accuracy", {"blind": PairedDifference(0.5, 0.25, 0.75, True)}),
    ):
        assert type(one).from_dict(as_json(one.to_dict())) == one
    assert lmms.LmmsEvalResult({"pope": {"f1": 0.5}}, {"pope": 1}, "there").to_dict() == {
        "tasks": {"pope": {"f1": 0.5}}, "versions": {"pope": 1}, "report": "there",
    }  # fmt: skip


def test_a_figure_or_condition_that_there_is_not_is_named() -> None:
    one = EvaluationReport.from_dict(
        {key: value for key, value in old("scores.json").items() if key != "blind"}
    )
    with pytest.raises(AttributeError, match="there is no figure 'f1'; there are accuracy"):
        _ = one.real.f1
    with pytest.raises(AttributeError, match="blind was not evaluated; there are real, shuffled"):
        _ = one.blind
    assert one.metric("real", "f1") is None
    assert one.metric("blind", "accuracy") is None
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one
    assert Measurement({}).seed == 0
    assert ConditionScores({}).loss is None


def without(*path: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def with_value(value: object, *path: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("headline"), "was written by an earlier phisense; got figures without intervals"),
        (without("task"), "scores.json lacks task; got headline, questions"),
        (without("questions"), "scores.json lacks questions"),
        (without("real", "figures"), "scores.json: real lacks figures"),
        (without("real", "figures", "accuracy", "low"), "real: accuracy has no interval where"),
        (without("real", "kinds", "other", "n"), "real: kind other lacks n"),
        (without("looks", "verdict"), "looks lacks verdict"),
        (with_value("maybe", "looks", "verdict"), "unknown verdict; got 'maybe'; wanted looks, bl"),
        (with_value("many", "questions"), "questions is not a whole number; got 'many'"),
        (with_value([], "real"), "scores.json: real is not a JSON object"),
        (with_value([{"code": "x"}], "caveats"), "scores.json lacks what; got code"),
        (with_value(None, "task"), "task is null; got None; wanted a text"),
    ],
)
def test_damaged_scores_are_a_sentence(change: Callable[[Any], None], sentence: str) -> None:
    document = old("scores.json")
    change(document)
    with pytest.raises(ArtifactError, match=sentence) as caught:
        EvaluationReport.from_dict(document)
    assert "Evaluate again" in str(caught.value)


def test_scores_without_any_condition_are_a_sentence() -> None:
    document = {k: v for k, v in old("scores.json").items() if k in ("task", "headline")}
    document |= {"questions": 1, "units": 1}
    with pytest.raises(ArtifactError, match="has no figures; .*wanted at least one of real, blind"):
        EvaluationReport.from_dict(document)


def test_damaged_files_beside_the_scores_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"line 7 lacks answers; got id"):
        Prediction.from_dict({"id": "a", "kind": "other", "question": "?"}, "p.jsonl, line 7")
    for weights in ([], [[0.5], [0.25, 0.25]], [1]):
        with pytest.raises(ArtifactError, match=r"gaze.json has no grid of weights"):
            AttentionGrid.from_dict({"weights": weights})
    facts = {"stages": {"align": {"samples": 1}}}
    with pytest.raises(ArtifactError, match="facts.json: stage align lacks steps; got samples"):
        ModelFacts.from_dict(facts)
    with pytest.raises(ArtifactError, match="there is no file .*scores.json"):
        EvaluationReport.load(tmp_path)


def test_keys_of_a_later_version_are_ignored_or_kept() -> None:
    document = old("scores.json")
    later = copy.deepcopy(document)
    later["certainty"] = 1
    later["about"]["gpu_hours"] = 2
    found = EvaluationReport.from_dict(later)
    assert found.to_dict() == {**document, "about": {**document["about"], "gpu_hours": 2}}


@pytest.mark.parametrize("key", ["image", "shown"])
def test_a_prediction_may_have_no_image_but_not_lack_the_key(key: str) -> None:
    line = {
        "id": "1",
        "image": None,
        "kind": "other",
        "question": "What?",
        "answers": ["red"],
        "condition": "blind",
        "shown": None,
        "answer": "red",
        "credit": 1.0,
    }
    assert getattr(Prediction.from_dict(line, "line 1"), key) is None
    del line[key]
    with pytest.raises(ArtifactError, match=f"line 1 lacks {key}"):
        Prediction.from_dict(line, "line 1")
