"""The files that a run, a merge and an export leave, and the JSON of the other verbs, are read as
results, and written again as they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import ArtifactError
from phisense.pipeline.progress import Event
from phisense.pipeline.records import Record
from phisense.pipeline.results import (
    ExportResult,
    MergeResult,
    SavedResult,
    StageResult,
    TrainResult,
)
from phisense.practice.summary import DemoSummary


def read(path: Path) -> Any:
    return json.loads(path.read_text())


#: What files of earlier versions, or of another way of training, lack.
OPTIONAL = {
    *("arithmetic", "calibration", "on_original", "back_to_nf4", "four_bit"),
    *("scored", "reference_accuracy", "written", "rejected"),
}


@pytest.mark.parametrize(
    ("kind", "folder"), [(TrainResult, "runs/practice"), (MergeResult, "models/practice")]
)
def test_what_the_practice_run_wrote(
    kind: type[SavedResult], folder: str, road: tuple[Path, dict[str, Any]]
) -> None:
    root, _ = road
    found = kind.load(root / folder)
    assert found.folder == root / folder
    document = read(root / folder / kind.FILE)
    assert found.to_dict() == document
    assert list(found.to_dict()) == list(document), "the keys in their order"
    for name in document:  # the control: every key is there, or has a default on purpose
        less = {key: value for key, value in document.items() if key != name}
        if name in OPTIONAL:
            kind.from_dict(less)
        else:
            with pytest.raises(ArtifactError, match=f"the file lacks {name}; got"):
                kind.from_dict(less)


def test_the_figures_of_the_practice_run(road: tuple[Path, dict[str, Any]]) -> None:
    root, summary = road
    trained, merged = (
        TrainResult.load(root / "runs/practice"),
        MergeResult.load(root / "models/practice"),
    )
    assert list(trained.stages) == ["align", "instruct"]
    assert trained.trainable == trained.trainable_expected > 0
    assert trained.verdict.verdict == summary["train"]["looks"] == "looks"
    assert trained.verdict.difference is not None
    assert trained.verdict.difference.low > 0
    assert trained.stages["align"].projector_change is not None
    assert trained.stages["instruct"].held_out_accuracy == trained.verdict.real
    assert all(one.parts for one in trained.stages["instruct"].gradient_checks)
    others = ["on_original", "back_to_nf4", "four_bit", "shuffled"]
    assert list(merged.measurements) == ["merged", *others]
    assert merged.merged.delta_loss == summary["merge"]["delta_loss"]
    assert merged.merged.delta_loss <= merged.gate.max_delta_loss


def test_the_summary_of_the_demo(road: tuple[Path, dict[str, Any]]) -> None:
    _, summary = road
    assert DemoSummary.from_dict(summary).to_dict() == summary


def test_what_an_export_wrote(exported: Path) -> None:
    found = ExportResult.load(exported)
    assert found.to_dict() == read(exported / "export.json")
    assert found.quantized is found.f16
    other = ExportResult.from_dict({**found.to_dict(), "quant": "q8_0", "q8_0": {"kl": 1}})
    with pytest.raises(ArtifactError, match="export.json: q8_0 lacks positions; got kl"):
        _ = other.quantized


OLD_STAGE: dict[str, Any] = {  # of before gradient checks, and of before what is not asked was said
    "samples": 12,
    "rows": 4,
    "shortened": 0,
    "steps": 2,
    "loss": 6.6,
    "last_loss": None,
    "held_out": None,
    "blind": None,
    "tokens": 364,
    "tokens_per_second": 3.3,
    "seconds": 111.6,
}


def test_a_stage_of_an_earlier_version_is_read() -> None:
    found = StageResult.from_dict(OLD_STAGE)
    assert (found.data, found.not_asked, found.gradient_checks) == ((), (), ())


def test_a_key_of_a_later_version_is_kept() -> None:
    found = StageResult.from_dict({**OLD_STAGE, "joules": 3.5})
    assert found.extra == {"joules": 3.5}
    assert found.to_dict()["joules"] == 3.5


def test_there_is_one_union_of_events() -> None:
    """Whatever `on_event` may be given is one of these, and shown by the command line."""
    from phisense.cli import rendering

    for kind in Event.__args__:
        assert hasattr(rendering, kind.__name__), f"nothing shows a {kind.__name__}"


def test_results_are_values() -> None:
    found = StageResult.from_dict(OLD_STAGE)
    assert isinstance(found, Record)
    with pytest.raises(AttributeError):
        found.steps = 3  # type: ignore[misc]
