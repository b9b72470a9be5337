"""Sounds and speech parts that tests make."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import av
import numpy as np

from phisense.practice.spoken import RECORDINGS_FOLDER
from phisense.speech.audio import SAMPLE_RATE

PART = RECORDINGS_FOLDER.parent / "speech"
#: file name -> codec
FORMATS = {
    "a.wav": "pcm_s16le",
    "a.flac": "flac",
    "a.mp3": "libmp3lame",
    "a.ogg": "libopus",
    "vorbis.ogg": "vorbis",
    "a.webm": "libopus",
    "a.m4a": "aac",
    "a.aac": "aac",
    "a.aiff": "pcm_s16be",
}


def write(
    path: Path,
    sound: np.ndarray,
    codec: str,
    rate: int = 48_000,
    layout: str = "mono",
    options: dict[str, str] | None = None,
) -> Path:
    """`sound` is `(samples,)` float32 at `rate`."""
    with av.open(str(path), "w") as container:
        # FFmpeg's own encoder calls itself an experiment, and knows two channels only
        if codec == "vorbis":
            layout, options = "stereo", {"strict": "experimental"}
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options or {})
        frame = av.AudioFrame.from_ndarray(
            (sound * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format,
            layout=layout,
            rate=rate,
            frame_size=stream.codec_context.frame_size or None,
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def at_48k(sound: np.ndarray) -> np.ndarray:
    """`(samples,)` at 16 kHz as three times as many at 48 kHz."""
    places = np.arange(3 * len(sound)) / 3
    return np.interp(places, np.arange(len(sound)), sound).astype(np.float32)


def tone(seconds: float, hertz: float = 440, rate: int = 48_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def noises(seconds: float = 10) -> dict[str, np.ndarray]:
    """What a microphone hears when nobody speaks, at 16 kHz."""
    rng, samples = np.random.default_rng(0), int(seconds * SAMPLE_RATE)
    clock = np.arange(samples) / SAMPLE_RATE
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.sqrt(
        np.maximum(np.arange(samples // 2 + 1), 1)
    )
    pink = np.fft.irfft(spectrum, samples)
    found = {
        "silence": np.zeros(samples),
        "hum of 50 Hz": sum(0.1 / k * np.sin(2 * np.pi * 50 * k * clock) for k in range(1, 6)),
        "hum of 60 Hz": sum(0.1 / k * np.sin(2 * np.pi * 60 * k * clock) for k in range(1, 6)),
        "white noise": rng.standard_normal(samples) * 0.1,
        "soft white noise": rng.standard_normal(samples) * 0.003,
        "pink noise": pink * (0.1 / pink.std()),
        "clicks": np.where(np.arange(samples) % 8000 < 20, 0.5, 0),
    }
    return {name: np.clip(sound, -1, 1).astype(np.float32) for name, sound in found.items()}


def bench_speech() -> ModuleType:
    """bench/speech.py, which makes Whispers of any shape."""
    spec = importlib.util.spec_from_file_location(
        "bench_speech", Path(__file__).parents[2] / "bench" / "speech.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
