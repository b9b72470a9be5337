"""Every family that llama.cpp has: its files say what torch says, and are read as we read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from phisense import artifacts
from phisense.chat import ChatSession, Sampling
from phisense.chat.llama_engine import LlamaEngine
from phisense.errors import ExportError
from phisense.families import FAMILIES
from phisense.model import Phi3WithProjector, save_model
from phisense.pipeline.progress import ignore
from phisense.publish import export as exporting
from phisense.publish import gguf_agreement, gguf_text
from phisense.publish.export import export
from phisense.publish.gguf_agreement import Asked
from phisense.publish.vocabulary import read_vocabulary

from ..families import made
from ..tiny import make_vision
from .test_gguf import same_ids

pytestmark = pytest.mark.slow
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def make_family_model(folder: Path, family: str) -> Path:
    """A model folder of the family, with random weights."""
    made.make_language(folder / "language", family)
    make_vision(folder / "vision")
    parts = str(folder / "language"), str(folder / "vision")
    built = Phi3WithProjector.assemble(*parts, device="cpu", dtype=torch.float32)
    with artifacts.staged_artifact(folder / "model", kind="model folder") as aside:
        save_model(built, aside)
    return folder / "model"


def few() -> Asked:
    """Four drawn questions, and four that calibrate."""
    drawn = gguf_agreement.drawn_set()
    compared, calibrating = (
        (questions[::6], pictures[::6])
        for questions, pictures in (drawn.compared, drawn.calibrating)
    )
    return replace(drawn, compared=compared, calibrating=calibrating)


@pytest.mark.parametrize("family", ["smollm2", "qwen2_5", "qwen3"])
def test_it_says_the_same(family: str, tmp_path: Path) -> None:
    model, asked = make_family_model(tmp_path, family), few()
    report = export(model, tmp_path / "out", "f16", asked, ignore)
    assert report.f16.kl <= 1e-4
    assert report.f16.top1 >= 0.99
    same_ids(tmp_path / "out", model)
    engine = LlamaEngine.open(tmp_path / "out")
    assert engine.prompt.family is FAMILIES[family]
    session = ChatSession(engine, Sampling(max_new_tokens=4))
    session.set_image(asked.compared[1][0])
    assert list(session.ask("What colour is it?"))


def test_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are not interleaved, and another splitting, are refused with nothing written."""
    model, asked = make_family_model(tmp_path, "smollm2"), few()
    with monkeypatch.context() as patch:
        patch.setattr(gguf_text, "_interleave", lambda *_: None)
        with pytest.raises(ExportError, match="the same likeliest token at"):
            export(model, tmp_path / "out", "f16", asked, ignore)

    def with_gpt_2s(*arguments: Any) -> Any:
        """With a merge of two digits, which SmolLM2's splitting never joins."""
        found = read_vocabulary(*arguments)
        unused = next(i for i, piece in enumerate(found.pieces) if piece.startswith("filler"))
        pieces = [*found.pieces[:unused], "19", *found.pieces[unused + 1 :]]
        merges = [*found.merges, "1 9"]
        return replace(found, pre_tokenizer="gpt-2", pieces=pieces, merges=merges)

    monkeypatch.setattr(exporting, "read_vocabulary", with_gpt_2s)
    with pytest.raises(ExportError, match=r"splits texts otherwise.*gpt-2\); got '.*' as \["):
        export(model, tmp_path / "out", "f16", asked, ignore)
    assert not (tmp_path / "out").exists()
