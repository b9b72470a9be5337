"""Merging: nothing lost, and every way of losing something noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from phisense import artifacts
from phisense.errors import ArtifactError, MergeError
from phisense.merging import steps
from phisense.merging.gate import check_projector
from phisense.model.quantized import dequantize
from phisense.pipeline.results import MergeResult


def test_the_merge_loses_nothing(merged: dict[str, Any]) -> None:
    assert abs(merged["merged"]["delta_loss"]) <= 0.002
    assert merged["merged"]["same_answers"] >= 0.995
    assert merged["projector_change"] == 0.0
    assert (
        json.loads((Path(merged["model"]) / "merge_report.json").read_text())["merged"]
        == merged["merged"]
    )


def test_what_was_trained_travels_with_the_model(
    merged: dict[str, Any], trained: dict[str, Any]
) -> None:
    told = json.loads((Path(merged["model"]) / "training.json").read_text())
    assert told["trainable"] == trained["trainable"]
    assert told["stages"]["align"]["last_loss"] == trained["stages"]["align"]["last_loss"]
    rows = {one["stage"]: one["rows"] for one in told["data"]}
    assert rows == {name: stage["samples"] for name, stage in trained["stages"].items()}
    for name, stage in trained["stages"].items():
        curve = told["curves"][name]
        assert 0 < len(curve["loss"]) == len(curve["step"]) <= 300
        assert curve["step"][-1] <= stage["steps"]
        assert curve["held_out"]["accuracy"][-1] == stage["held_out"]
    assert 0 < told["seconds"] < trained["seconds"]


def test_the_naive_merge_and_the_shuffled_one_lose(merged: dict[str, Any]) -> None:
    """More than the gate lets pass. How much more depends on how much of what was learned is in the
    adapter, not in the projector, so on the processor, too.
    """
    gate = merged["gate"]
    assert merged["shuffled"]["delta_loss"] > gate["most_delta_loss"]
    assert merged["shuffled"]["same_answers"] < 0.995
    assert merged["back_to_nf4"]["same_answers"] < 0.995


def test_the_gate_tells_the_merge_from_the_control(merged: dict[str, Any]) -> None:
    report = MergeResult.load(Path(merged["model"]))
    assert report.gate.admits(report.merged)
    assert not report.gate.admits(report.shuffled)
    assert report.tells
    assert report.scored
    assert report.reference_accuracy is not None
    assert report.merged.lost_answers == 0
    assert report.written is not None


def test_a_projector_that_moved_is_refused() -> None:
    check_projector(0.0)
    for change in (0.5, float("nan")):
        with pytest.raises(MergeError, match=f"changed the projector; got {change}; wanted 0.0"):
            check_projector(change)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_merges_are_measured_too(
    trained: dict[str, Any], verb: Any, tmp_path: Path, dtype: str
) -> None:
    """Rounding loses a little, and the report says how much; the projector is cast once and not
    moved.
    """
    run = copy_of_run(Path(trained["run"]), tmp_path, dtype=dtype)
    report = verb("merge", run)
    assert report["dtype"] == dtype
    assert 0 < abs(report["merged"]["delta_loss"]) < 0.005
    assert report["projector_change"] == 0.0
    assert {
        str(w.dtype) for w in load_file(Path(report["model"]) / "model.safetensors").values()
    } == {f"torch.{dtype}"}


def test_a_refused_merge_writes_nothing(
    trained: dict[str, Any], verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that loses one matrix on its way."""
    whole = steps._cast

    def lossy(adapted: Any, recipe: Any) -> Any:
        built = whole(adapted, recipe)
        next(p for name, p in built.model.named_parameters() if "down_proj" in name).data.zero_()
        return built

    monkeypatch.setattr(steps, "_cast", lossy)
    run = copy_of_run(Path(trained["run"]), tmp_path)
    with pytest.raises(MergeError, match="not what was trained, so it was not written"):
        verb("merge", run)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def copy_of_run(run: Path, root: Path, **gate: Any) -> Path:
    copy = root / "runs" / "practice"
    shutil.copytree(run, copy)
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["merge"].update({"samples": 60, **gate})
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    artifacts.write_manifest(copy, kind="run")
    (root / "data").symlink_to(run.parent.parent / "data")
    return copy


def test_an_adapter_that_does_not_fit_is_refused(
    trained: dict[str, Any], verb: Any, tmp_path: Path
) -> None:
    """The prototype's fault: keys that matched nothing, a warning, and untrained weights merged."""
    run = copy_of_run(Path(trained["run"]), tmp_path)
    path = run / "adapter" / "adapter_model.safetensors"
    weights = {
        name.replace("language_model", "phi3"): weight for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    artifacts.write_manifest(run, kind="run")
    with pytest.raises(
        MergeError, match="the adapter does not fit the base; got 48 weights without a place"
    ):
        verb("merge", run)


def test_unfinished_and_damaged_runs_are_refused(
    trained: dict[str, Any], verb: Any, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="is not a finished run; got no such folder"):
        verb("merge", tmp_path / "none")
    run = tmp_path / "run"
    shutil.copytree(trained["run"], run)
    weights = run / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="adapter_model.safetensors is damaged"):
        verb("merge", run)
    (run / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="is not a finished run; got no manifest"):
        verb("merge", run)


def test_dequantised_is_what_the_4_bit_layer_multiplies_by() -> None:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(
        64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True
    )
    layer.weight.data = torch.randn(32, 64)
    model = torch.nn.Sequential(layer.to("cpu")).train()
    inputs = torch.randn(5, 64)
    expected = model(inputs)
    dequantize(model)
    assert type(model[0]) is torch.nn.Linear
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)
