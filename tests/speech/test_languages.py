"""Any language becomes English: which one is spoken is found out, said, and translated by parts
that were taught to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import PartError, UsageError
from phisense.practice.spoken import spoken_questions
from phisense.speech import Transcriber, Transcript
from phisense.speech.ctranslate2_model import layer_counts
from phisense.speech.languages import LANGUAGES

from .made import PART, bench_speech

SOUND = spoken_questions()[0].path
SHAPES = {"as many": (4, 4), "turbo": (8, 1), "distilled": (4, 2)}


def open_part(folder: Path, layers: tuple[int, int], language: str = "de") -> Transcriber:
    """A random Whisper that takes everything for `language`, and says five tokens about it."""
    bench = bench_speech()
    shape = {**bench.TINY, "encoder": layers[0], "decoder": layers[1]}
    return Transcriber(
        bench.make_whisper(folder, shape, tokens=5, language=language),
        cache=folder.parent / "cache",
        device="cpu",
    )


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    return open_part(tmp_path_factory.mktemp("whisper") / "small", SHAPES["as many"])


@pytest.fixture
def prompts(german: Transcriber, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The task tokens of each window that the part is asked about."""
    seen: list[str] = []
    model = german._model
    real = model.generate_with_fallback

    def spy(encoded: Any, prompt: list[int], tokenizer: Any, options: Any) -> Any:
        seen.append("".join(model.hf_tokenizer.id_to_token(i) for i in prompt))
        return real(encoded, prompt, tokenizer, options)

    monkeypatch.setattr(model, "generate_with_fallback", spy)
    return seen


def test_the_language_is_found_out_and_put_into_english(
    german: Transcriber, prompts: list[str]
) -> None:
    said = german.transcribe(SOUND)
    assert said.language == "de"
    assert said.probability is not None
    assert 0.1 < said.probability <= 1, "of a hundred languages"
    assert said.translated
    assert said.is_uncertain == (said.probability < 0.5)
    assert (
        said.language_description
        == f"{'perhaps ' if said.is_uncertain else ''}German ({said.probability * 100:.0f} %),"
        " put into"
        " English"
    )
    assert prompts == ["<|startoftranscript|><|de|><|translate|><|notimestamps|>"]
    assert len(said.text.split()) == 5


def test_what_is_asked_for_is_done(german: Transcriber, prompts: list[str]) -> None:
    as_said = german.transcribe(SOUND, task="transcribe")
    assert (as_said.language, as_said.translated) == ("de", False)
    french = german.transcribe(SOUND, language="fr")
    assert (
        french.language,
        french.probability,
        french.translated,
        french.language_description,
    ) == (
        "fr",
        None,
        True,
        "French, put into English",
    )
    english = german.transcribe(SOUND, language="en")
    assert (english.language, english.translated, english.language_description) == (
        "en",
        False,
        "English",
    )
    assert [p.split("|><|")[1:3] for p in prompts] == [
        ["de", "transcribe"],
        ["fr", "translate"],
        ["en", "transcribe"],
    ]
    with pytest.raises(
        UsageError, match="no such language; got german; wanted a code such as en, zh, de"
    ):
        german.transcribe(SOUND, language="german")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["turbo", "distilled"])
def test_parts_that_were_not_taught_to_translate_say_which_to_use(
    tmp_path: Path, kind: str
) -> None:
    """By their layers, whatever they are called; the same part still hears English, and other
    languages as they are.
    """
    ears = open_part(tmp_path / "mine", SHAPES[kind])
    assert layer_counts(ears.folder) == SHAPES[kind]
    assert ears.multilingual
    assert not ears.can_translate
    encoder, decoder = SHAPES[kind]
    layers = (
        rf"a turbo or distilled Whisper \({decoder} decoder layers to {encoder} in the encoder\)"
    )
    for asked, language in (
        ({}, "German"),
        ({"language": "fr"}, "French"),
        ({"task": "translate"}, "another language"),
    ):
        with pytest.raises(
            PartError,
            match=(
                rf"never taught to translate into English; got {language} for {layers}\. Use"
                r" openai/whisper-small"
            ),
        ):
            ears.transcribe(SOUND, **asked)  # type: ignore[arg-type]
    assert ears.transcribe(SOUND, language="en").text
    assert ears.transcribe(SOUND, task="transcribe").language == "de"


def test_parts_that_were_are_not_refused(german: Transcriber) -> None:
    assert german.can_translate
    assert german.transcribe(SOUND, task="translate").translated


@pytest.mark.slow
def test_a_name_tells_too(german: Transcriber, tmp_path: Path) -> None:
    """Some were cut to as many layers on both sides. A word within another one does not count."""
    for name, taught in (
        ("whisper-large-v3-turbo", False),
        ("distil-whisper", False),
        ("distillery-turbot", True),
    ):
        shutil.copytree(german.folder, tmp_path / name)
        assert Transcriber(tmp_path / name, device="cpu").can_translate is taught


def test_an_english_part_hears_english_only() -> None:
    ears = Transcriber(PART, device="cpu")
    said = ears.transcribe(SOUND)
    assert (said.language, said.probability, said.translated, said.language_description) == (
        "en",
        None,
        False,
        "English",
    )
    assert not ears.can_translate
    with pytest.raises(
        PartError,
        match=(
            "hears English only; got translate from German. Use a multilingual Whisper such as"
            " openai"
        ),
    ):
        ears.transcribe(SOUND, language="de")


@pytest.mark.slow
def test_the_languages_are_found_in_the_tokenizer_where_nothing_else_names_them(
    tmp_path: Path,
) -> None:
    """As in many Whispers that were tuned further; and a folder converted elsewhere without them is
    a sentence.
    """
    bench = bench_speech()
    part = bench.make_whisper(tmp_path / "tuned", bench.TINY, tokens=5, language="de")
    settings = json.loads((part / "generation_config.json").read_text())
    del settings["lang_to_id"]
    (part / "generation_config.json").write_text(json.dumps(settings))
    ears = Transcriber(part, cache=tmp_path / "cache", device="cpu")
    assert ears.transcribe(SOUND).language == "de"
    shutil.copytree(ears.folder, tmp_path / "elsewhere")
    config = json.loads((ears.folder / "config.json").read_text())
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps({**config, "lang_ids": []}))
    (tmp_path / "elsewhere" / "manifest.json").unlink()
    ears = Transcriber(tmp_path / "elsewhere", device="cpu")
    with pytest.raises(PartError, match="does not say which languages it knows.*Name the language"):
        ears.transcribe(SOUND)
    assert ears.transcribe(SOUND, language="de").translated


def test_a_damaged_conversion_is_a_sentence(german: Transcriber, tmp_path: Path) -> None:
    shutil.copytree(german.folder, tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.bin").read_bytes()
    (tmp_path / "cut" / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PartError, match="is damaged; got a model.bin that ends too soon"):
        layer_counts(tmp_path / "cut")


def test_the_names_are_whispers_own() -> None:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as THEIRS

    assert {code: name.lower() for code, name in LANGUAGES.items()} == THEIRS
    assert Transcript("", 1, "xx").language_description == "xx"
