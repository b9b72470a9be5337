"""The model card: the reports' facts, and front matter that huggingface_hub reads back as it was
written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from phisense import artifacts
from phisense.errors import ArtifactError, UsageError
from phisense.evaluation.published_results import PUBLISHED_RESULTS, PublishedResult
from phisense.evaluation.report import Report
from phisense.publish.card import CardMetadata, model_card

from ..evaluation.made import FACTS, report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a card needs of a model folder."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    folder.mkdir()
    artifacts.write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "dtype": "bfloat16",
            "text_config": {
                "num_hidden_layers": 32,
                "hidden_size": 3072,
                "vocab_size": 32064,
                "model_type": "phi3",
            },
            "vision_config": {
                "image_size": 336,
                "patch_size": 14,
                "model_type": "clip_vision_model",
            },
        },
    )
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    artifacts.write_json(
        folder / "training.json",
        {key: value for key, value in FACTS.items() if key not in ("merge", "parts")},
    )
    artifacts.write_json(folder / "merge_report.json", FACTS["merge"])
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    folder = tmp_path_factory.mktemp("reports")
    pictures = folder / "pictures"
    return [
        report(folder / "one", pictures, "mine", 0.9),
        report(
            folder / "two",
            pictures,
            "mine",
            0.4,
            conditions=("real",),
            data=[{"name": "digits.jsonl"}],
        ),
    ]


def told(reports: list[Report], **more: Any) -> CardMetadata:
    folders = tuple(one.folder for one in reports if one.folder)
    return CardMetadata(
        ("microsoft/Phi-3.5-mini-instruct",),
        ("liuhaotian/LLaVA-Instruct-150K",),
        "mit",
        folders,
        **more,
    )


@pytest.fixture(scope="module")
def written(model: Path, reports: list[Report], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "README.md"
    path.write_text(model_card("me/mine", model, {"recipe": "practice"}, told(reports)))
    return path


def test_the_index_reads_back_as_the_reports_figures(written: Path, reports: list[Report]) -> None:
    front = metadata_load(written)
    assert front is not None
    assert front["pipeline_tag"] == "image-text-to-text"
    assert (front["base_model"], front["datasets"], front["license"]) == (
        ["microsoft/Phi-3.5-mini-instruct"], ["liuhaotian/LLaVA-Instruct-150K"], "mit",
    )  # fmt: skip
    name, results = model_index_to_eval_results(front["model-index"])
    assert name == "mine"
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in results}
    wanted = {
        (one.about.data[0].name, figure): round(value.value, 6)
        for one in reports
        for figure, value in one.scores.real.metrics.items()
    }
    assert found == wanted
    assert len(set(found.values())) > 4, "figures that are all alike would agree by accident"
    assert {one.dataset_name for one in results} == {"mine on heldout"}
    assert {(one.task_type, one.dataset_type) for one in results} == {("image-text-to-text", "own")}
    accuracy = reports[0].scores.real.accuracy
    assert f"accuracy (95 %: {accuracy.low:.3f} to {accuracy.high:.3f})" in {
        one.metric_name for one in results
    }
    again = ModelCard.load(written)
    assert again.data.eval_results == results
    assert ModelCardData(**yaml.safe_load(again.data.to_yaml())).to_dict() == again.data.to_dict()


def test_a_damaged_index_is_noticed_by_the_library(written: Path) -> None:
    """The control: what reads back well does so because it is well-formed."""
    broken = re.sub(r"    dataset:\n      name: .*\n      type: own\n", "", written.read_text())
    with pytest.raises(ValueError, match="Invalid `model_index`"):
        ModelCard(broken)


def test_the_text_says_what_the_reports_say(written: Path, reports: list[Report]) -> None:
    text = ModelCard.load(written).text
    scores = reports[0].scores
    for condition in (scores.real, scores.blind, scores.shuffled):
        one = condition.accuracy
        assert f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" in text
    assert scores.looks is not None
    over = scores.looks.over["blind"]
    assert f"The model looks at the picture: accuracy +{over.value:.3f} over without" in text
    for said in (
        "captions.json, 558,128 conversations",
        "17.2 hours",
        "25,165,824",
        "| align | 558,128 | 2,180 | 2.100 | 0.250 |",
        (
            "* at its end it looked at its pictures: better with a question's picture than without,"
            " than with another's, and than each question's commonest answer"
        ),
        "this model",
    ):
        assert said in text
    for said in (
        "licence: mit",
        "## Limits",
        "engine torch, device cpu, dtype float32, seed 0",
        "heldout.jsonl (sha256 abababababab)",
    ):
        assert said in text
    assert "without | with another's" in text


def test_a_benchmark_is_named_as_the_hub_names_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor = PublishedResult("f1", 0.859, "arXiv 2310.03744", "the mean of three")
    monkeypatch.setitem(PUBLISHED_RESULTS, "LLaVA-1.5-7B", {"pope": anchor})
    one = report(
        tmp_path / "r",
        tmp_path / "pictures",
        "mine",
        task="pope",
        data=[{"name": "coco_pope_random.json"}],
    )
    card = ModelCard(model_card("me/mine", model, {}, told([one])))
    assert {(r.task_type, r.dataset_type) for r in card.data.eval_results or ()} == {
        ("visual-question-answering", "pope")
    }
    assert "| LLaVA-1.5-7B | F1 | 0.859 | arXiv 2310.03744; the mean of three |" in card.text
    assert "published, not measured here" in card.text


def test_names_are_no_markdown_and_no_yaml(model: Path, tmp_path: Path) -> None:
    bad = "x | y]: <b> # {a}\n---\nlicense: evil"
    one = report(tmp_path / "r", tmp_path / "pictures", "mine", data=[{"name": bad}])
    card = ModelCard(model_card("me/mine", model, {}, told([one])))
    assert card.data.license == "mit"
    assert {r.dataset_config for r in card.data.eval_results or ()} == {bad}
    assert "\nlicense: evil" not in card.text
    assert "<b>" not in card.text


def test_without_reports_there_is_no_index(model: Path, tmp_path: Path) -> None:
    card = ModelCard(model_card("me/mine", model, {}, CardMetadata()))
    assert "model-index" not in card.data.to_dict()
    assert "No evaluation was published" in card.text
    (tmp_path / "bare").mkdir()
    artifacts.write_json(tmp_path / "bare" / "config.json", {})
    bare = model_card("me/bare", tmp_path / "bare", {}, CardMetadata())
    assert "## Training" not in bare
    assert "## The merge" not in bare


def test_reports_that_cannot_be_published(
    model: Path, reports: list[Report], tmp_path: Path
) -> None:
    again = report(tmp_path / "again", tmp_path / "pictures", "mine")
    with pytest.raises(
        UsageError,
        match=r"one place for them; got .*one and .*again. Name one of them with --report",
    ):
        model_card("me/mine", model, {}, told([reports[0], again]))
    with pytest.raises(ArtifactError, match="is a model folder; wanted a report"):
        model_card("me/mine", model, {}, CardMetadata(reports=(model,)))
