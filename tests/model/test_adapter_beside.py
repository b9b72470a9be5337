"""A merged folder in 4 bits: the base's own codes with the adapter beside them, or an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from phisense import Phi3WithProjector, artifacts, seams
from phisense.errors import PhisenseError
from phisense.merging.adding import add_adapter
from phisense.merging.steps import _cast
from phisense.model import load_model, nf4_grid, save_model
from phisense.model.adapter_beside import BESIDE_FILE, AdapterBeside, read_adapter, write_beside
from phisense.model.assembly import load_language
from phisense.model.device import DTYPES, describe_machine
from phisense.model.folder import MODEL_KIND
from phisense.model.lora import add_lora
from phisense.model.quantized import allow_repacking, codes_digest, dequantize, four_bit_layers
from phisense.recipe import Lora

from ..conftest import LONG
from ..test_seams_family import make_toy_language
from ..tiny import make_language, make_vision

CPU = torch.device("cpu")
FAMILIES: dict[str, Callable[[Path], Path]] = {"phi3": make_language, "toy": make_toy_language}
IDS = torch.arange(20, 80)[None]


@dataclass(frozen=True)
class Trained:
    """A model with an adapter, unmerged in float32, and the digest of its base's codes."""

    built: Phi3WithProjector
    language: Path
    codes: str | None
    logits: torch.Tensor


def train(root: Path, family: str, rank: int, change: float, seed: int = 1) -> Trained:
    """A model whose adapter changes each matrix by `change` of its norm."""
    language = root / "language"
    if not language.exists():
        FAMILIES[family](language)
        make_vision(root / "vision")
    parts = (str(language), str(root / "vision"))
    built = Phi3WithProjector.assemble(*parts, dtype=torch.float32, quantize=True, device="cpu")
    codes = codes_digest(built.model)
    dequantize(built.model)
    torch.manual_seed(seed)
    adapted = add_lora(built.model.float(), Lora(rank=rank, alpha=2 * rank))
    for module in adapted.modules():
        if isinstance(getattr(module, "lora_B", None), nn.ModuleDict):
            b: Any = module.lora_B["default"].weight.data.normal_()
            whole: Any = module
            norm = whole.get_base_layer().weight.norm()
            b *= change * norm / whole.get_delta_weight("default").norm()
    built.model = adapted.eval().get_base_model()
    return Trained(built, language, codes, logits(built))


@torch.inference_mode()
def logits(built: Phi3WithProjector) -> torch.Tensor:
    found: torch.Tensor = built.model(IDS).logits.float()
    return found


def merge(trained: Trained, folder: Path, dtype: str) -> Path:
    """The merged folder, as `phisense merge` writes it."""
    adapter = read_adapter(trained.built.model)
    recipe: Any = SimpleNamespace(merge=SimpleNamespace(dtype=dtype))
    folder.mkdir()
    save_model(_cast(add_adapter(trained.built), recipe), folder)
    base = load_language(trained.language, CPU, torch.float32, quantize=True)
    write_beside(folder, base, adapter, DTYPES[dtype])
    return folder


def load(folder: Path, compute: str, *, quantize: bool = True) -> Phi3WithProjector:
    return load_model(folder, "cpu", DTYPES[compute], quantize=quantize, measured=False)


def naive(folder: Path) -> Path:
    """The control: the same merged weights, without the adapter beside."""
    other = folder.with_name(f"{folder.name}-naive")
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("four_bit"))
    return other


CASES = [
    (family, rank, change, dtype)
    for family in FAMILIES
    for rank in (4, 16)
    for change in (0.002, 0.02, 0.2)
    for dtype in ("float32", "bfloat16", "float16")
    if LONG or ((rank == 4) == (family == "phi3") and (dtype != "float16" or change == 0.02))
]


@pytest.mark.parametrize(("family", "rank", "change", "dtype"), CASES)
def test_what_was_trained_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compute: str,
    family: str,
    rank: int,
    change: float,
    dtype: str,
) -> None:
    """The codes are the base's, and the logits as near to the unmerged adapter's as those of the
    merged weights unquantized. The control loses: what was trained is below a step of the grid.
    """
    monkeypatch.setitem(seams.FAMILY_MODULES, "toy", "tests.toys.family_toy")
    trained = train(tmp_path, family, rank, change)
    folder = merge(trained, tmp_path / "model", dtype)
    beside = load(folder, compute)
    assert codes_digest(beside.model) == trained.codes
    off = {
        name: float((logits(built) - trained.logits).abs().max() / trained.logits.std())
        for name, built in {
            "beside": beside,
            "merged": load(folder, compute, quantize=False),
            "naive": load(naive(folder), compute),
        }.items()
    }
    print(off)
    assert off["beside"] <= 2 * off["merged"] + 1e-5
    if (compute, dtype) == ("float32", "float32"):
        assert off["naive"] > 1000 * off["beside"], "the control loses"
    elif change >= 0.02:
        assert off["naive"] > 1.5 * off["beside"], "the control loses"


