"""The merged folder in 4 bits, along the road: measured by the merge, opened by what it measured,
published with what it needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from phisense import artifacts
from phisense.chat.torch_engine import TorchEngine
from phisense.errors import PhisenseError, UsageError
from phisense.model import load_model
from phisense.model.adapter_beside import AdapterBeside, has_beside
from phisense.model.folder import MODEL_KIND
from phisense.model.quantized import codes_digest
from phisense.model.unmerged import load_run_recipe, load_with_adapter

from ..tiny import make_real_language, make_root

pytestmark = pytest.mark.slow

FULL = ("--set", "train.lora=null", "--set", "train.quantize=false")
FLOAT32 = ("--set", "compute_dtype=float32")
KINDS = {
    "nf4": FLOAT32,
    "nf4, bfloat16": ("--set", "compute_dtype=bfloat16"),
    "plain": (*FLOAT32, "--set", "train.quantize=false"),
    "full": (*FLOAT32, *FULL),
}
#: What training in bfloat16 rounds of the base's matrices, which `--quantize` in float32 does not:
#: in loss, and in logits, of their deviation.
ROUNDED = {"nf4": (1e-4, 1e-4), "nf4, bfloat16": (5e-3, 0.2)}
STEPS = ("--set", "train.align=null", "--set", "train.instruct.learning_rate=0.02")


@pytest.fixture(scope="module", params=KINDS)
def walked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, verb: Any
) -> tuple[str, Path, dict[str, Any]]:
    """A language part with a tied head, grouped keys and a massive activation, trained in that way:
    the kind, the run and the merge's report.
    """
    root = tmp_path_factory.mktemp("root")
    make_root(root, language=make_real_language)
    words = (*KINDS[request.param], *STEPS, "--set", "train.instruct.max_steps=8")
    verb("features", root / "tiny.yaml", *words)
    run = Path(verb("train", root / "tiny.yaml", *words)["run"])
    loose = ("max_delta_loss=1", "max_lost_answers=1", "max_lost_accuracy=1", "samples=12")
    report = verb("merge", run, *(word for one in loose for word in ("--set", f"merge.{one}")))
    return request.param, run, report


def test_the_merge_measures_the_way_that_is_taken(
    walked: tuple[str, Path, dict[str, Any]],
) -> None:
    kind, run, report = walked
    folder = Path(report["model"])
    assert has_beside(folder) == (kind in ROUNDED) == ("back_to_nf4" in report)
    opened = load_model(folder, "cpu", torch.float32, quantize=True, measured=False)
    adapted = [one for one in opened.model.modules() if isinstance(one, AdapterBeside)]
    assert bool(adapted) == (kind in ROUNDED)
    off = {
        name: abs(report[name]["delta_loss"])
        for name in ("merged", "four_bit", "back_to_nf4")
        if name in report
    }
    print(kind, off)
    if kind in ROUNDED:
        facts = artifacts.read_json(run / "train.json")
        assert codes_digest(opened.model) == facts["four_bit_codes"]
        assert off["four_bit"] <= off["merged"] + ROUNDED[kind][0]
        assert off["back_to_nf4"] > 10 * off["four_bit"], "the control loses"
    else:
        assert off["four_bit"] > 10 * off["merged"], "4 bits are not free"


def test_it_computes_what_the_run_computes(walked: tuple[str, Path, dict[str, Any]]) -> None:
    """The logits of `--quantize` beside those of the unmerged adapter."""
    kind, run, report = walked
    if kind not in ROUNDED:
        pytest.skip("the base was not quantized, so there is none to return to")
    ids = torch.arange(20, 60)[None]
    built = load_with_adapter(load_run_recipe(run), run, "cpu")
    opened = load_model(Path(report["model"]), "cpu", torch.float32, quantize=True)
    with torch.inference_mode():
        wanted, found = (one.model(ids).logits for one in (built, opened))
    assert float((found - wanted).abs().max()) <= ROUNDED[kind][1] * float(wanted.std())


def test_what_lost_is_refused_by_each_verb(
    walked: tuple[str, Path, dict[str, Any]], verb: Any, tmp_path: Path
) -> None:
    _, run, report = walked
    folder, file = Path(report["model"]), Path(report["model"]) / "merge_report.json"
    before = file.read_bytes()
    told = json.loads(before)
    try:
        rewrite(folder, {**told, "four_bit": told["merged"]})
        engine = TorchEngine.open(folder, "cpu", quantize=True)
        assert "NF4" in engine.where
        out = tmp_path / "kept"
        words = ("--space", "someone/tiny", "--quantize")
        verb("deploy", folder, *words, "--dry-run", out)
        assert "open_engine(model, quantize=True)" in (out / "space" / "app.py").read_text()
        assert has_beside(out / "model") == has_beside(folder)
        with pytest.raises(UsageError, match="a ZeroGPU Space lends"):
            verb("deploy", folder, *words, "--hardware", "zero-a10g", "--dry-run", tmp_path / "no")
        rewrite(folder, {**told, "four_bit": {**told["merged"], "delta_loss": 3.249}})
        data = ("--data", run.parent.parent / "rows.json", "--images", run.parent.parent / "images")
        for words in (
            ("ask", folder, "--question", "What colour?", "--quantize"),
            ("evaluate", folder, *data, "--quantize", "--out", tmp_path / "report"),
            (
                "deploy",
                folder,
                "--space",
                "someone/tiny",
                "--quantize",
                "--dry-run",
                tmp_path / "x",
            ),
        ):
            with pytest.raises(PhisenseError, match=r"would lose in 4 bits .* loss \+3.249"):
                verb(*words)
    finally:
        file.write_bytes(before)
        artifacts.write_manifest(folder, kind=MODEL_KIND)


def rewrite(folder: Path, report: dict[str, Any]) -> None:
    (folder / "merge_report.json").write_text(json.dumps(report))
    artifacts.write_manifest(folder, kind=MODEL_KIND)
