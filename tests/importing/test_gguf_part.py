"""A GGUF file as a language part: what it was before it was exported; and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from phisense import artifacts
from phisense.chat_tokenizer import prepare_tokenizer
from phisense.errors import PartError, UsageError
from phisense.families import FAMILIES
from phisense.importing import gguf_model, import_gguf
from phisense.opening.gguf import validate_foreign_gguf, validate_gguf
from phisense.pipeline.progress import ignore
from phisense.publish.gguf_text import write_text_model
from phisense.publish.vocabulary import read_vocabulary
from phisense.publish.weights import WeightReader

from ..families import made

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
gguf = pytest.importorskip("gguf", reason="gguf is not installed")
pytestmark = pytest.mark.slow

NAMES = ("phi4_mini", "smollm2", "qwen2_5", "qwen3")


class PartWeights(WeightReader):
    """The weights of a language part by their names in the language model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vision: dict[str, tuple[Path, str]] = {}
        path = folder / "model.safetensors"
        names = load_file(path)
        self.language = {name.removeprefix("model."): (path, name) for name in names}


def write_file(part: Path, path: Path) -> Path:
    """The language part as a float16 GGUF file."""
    tokenizer: Any = AutoTokenizer.from_pretrained(part)
    config = AutoModelForCausalLM.from_pretrained(part).config
    prepare_tokenizer(tokenizer, config.vocab_size)
    words = read_vocabulary(tokenizer, config.vocab_size)
    write_text_model(PartWeights(part), config, words, tokenizer, path, "part", ignore)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A part of a family, with weights that float16 holds, and the file of it."""
    known: dict[str, tuple[Path, Path]] = {}

    def make(family: str) -> tuple[Path, Path]:
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            part = made.make_language(folder / "part", family)
            model = AutoModelForCausalLM.from_pretrained(part).half().float()
            model.save_pretrained(part)
            known[family] = part, write_file(part, folder / "file.gguf")
        return known[family]

    return make


@torch.inference_mode()
def logits(part: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(part, dtype=torch.float32)
    found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
    return found


@pytest.mark.parametrize("family", NAMES)
def test_a_file_becomes_the_part_that_it_was(family: str, files: Any, tmp_path: Path) -> None:
    part, file = files(family)
    report = import_gguf(file, tmp_path / "out")
    assert report.family == FAMILIES[family].title
    assert report.dtype == "float16"
    assert report.tied
    assert report.widened.kl < 1e-5
    assert report.texts > 600
    artifacts.read_manifest(tmp_path / "out", kind="language part", verify=True)
    ids = AutoTokenizer.from_pretrained(part)("What colour is it? I'm 12,345.")["input_ids"]
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("What colour is it? I'm 12,345.")["input_ids"] == ids
    assert torch.equal(logits(tmp_path / "out", ids), logits(part, ids))
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_rows_in_llama_cpps_order_are_noticed(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: queries and keys as they lie in the file."""
    _, file = files("smollm2")
    monkeypatch.setattr(gguf_model, "_halve", lambda values, heads: values)
    with pytest.raises(PartError, match=r"does not say what llama.cpp says.*KL"):
        import_gguf(file, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_splitting_is_noticed(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phisense.families.pre_tokenizers import PRE_TOKENIZERS
    from phisense.importing import gguf_tokenizer

    _, file = files("smollm2")
    spaced = replace(PRE_TOKENIZERS["smollm"], prefix_space=True)
    changed = {**PRE_TOKENIZERS, "smollm": spaced}
    monkeypatch.setattr(gguf_tokenizer, "PRE_TOKENIZERS", changed)
    with pytest.raises(PartError, match=r"differs from llama.cpp's; got .*, and \d+ others"):
        import_gguf(file, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"there is no file .*nothing\.gguf; wanted a GGUF file"):
        import_gguf(tmp_path / "nothing.gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("llama.expert_count", "the key llama.expert_count"),
        ("llama.rope.scaling.type", "the key llama.rope.scaling.type"),
        ("split.count", "the key split.count"),
    ],
)
def test_what_would_mean_something_else_is_refused(
    key: str, says: str, files: Any, tmp_path: Path
) -> None:
    _, file = files("smollm2")
    data = file.read_bytes()
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    entry = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", 4, 2)
    # what follows is aligned, so a text fills up what is inserted
    named = struct.pack("<Q", 12) + b"general.note" + struct.pack("<I", 8)
    missing = -(len(entry) + len(named) + 8) % 32
    note = named + struct.pack("<Q", missing) + b"x" * missing
    changed = tmp_path / "changed.gguf"
    counts = struct.pack("<QQ", tensors, keys + 2)
    changed.write_bytes(data[:8] + counts + entry + note + data[24:])
    with pytest.raises(PartError, match=rf"cannot be imported as a language part; got {says}"):
        import_gguf(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    validate_foreign_gguf(file)
    validate_gguf(file)


def test_no_language_model(tmp_path: Path, verb: Any) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(PartError, match="no whole GGUF file"):
        verb("import", path, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="is no adapter, so it has no base"):
        verb("import", path, "--out", tmp_path / "out", "--base", "x")
    with pytest.raises(PartError):
        verb("import", tmp_path / "nowhere.gguf", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
