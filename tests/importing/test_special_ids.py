"""Ids of special tokens that the vocabulary has no row for: a class of transformers sets one by
itself where config.json says nothing, and makes no embedding with it. What is imported, assembled
and written never has one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from phisense.errors import PartError
from phisense.model import Phi3WithProjector, load_model
from phisense.opening.configs import validate_config

from ..tiny import make_language, make_vision
from . import made

pytestmark = pytest.mark.slow

ABSENT = object()
ROWS = 768
#: What config.json says, and what of it is kept.
SAID: dict[str, tuple[Any, Any]] = {
    "absent": (ABSENT, None),
    "null": (None, None),
    "a row": (5, 5),
    "the last row": (ROWS - 1, ROWS - 1),
    "one too many": (ROWS, None),
    "32000": (32000, None),
    "negative": (-1, None),
}


def set_ids(path: Path, where: str | None, **ids: Any) -> None:
    config = json.loads(path.read_text())
    text = config[where] if where else config
    for key, value in ids.items():
        text.pop(key, None)
        if value is not ABSENT:
            text[key] = value
    path.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    whole = made.make_whole(tmp_path_factory.mktemp("whole"))
    folder = tmp_path_factory.mktemp("sources")
    return {
        "phi3": made.plain(whole, folder / "phi3"),
        "llama": made.llama(whole, folder / "llama"),
    }


@pytest.mark.parametrize("kind", ["phi3", "llama"])
@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("said", SAID)
def test_an_import(
    sources: dict[str, Path], verb: Any, tmp_path: Path, kind: str, key: str, said: str
) -> None:
    shutil.copytree(sources[kind], tmp_path / "source")
    told, kept = SAID[said]
    set_ids(tmp_path / "source" / "config.json", "text_config", **{key: told})
    report = verb("import", tmp_path / "source", "--out", tmp_path / "out")
    assert report["largest_difference"] <= 1e-3
    config = load_model(tmp_path / "out", "cpu").model.config.text_config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        assert value is None or 0 <= value < ROWS
    if said != "absent":  # then each class has its own
        assert getattr(config, key) == kept


@pytest.mark.parametrize("rows", [768, 31_999, 32_000, 32_001, 32_064])
@pytest.mark.parametrize("said", ["absent", "32000", "one too many"])
def test_a_language_part_of_any_vocabulary(tmp_path: Path, rows: int, said: str) -> None:
    make_language(tmp_path / "language", rows=rows)
    make_vision(tmp_path / "vision")
    told = {"absent": ABSENT, "32000": 32000, "one too many": rows}[said]
    set_ids(tmp_path / "language" / "config.json", None, pad_token_id=told, eos_token_id=told)
    built = Phi3WithProjector.assemble(
        str(tmp_path / "language"), str(tmp_path / "vision"), device="cpu", dtype=torch.float32
    )
    text = built.model.config.text_config
    assert (
        text.pad_token_id
        == text.eos_token_id
        == (32000 if rows > 32_000 and said != "one too many" else None)
    )
    assert built.model.get_input_embeddings().weight.shape[0] == rows


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ([5, ROWS, 7], [5, 7]),
        ([ROWS], None),
        ([5, 7], [5, 7]),
        ([32007, 32001, 32000], None),
        ([], []),
    ],
)
def test_several_ends(told: list[int], kept: list[int] | None) -> None:
    """Phi-3.5 ends an answer by any of three tokens."""
    found = validate_config(
        Path("x/config.json"), {"model_type": "phi3", "vocab_size": ROWS, "eos_token_id": told}
    )
    assert found["eos_token_id"] == kept


@pytest.mark.parametrize("told", ["five", 1.5, [1, "two"], {"id": 1}])
def test_an_id_that_is_no_number_is_an_error(
    sources: dict[str, Path], verb: Any, tmp_path: Path, told: Any
) -> None:
    shutil.copytree(sources["phi3"], tmp_path / "source")
    set_ids(tmp_path / "source" / "config.json", "text_config", pad_token_id=told)
    with pytest.raises(PartError, match="pad_token_id|cannot be"):
        verb("import", tmp_path / "source", "--out", tmp_path / "out")


def test_the_control(
    sources: dict[str, Path], verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where such an id stays, no embedding is made."""
    monkeypatch.setattr("phisense.opening.configs._drop_unknown_ids", lambda text: None)
    shutil.copytree(sources["phi3"], tmp_path / "source")
    set_ids(tmp_path / "source" / "config.json", "text_config", pad_token_id=ABSENT)
    with pytest.raises((PartError, AssertionError), match="[Pp]adding_idx"):
        verb("import", tmp_path / "source", "--out", tmp_path / "out")
