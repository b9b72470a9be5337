"""Which engine talks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense.chat.open_engine import choose_engine, open_engine
from phisense.errors import ArtifactError, UsageError


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def exported_folder(tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "manifest.json").write_text(
        json.dumps({"kind": "gguf folder", "about": {}, "files": {}})
    )
    return tmp_path / "gguf"


def test_the_folder_decides(model_folder: Path, exported_folder: Path) -> None:
    assert choose_engine(model_folder) == choose_engine(model_folder, "torch") == "torch"
    assert choose_engine(exported_folder) == choose_engine(exported_folder, "llama") == "llama"
    assert (
        choose_engine(None, "auto", "http://x/v1")
        == choose_engine(model_folder, "remote", "http://x/v1")
        == "remote"
    )


@pytest.mark.parametrize(
    ("folder", "asked", "server", "words"),
    [
        ("model", "llama", None, "Run phisense export"),
        ("gguf", "torch", None, "files of llama.cpp"),
        ("model", "remote", None, "needs a server"),
        ("model", "torch", "http://x", "Leave out --engine or --server"),
        (None, "auto", None, "no model to talk to"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(
    model_folder: Path,
    exported_folder: Path,
    folder: str | None,
    asked: Any,
    server: str | None,
    words: str,
) -> None:
    with pytest.raises(UsageError, match=words):
        choose_engine(None if folder is None else model_folder.parent / folder, asked, server)


def test_only_torch_quantises(exported_folder: Path) -> None:
    with pytest.raises(UsageError, match="only the torch engine quantises"):
        open_engine(exported_folder, quantize=True)


def test_neither_kind_of_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a model folder"):
        choose_engine(tmp_path)


def test_it_is_said_once_which(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = open_engine(model, device="cpu")
    assert engine.name == model.name
    assert capsys.readouterr().err.count("torch on cpu, float32") == 1


def test_an_exported_folder_is_opened(exported: Path) -> None:
    assert open_engine(exported).picture_tokens == 64
