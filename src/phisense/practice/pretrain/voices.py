"""Synthetic voices for the practice world's questions: training data of the practice Whisper. Build
time only.

espeak-ng must be installed (`apt install espeak-ng`); nothing that phisense does for a user needs
it. A voice is an accent and a variant ("en-us+m3"). Held out of all training are four variants in
every accent, and six accent-variant pairs of which each half occurs in training, but never both
together.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

from ...artifacts import write_json
from ...errors import PartError
from ...speech.audio import SAMPLE_RATE
from ..dialogue import (
    DESCRIBE_REQUESTS,
    QUESTION_KINDS,
    SMALL_TALK,
    balanced_questions,
    scene_questions,
)
from ..world import sample_scene

Waveform = NDArray[np.float32]

ESPEAK_RATE = 22_050  # Hz
# "en" is an alias of British English: espeak-ng 1.51 silently ignores the variant in "en-gb+m3".
ACCENTS = (
    "en",
    "en-us",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
VARIANTS = (
    *(
        "m1",
        "m2",
        "m3",
        "m4",
        "m6",
        "m7",
        "m8",
        "f1",
        "f2",
        "f4",
        "f5",
        "klatt",
        "klatt2",
        "klatt3",
        "adam",
        "Andy",
    ),
    *(
        "Annie",
        "Alicia",
        "belinda",
        "david",
        "ed",
        "max",
        "Mike",
        "norbert",
        "paul",
        "rob",
        "steph",
        "victor",
    ),
    *("zac", "travis", "Diogo", "Michael", "john"),
)
HELD_OUT_VARIANTS = ("m5", "f3", "linda", "edward")
HELD_OUT_PAIRS = (
    "en+m3",
    "en-us+f2",
    "en-gb-scotland+m1",
    "en-gb-x-rp+f4",
    "en-029+m7",
    "en-us-nyc+Annie",
)
TRAINING_VOICES = tuple(
    v for v in (f"{a}+{b}" for a in ACCENTS for b in VARIANTS) if v not in HELD_OUT_PAIRS
)
HELD_OUT_VOICES = (
    *(f"{accent}+{variant}" for accent in ACCENTS for variant in HELD_OUT_VARIANTS),
    *HELD_OUT_PAIRS,
)
NOISE_LENGTH = 12 * SAMPLE_RATE  # samples; noise is generated once and sliced
PEAK_AMPLITUDE = 0.5  # of full scale 1.0


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """Voice settings: `speed` in words per minute, `pitch` 0..99, `pause` in units of 10 ms."""

    voice: str
    speed: int = 150
    pitch: int = 50
    pause: int = 0


def random_voice_settings(
    rng: random.Random, voices: tuple[str, ...] = TRAINING_VOICES
) -> VoiceSettings:
    """A random voice with random speed, pitch and pause."""
    pause = rng.choice((0, 0, 0, 1, 2, 4))
    return VoiceSettings(
        rng.choice(voices), speed=rng.randint(115, 195), pitch=rng.randint(20, 80), pause=pause
    )


def random_sentence(rng: random.Random) -> str:
    """A plausible utterance: mostly questions about a scene, balanced by kind."""
    draw = rng.random()
    if draw < 0.06:
        return rng.choice(DESCRIBE_REQUESTS)
    if draw < 0.14:
        return rng.choice(SMALL_TALK)[0]
    scene = sample_scene(rng, "train" if draw < 0.6 else "combinations")
    return balanced_questions(scene, rng, 1)[0].text


def synthesize(text: str, settings: VoiceSettings) -> Waveform:
    """Synthesize `(samples,)` float32 at 16 kHz, with peak `PEAK_AMPLITUDE`.

    The silence that espeak-ng adds around it is trimmed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise PartError(
            "espeak-ng is not installed; it speaks the training sentences",
            do="Install it: apt install espeak-ng",
        )
    options = [
        "-v",
        settings.voice,
        "-s",
        str(settings.speed),
        "-p",
        str(settings.pitch),
        "-g",
        str(settings.pause),
    ]
    wave = subprocess.run(
        [program, *options, "--stdout", text], capture_output=True, check=True
    ).stdout
    # a 44 byte header, then mono 16 bit samples
    sound = np.frombuffer(wave[44:], np.int16).astype(np.float32) / 2**15
    sound = resample_poly(sound, 320, ESPEAK_RATE * 320 // SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    return np.asarray(sound * (PEAK_AMPLITUDE / np.abs(sound).max()), np.float32)


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip: `sound` is `(samples,)` int16 at 16 kHz, to save memory."""

    text: str
    voice: str
    sound: NDArray[np.int16]


def clips(
    seed: int, count: int, voices: tuple[str, ...] = TRAINING_VOICES, workers: int = 1
) -> list[Clip]:
    """`count` sentences by random voices with random settings; deterministic for a seed."""
    rng = random.Random(seed)
    wanted = [(random_sentence(rng), random_voice_settings(rng, voices)) for _ in range(count)]
    with ThreadPoolExecutor(workers) as pool:  # threads suffice: espeak-ng is a subprocess
        sounds = list(pool.map(lambda pair: (synthesize(*pair) * 2**15).astype(np.int16), wanted))
    return [
        Clip(text, manner.voice, sound)
        for (text, manner), sound in zip(wanted, sounds, strict=True)
    ]


class RoomAcoustics:
    """Random acoustic augmentation: tempo, microphone response, echo, noise, volume, silence."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._noises = np.stack([self._make_noise(NOISE_LENGTH) for _ in range(64)])

    def record(self, sound: Waveform | NDArray[np.int16], longest: int) -> Waveform:
        """Augment to `(samples,)` float32, at most `longest` samples.

        `sound` is int16, or float32 of full scale 1.0.
        """
        rng = self.rng
        out: Waveform = sound.astype(np.float32) / np.float32(
            2**15 if sound.dtype == np.int16 else 1
        )
        if rng.random() < 0.5:
            tempo = rng.uniform(0.92, 1.1)  # also shifts the pitch, as a vocal tract's size
            out = np.interp(np.arange(0, len(out) - 1, tempo), np.arange(len(out)), out).astype(
                np.float32
            )
        if rng.random() < 0.4:
            out = self._coloured(out)
        before, after = int(rng.integers(0, SAMPLE_RATE // 2)), int(rng.integers(0, SAMPLE_RATE))
        room = max(0, longest - len(out))
        out = np.pad(out, (min(before, room // 2), min(after, room - room // 2)))[:longest]
        volume = 10 ** rng.uniform(-1.3, 0.2)
        out = out * volume
        if rng.random() < 0.7:
            out = out + self.noise(len(out)) * (volume * 10 ** rng.uniform(-2.5, -1.2))
        return np.clip(out, -1, 1).astype(np.float32)

    def noise(self, samples: int) -> Waveform:
        """Noise of a random spectrum, from hiss to rumble, or mains hum.

        `(samples,)` float32, standard deviation about 0.5.
        """
        start = self.rng.integers(0, NOISE_LENGTH - samples)
        return self._noises[self.rng.integers(len(self._noises)), start : start + samples]

    def _make_noise(self, samples: int) -> Waveform:
        rng = self.rng
        if rng.random() < 0.15:
            time = np.arange(samples, dtype=np.float32) / SAMPLE_RATE
            base = rng.choice((50, 60, 100, 120)) * rng.uniform(0.98, 1.02)
            tones = [np.sin(2 * np.pi * base * k * time) * rng.uniform(0, 1 / k) for k in (1, 2, 3)]
            return np.asarray(sum(tones), np.float32)
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        spectrum /= np.maximum(1, np.arange(len(spectrum)) * 100 / len(spectrum)) ** rng.uniform(
            0, 1
        )
        noise = np.fft.irfft(spectrum, samples)
        return np.asarray(noise * 0.5 / (noise.std() + 1e-6), np.float32)

    def _coloured(self, sound: Waveform) -> Waveform:
        """Another microphone and a little echo: a smooth random frequency response, and up to three
        reflections.
        """
        rng = self.rng
        knots = rng.uniform(-8, 4, 6)  # dB, from 0 to 8 kHz
        if rng.random() < 0.3:
            knots[4:] -= 25  # telephone: little above 5 kHz
        size = next_fast_len(len(sound) + 4000, real=True)
        response = 10 ** (np.interp(np.linspace(0, 5, size // 2 + 1), np.arange(6), knots) / 20)
        echo = np.zeros(4000, np.float32)
        echo[0] = 1
        if rng.random() < 0.5:
            echo[rng.integers(100, 3000, 3)] += rng.uniform(-0.35, 0.35, 3)
        whole = np.fft.irfft(np.fft.rfft(sound, size) * response * np.fft.rfft(echo, size), size)[
            : len(sound)
        ]
        return np.asarray(whole * (np.abs(sound).max() / (np.abs(whole).max() + 1e-6)), np.float32)


def record_questions(out: Path, each: int = 5, seed: int = 29) -> None:
    """Write `practice.spoken`'s recordings: `each` questions of every kind, all but one by held-out
    voices.

    Only questions that apply to at least 12 of 400 scenes are used, so that a listener finds an
    image for them.
    """
    rng, room = random.Random(seed), RoomAcoustics(seed)
    scenes = [sample_scene(rng, "heldout") for _ in range(400)]
    possible = Counter(
        (question.kind, question.text) for scene in scenes for question in scene_questions(scene)
    )
    texts = {
        kind: sorted(text for (of, text), count in possible.items() if of == kind and count >= 12)
        for kind in QUESTION_KINDS
    }
    unheard = rng.sample(HELD_OUT_VOICES, len(HELD_OUT_VOICES))
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    for kind in QUESTION_KINDS:
        for i, text in enumerate(rng.sample(texts[kind], each)):
            heldout = i > 0
            voice = unheard.pop() if heldout else rng.choice(TRAINING_VOICES)
            manner = VoiceSettings(voice, speed=rng.randint(130, 175), pitch=rng.randint(30, 70))
            quiet = np.pad(synthesize(text, manner), (SAMPLE_RATE // 4, SAMPLE_RATE // 3))
            file = f"{kind}-{i + 1}.flac"
            write_flac(out / file, quiet + room.noise(len(quiet)) * np.float32(0.0003))
            listed.append({"file": file, "text": text, "voice": voice, "heldout": heldout})
    write_json(out / "spoken.json", listed)


def write_flac(path: Path, sound: Waveform) -> None:
    """Write `(samples,)` float32 at 16 kHz as mono FLAC."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream(
            "flac",
            rate=SAMPLE_RATE,
            layout="mono",
            format="s16",
            options={"compression_level": "12"},
        )
        frame = av.AudioFrame.from_ndarray(
            (sound * (2**15 - 1)).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
