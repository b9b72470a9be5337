"""Hearing, through faster-whisper: unheard voices, every format, and nothing invented where nobody speaks."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from phisense.errors import PartError, SoundError
from phisense.practice.spoken import FOLDER, spoken_questions, word_error_rate
from phisense.speech import Transcriber, read_sound
from phisense.speech.sounds import RATE

PART = FOLDER.parent / "speech"


@pytest.fixture(scope="module")
def ears() -> Transcriber:
    return Transcriber(PART, device="cpu")


def write(
    path: Path, sound: np.ndarray, codec: str, rate: int = 48_000, layout: str = "mono", options: dict[str, str] | None = None
) -> Path:
    """`sound` is `(samples,)` float32 at `rate`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.tile((sound * 32767).astype(np.int16), (1, 1)), format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or None
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def tone(seconds: float, hertz: float = 440, rate: int = 48_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_voices_it_never_heard(ears: Transcriber) -> None:
    recordings = [r for r in spoken_questions() if r.heldout][:12]
    assert word_error_rate((r.text, ears.transcribe(r.path).text) for r in recordings) <= 0.15


def test_the_part_is_converted_once(ears: Transcriber) -> None:
    made = (ears.folder / "model.bin").stat().st_mtime_ns
    again = Transcriber(PART, device="cpu")
    assert again.folder == ears.folder
    assert (again.folder / "model.bin").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.webm", "libopus"), ("a.m4a", "aac")],
)
def test_every_format_is_read_alike(tmp_path: Path, name: str, codec: str) -> None:
    try:
        path = write(tmp_path / name, tone(2), codec)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write {codec}: {error}")
    sound = read_sound(path)
    assert sound.dtype == np.float32
    assert len(sound) / RATE == pytest.approx(2, abs=0.12)
    spectrum = np.abs(np.fft.rfft(sound[RATE // 2 : RATE]))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=6)


@pytest.mark.parametrize("kind", ["silence", "hum", "hiss", "click"])
def test_nothing_is_invented_where_nobody_speaks(ears: Transcriber, tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    sounds = {
        "silence": np.zeros(96_000, np.float32),
        "hum": tone(2, 50),
        "hiss": (rng.standard_normal(96_000) * 0.05).astype(np.float32),
        "click": np.where(np.arange(96_000) % 24_000 < 20, 0.5, 0).astype(np.float32),
    }
    with pytest.raises(SoundError, match="is silent|nobody speaks|no words were heard"):
        ears.transcribe(write(tmp_path / "a.wav", sounds[kind], "pcm_s16le"))


def test_bad_sounds_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(SoundError, match="there is no sound"):
        read_sound(path)
    for content, words in (
        (b"", "is empty; got 0 bytes"),
        (b"hello", "is not a sound; got 5 bytes of something else"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "is not a sound"),
    ):
        path.write_bytes(content)
        with pytest.raises(SoundError, match=rf"The recording {words}"):
            read_sound(path, name="The recording")
    write(path, tone(3), "pcm_s16le")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SoundError, match="is cut off"):
        read_sound(path)
    write(path, tone(3), "pcm_s16le")
    with pytest.raises(SoundError, match="is too long; got 3.0 s; wanted at most 2 s"):
        read_sound(path, longest=2)


def test_a_part_of_another_kind_is_refused(parts: tuple[str, str]) -> None:
    with pytest.raises(PartError, match="is no speech part; got a model of type phi3"):
        Transcriber(parts[0])
    with pytest.raises(PartError, match="no such folder"):
        Transcriber("./nope")


def test_a_multilingual_whisper_with_the_real_tokenizer_loads(fixtures: Path, tmp_path: Path) -> None:
    """Random weights at the real vocabulary: the real loading code, on real speech; what it says means nothing."""
    import shutil

    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51866, num_mel_bins=128, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=50257, bos_token_id=50257, eos_token_id=50257,
        decoder_start_token_id=50258,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(decoder_start_token_id=50258, eos_token_id=50257, pad_token_id=50257)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(fixtures / "whisper-tokenizer" / name, tmp_path)
    ears = Transcriber(tmp_path, device="cpu")
    assert ears.multilingual
    try:
        assert ears.transcribe(fixtures / "audio" / "jfk.flac").seconds == pytest.approx(11, abs=0.1)
    except SoundError as error:
        assert "no words" in str(error)