def test_the_codes_survive_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of zeros, of one large weight, blocks over the ends of rows, and several chunks."""
    monkeypatch.setattr(nf4_grid, "_CHUNK", 64 * 50)
    torch.manual_seed(0)
    for shape in ((200, 50), (33, 10), (128, 64), (7, 6)):
        weight = torch.randn(shape) * 0.02
        weight[1, 1] = 40.0
        codes, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        base = dequantize_4bit(codes, state)
        a, b = torch.randn(4, shape[1]), torch.randn(shape[0], 4) * 1e-3
        stats = nf4_grid.quant_state(state.as_dict(packed=True))
        found = nf4_grid.codes_on_grid((base + b @ a).bfloat16(), stats, (a, b))
        assert torch.equal(found, codes), shape
        far = nf4_grid.codes_on_grid(base + 1e5 * b @ a, stats)
        assert not torch.equal(far, codes), "the control"


def test_codes_that_the_merged_weights_do_not_tell_are_kept(tmp_path: Path) -> None:
    """A base with rows of zeros, which has no grid, under an adapter that changes them."""
    make_language(tmp_path / "language")
    make_vision(tmp_path / "vision")
    file = tmp_path / "language" / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            weight[::2] = 0.0
    save_file(weights, file, metadata={"format": "pt"})
    trained = train(tmp_path, "phi3", 4, 0.2)
    folder = merge(trained, tmp_path / "model", "bfloat16")
    assert any(name.endswith(".patch") for name in load_file(folder / BESIDE_FILE))
    assert codes_digest(load(folder, "float32").model) == trained.codes


def test_only_the_base_is_laid_out_for_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors that have the layout, a chat allows it; the adapter computes in the format."""
    trained = train(tmp_path, "phi3", 4, 0.02)
    folder = merge(trained, tmp_path / "model", "bfloat16")
    beside = load(folder, "bfloat16")
    layers = dict(four_bit_layers(beside.model))
    wrapped = [one for one in beside.model.modules() if isinstance(one, AdapterBeside)]
    assert len(layers) == len(wrapped) == 8
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())
    assert {one.lora_A.dtype for one in wrapped} == {torch.bfloat16}
    assert allow_repacking(beside.model) == 0 or "avx512_bf16" in describe_machine(CPU).instructions
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: True)
    assert allow_repacking(beside.model) == sum(
        layer.weight.quant_state.shape[1] % 64 == 0 for layer in layers.values()
    )


def change_file(
    path: Path, change: Callable[[dict[str, torch.Tensor]], None], **facts: str
) -> None:
    """Write the file again with other tensors or metadata."""
    with safe_open(path, "pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={**told, **facts})


def add_little(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("lora_B"))
    tensors[name][0, 0] += 0.001


def drop_matrix(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layers.1.mlp.down_proj" in name]:
        del tensors[name]


def of_another(folder: Path, other: Path) -> None:
    shutil.copy(other / BESIDE_FILE, folder / BESIDE_FILE)


def retouch_weights(folder: Path, _: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(folder: Path, _: Path) -> None:
    whole = (folder / BESIDE_FILE).read_bytes()
    (folder / BESIDE_FILE).write_bytes(whole[: len(whole) // 2])


def link_out(folder: Path, other: Path) -> None:
    (folder / BESIDE_FILE).unlink()
    (folder / BESIDE_FILE).symlink_to(other / BESIDE_FILE)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "altered": (lambda f, _: change_file(f / BESIDE_FILE, add_little), "is damaged"),
    "a matrix less": (lambda f, _: change_file(f / BESIDE_FILE, drop_matrix), "is damaged"),
    "another format": (
        lambda f, _: change_file(f / BESIDE_FILE, lambda _: None, format="2"),
        "got format 2; wanted format 1",
    ),
    "of another merge": (of_another, "the digest of other merged weights"),
    "other merged weights": (retouch_weights, "the digest of other merged weights"),
    "cut off": (cut_off, "cannot be read"),
    "a link": (link_out, "is a link out of its folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("listed", [False, True], ids=["no manifest", "manifest"])
def test_another_adapter_is_an_error(tmp_path: Path, damage: str, listed: bool) -> None:
    """The adapter of another merge has the same base, so its codes alone would not tell it."""
    folder = merge(train(tmp_path, "phi3", 4, 0.002), tmp_path / "model", "bfloat16")
    other = merge(train(tmp_path, "phi3", 4, 0.002, seed=2), tmp_path / "other", "bfloat16")
    if listed:
        artifacts.write_manifest(folder, kind=MODEL_KIND)
    load(folder, "float32")
    change, said = DAMAGES[damage]
    change(folder, other)
    with pytest.raises(PhisenseError, match="damaged|link out" if listed else said):
        load(folder, "float32")
    if not listed and damage not in ("other merged weights", "a link"):
        load(folder, "float32", quantize=False)  # who does not ask for 4 bits does not read it


def test_a_missing_adapter_is_an_error(tmp_path: Path) -> None:
    """The report says that 4 bits were measured with it."""
    folder = merge(train(tmp_path, "phi3", 4, 0.02), tmp_path / "model", "bfloat16")
    figures = {"loss": 1.0, "delta_loss": 0.0, "same_answers": 1.0}
    report = dict.fromkeys(("merged", "four_bit", "back_to_nf4"), figures)
    (folder / "merge_report.json").write_text(json.dumps(report))
    load_model(folder, "cpu", quantize=True)
    shutil.rmtree(folder / "four_bit")
    with pytest.raises(PhisenseError, match="lacks four_bit/beside.safetensors"):
        load_model(folder, "cpu", quantize=True)
    load_model(folder, "cpu")


def test_training_on_from_a_merged_folder_in_4_bits_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its language part would be packed again, which un-learns what was merged into it."""
    folder = merge(train(tmp_path, "phi3", 4, 0.02), tmp_path / "model", "float32")
    for quantize in (False, True):
        caplog.clear()
        load_language(folder, CPU, torch.float32, quantize=quantize)
        assert any("quantized again" in one.getMessage() for one in caplog.records) == quantize
