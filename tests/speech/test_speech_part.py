"""A speech part is complete or it is not: who checks it before and who loads it say the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from phisense.doctor.findings import examine
from phisense.errors import PartError
from phisense.recipe import parse_recipe
from phisense.speech.ctranslate2_model import ctranslate2_folder
from phisense.speech_part import find_speech_part

from ..tiny import PRACTICE

FILES = {
    "transformers": (
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "model-00002-of-00002.safetensors",
    ),
    "CTranslate2": ("config.json", "tokenizer.json", "vocabulary.json", "model.bin"),
}
CASES = [(kind, missing) for kind, names in FILES.items() for missing in (None, *names)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A complete part of each kind."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        "transformers": PRACTICE / "speech",
        "CTranslate2": ctranslate2_folder(PRACTICE / "speech", cache),
    }


def said_by_doctor(part: Path) -> tuple[str, str]:
    """State and text of the finding about a recipe's speech part."""
    recipe = parse_recipe(
        {
            "name": "heard",
            "language": {"part": str(PRACTICE / "language")},
            "vision": {"part": str(PRACTICE / "vision")},
            "speech": {"part": str(part)},
            "data": {"images": "none", "instruct": ["none.json"]},
            "train": {"instruct": {}},
        }
    )
    finding = next(one for one in examine(recipe) if one.what == "speech part")
    return finding.state, finding.found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "missing"), CASES)
def test_doctor_and_transcriber_agree_on_a_speech_part(
    kind: str, missing: str | None, whole: dict[str, Path], tmp_path: Path
) -> None:
    part = tmp_path / "speech"
    shutil.copytree(whole[kind], part)
    if missing is None:
        assert said_by_doctor(part) == ("ok", str(part))
        assert find_speech_part(part).converted == (kind == "CTranslate2")
        assert (ctranslate2_folder(part, tmp_path / "cache") / "model.bin").is_file()
        return
    (part / missing).unlink()
    state, text = said_by_doctor(part)
    assert state == "missing"
    assert missing in text
    with pytest.raises(PartError) as raised:
        ctranslate2_folder(part, tmp_path / "cache")
    assert str(raised.value) == text


def test_another_model_is_no_speech_part() -> None:
    with pytest.raises(PartError, match=r"no speech part.*phi3"):
        find_speech_part(PRACTICE / "language")
