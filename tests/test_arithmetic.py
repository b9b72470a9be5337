"""The number format and the kernels of each step: chosen in one place, recorded with what is made,
and right in every format.

The whole road, in random weights of the real classes, is walked in float32 and in bfloat16 on every
machine: one without instructions for bfloat16 computes in it all the same, only slowly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phisense.errors import ArtifactError, PartError, PhisenseError
from phisense.model import Phi3WithProjector, arithmetic, load_model, quantized
from phisense.model.device import describe_machine
from phisense.model.inputs import stack_features
from phisense.recipe import load_recipe
from phisense.training import Training
from phisense.vision.encoders.encode import Encoder
from phisense.vision.store import FeatureStore

from .tiny import make_root

FORMATS = ("float32", "bfloat16")
STORES = ("float16", "int8", "pixels", "float32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    """A tiny root with a store of each kind, in features/<kind>."""
    folder = tmp_path_factory.mktemp("arithmetic")
    make_root(folder)
    for kind in STORES:
        verb("features", folder / "tiny.yaml", *stored(kind))
    return folder


def stored(kind: str, *more: str) -> list[str]:
    return [
        word
        for change in (f"features.dtype={kind}", f"features.folder=features/{kind}", *more)
        for word in ("--set", change)
    ]


@pytest.mark.parametrize("has", [True, False], ids=["bfloat16 here", "no bfloat16"])
@pytest.mark.parametrize("step", arithmetic.STEPS)
def test_what_a_step_computes_in(step: Any, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "supports_bfloat16", lambda device: has)
    found = {
        asked: arithmetic.choose_arithmetic(step, "cpu", compute_dtype=asked)
        for asked in ("auto", "float32", "bfloat16", "float16")
    }
    assert all(one.reason for one in found.values())
    if step in ("merge", "export"):
        assert {one.format for one in found.values()} == {"float32"}
        return
    assert found["float32"].format == "float32"
    assert found["bfloat16"].format == "bfloat16"
    assert ("emulated" in found["bfloat16"].reason) == (not has)
    assert found["float16"].format == ("float32" if step == "train" else "float16")
    assert found["auto"].format == ("bfloat16" if has and step != "features" else "float32")
    assert arithmetic.choose_arithmetic(step, "cpu", stored=torch.float32).format == (
        "float32" if step in ("evaluate", "chat") else found["auto"].format
    )
    assert (found["auto"].layout == "inference") == (step == "chat" and has)


@pytest.mark.slow
def test_hidden_instructions_are_not_used() -> None:
    told = (
        "from phisense.model.arithmetic import choose_arithmetic;"
        " one = choose_arithmetic('train', 'cpu'); print(one.format, '|', one.reason)"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    said = subprocess.run(
        [sys.executable, "-c", told], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert (
        said.strip()
        == "float32 | the processor has no instructions for bfloat16, or they are hidden"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("compute", FORMATS)
def test_the_road_in_every_format(root: Path, compute: str, kind: str, verb: Any) -> None:
    """train, the look, merge, evaluate and ask; each says what it computed in, on what."""
    changes = stored(kind, f"name={compute}-{kind}", f"compute_dtype={compute}")
    facts = verb("train", root / "tiny.yaml", *changes)
    report = verb("merge", facts["run"])
    model = Path(report["model"])
    scores = verb(
        "evaluate",
        model,
        "--data",
        root / "rows.json",
        "--images",
        root / "images",
        "--out",
        root / "reports" / model.name,
    )
    here = describe_machine(torch.device("cpu")).to_dict()
    for made, step, name in (
        (facts, "train", compute),
        (report, "merge", "float32"),
        (scores["about"], "evaluate", compute),
    ):
        told = made["arithmetic"]
        assert (told["step"], told["format"], told["device"]) == (step, name, "cpu")
        assert all(
            told[key] == here[key]
            for key in ("processor", "instructions", "capability", "libraries")
        )
    assert json.loads((model / "training.json").read_text())["arithmetic"]["format"] == compute
    assert abs(report["merged"]["delta_loss"]) <= 1e-5
    assert report["merged"]["same_answers"] == 1.0
    page = (root / "reports" / model.name / "report.html").read_text()
    assert "The gradient, checked" in page
    assert f"{compute}, since the recipe asks for it" in page
    assert isinstance(
        verb("ask", model, "--image", root / "images" / "red.png", "-q", "What colour?")["answer"],
        str,
    )


@pytest.mark.parametrize("compute", FORMATS)
def test_the_codes_are_those_of_the_stored_numbers(root: Path, compute: str) -> None:
    """Whatever computes: a base cast to bfloat16 first has other codes, which is the control."""
    recipe = load_recipe(root / "tiny.yaml")
    wanted = codes(recipe, torch.float32)
    dtype = getattr(torch, compute)
    assert codes(recipe, dtype) == wanted
    built = Phi3WithProjector.from_recipe(
        recipe, quantize=True, stored_features=True, device="cpu", dtype=dtype
    )
    _, layer = next(iter(quantized.four_bit_layers(built.model)))
    assert layer.weight.quant_state.dtype is dtype
    assert quantized.dequantized_weight(layer).dtype is torch.float32
    before = quantized.codes_digest(built.model)
    layer.weight.data[0] ^= 1
    assert quantized.codes_digest(built.model) != before


def codes(recipe: Any, dtype: torch.dtype) -> str | None:
    return quantized.codes_digest(
        Phi3WithProjector.from_recipe(
            recipe, quantize=True, stored_features=True, device="cpu", dtype=dtype
        ).model
    )


@pytest.mark.slow
@pytest.mark.parametrize("compute", FORMATS)
def test_the_codes_stay(root: Path, compute: str, verb: Any) -> None:
    """Through both stages, their looks and the merge; a merge onto another base is refused, and so
    is going on from it.
    """
    name = f"codes-{compute}"
    changes = stored("float16", f"name={name}", f"compute_dtype={compute}")
    facts = verb("train", root / "tiny.yaml", *changes)
    assert facts["four_bit_codes"] == codes(load_recipe(root / "tiny.yaml"), torch.float32)
    verb("merge", facts["run"])
    weights = root / "parts" / "language" / "model.safetensors"
    held = weights.read_bytes()
    try:
        changed = bytearray(held)
        changed[-4096:] = changed[-8192:-4096]
        weights.write_bytes(bytes(changed))
        with pytest.raises(PartError, match="was trained with another language part; got "):
            verb("merge", facts["run"], "--overwrite")
        with pytest.raises(PartError, match="was trained with another language part; got "):
            verb("train", root / "tiny.yaml", *changes, "--resume")
    finally:
        weights.write_bytes(held)


@pytest.mark.slow
def test_going_on_in_another_format_is_refused(root: Path, verb: Any) -> None:
    changes = stored("float16", "name=other-format")
    verb("train", root / "tiny.yaml", *changes, "--set", "compute_dtype=float32")
    with pytest.raises(ArtifactError, match="computes_in was float32, is bfloat16"):
        verb("train", root / "tiny.yaml", *changes, "--set", "compute_dtype=bfloat16", "--resume")


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("compute", FORMATS)
def test_features_are_read_under_autocast(root: Path, compute: str, kind: str) -> None:
    """A CPU's autocast cannot put float16 together: whoever reads a store, or shows the model its
    features, may be under it.
    """
    recipe = load_recipe(root / "tiny.yaml")
    live = Encoder(recipe.vision.part) if kind == "pixels" else None
    store = FeatureStore(root / "features" / kind, live=live)
    built = Phi3WithProjector.from_recipe(
        recipe, stored_features=True, device="cpu", dtype=getattr(torch, compute)
    )
    plain = store.batch(store.names)
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bfloat16"):
        found = store.batch(store.names)
        slots = built.project(list(found))
        given = stack_features(list(found))
    torch.testing.assert_close(found.float(), plain.float(), rtol=0.02, atol=0.02)
    assert len(slots) == len(given) == 4
    if kind == "float16":  # the control: what it was read by
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
            torch.stack(list(plain))


class _Wide(nn.Module):
    """Two 4-bit layers that can be laid out for inference, and one that cannot."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        from bitsandbytes.nn import Linear4bit

        torch.manual_seed(0)
        for name, rows in (("first", 256), ("second", 64), ("odd", 24)):
            layer = Linear4bit(
                256 if name != "odd" else 64,
                rows,
                bias=False,
                compute_dtype=dtype,
                quant_type="nf4",
                compress_statistics=True,
            )
            setattr(self, name, layer.to("cpu"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.odd(self.second(self.first(x)))
        return found


def test_the_layout_for_inference_is_chosen_on_purpose() -> None:
    from bitsandbytes.functional import has_avx512bf16

    model = _Wide(torch.bfloat16).eval()
    quantized.forbid_repacking(model)
    quantized.check_not_repacked(model, "a test")
    x = torch.randn(5, 256, dtype=torch.bfloat16)
    with torch.inference_mode():
        wanted = model(x)
    before = quantized.codes_digest(model)
    assert quantized.allow_repacking(model) == (2 if has_avx512bf16() else 0), (
        "24 rows are no multiple of 32"
    )
    with torch.inference_mode():
        found = model(x)
    if not has_avx512bf16():
        assert quantized.codes_digest(model) == before
        pytest.skip("this processor has no AVX512-BF16, so bitsandbytes repacks nothing here")
    assert (
        float(nn.functional.cosine_similarity(found.float().flatten(), wanted.float().flatten(), 0))
        > 0.999
    )
    with pytest.raises(
        PhisenseError,
        match=(
            "a merge needs 4-bit layers as .* got 2 that are or may be laid .* first, which is"
            " repacked"
        ),
    ):
        quantized.check_not_repacked(model, "a merge")
    with pytest.raises(PhisenseError, match="a digest of the codes needs"):
        quantized.codes_digest(model)
    with pytest.raises(PhisenseError, match="reading a layer back needs"):
        quantized.dequantized_weight(model.first)


@pytest.mark.slow
def test_a_folder_in_4_bits_answers_alike_in_either_layout(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phisense.model import folder as opening

    run = verb(
        "train", root / "tiny.yaml", *stored("float16", "name=layouts", "compute_dtype=bfloat16")
    )["run"]
    model = Path(verb("merge", run)["model"])
    ids = torch.tensor([[5, 17, 40, 9]])
    with torch.inference_mode():
        fast = (
            load_model(model, "cpu", quantize=True, step="chat").model(input_ids=ids).logits.float()
        )
        monkeypatch.setattr(opening, "allow_repacking", lambda model: 0)
        slow = (
            load_model(model, "cpu", quantize=True, step="chat").model(input_ids=ids).logits.float()
        )
        still = load_model(model, "cpu", quantize=True)
    assert float(nn.functional.cosine_similarity(fast.flatten(), slow.flatten(), 0)) > 0.999
    quantized.check_not_repacked(still.model, "a test")


@pytest.mark.slow
def test_training_never_computes_in_float16(root: Path) -> None:
    recipe = load_recipe(
        root / "tiny.yaml",
        ("name=half", "features.folder=features/float16", "compute_dtype=float16"),
    )
    told = Training(recipe, lambda row: None, device="cpu")().arithmetic
    assert (told["format"], told["reason"]) == (
        "float32",
        "float16 was asked for, but Phi-3's activations pass 65,504 in training",
    )


def test_doctor_says_what_each_step_computes_in(verb: Any) -> None:
    found = verb("doctor")["findings"]
    told = [one["found"] for one in found if one["what"] == "computes in"]
    assert sorted(
        step for line in told for step in arithmetic.STEPS if step in line.partition(":")[0]
    ) == sorted(arithmetic.STEPS)
    assert [one for one in found if one["what"] == "instructions"]
