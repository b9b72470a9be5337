"""Reads untrusted audio files: limits bytes, seconds and memory, rejects silence, and keeps what a
truncated file still holds.

The container format is determined from the first bytes (`containers`), never from the file name or
FFmpeg's probing: FFmpeg also supports playlists, which would make it open other files and URLs.
Decoding runs in another process (`decoder_worker`), so that a malicious file cannot harm this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Timer
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import SoundError
from ..file_types import HEAD_BYTES, sniff
from .containers import Container, ends_early, find_container, lacks_index

AudioSamples = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz; Whisper's input rate
MAX_AUDIO_BYTES = 32 * 2**20
MAX_SECONDS = 60.0
MIN_SECONDS = 0.1
MIN_LOUDNESS = 10 ** (-60 / 20)  # RMS of the loudest 30 ms, full scale 1.0
AUDIO_FORMATS = "WAV, FLAC, MP3, Ogg, WebM, MP4/M4A, AAC or AIFF"
#: Frame streams without a declared length, in which decoders skip unknown data (tags, junk).
_LENIENT = ("mp3", "aac")

MAX_DECODER_MEMORY = 256 * 2**20  # bytes, of the decoder process
MAX_DECODER_CPU_SECONDS = 10  # CPU seconds of the decoder process
DECODER_TIMEOUT = 30.0  # wall-clock seconds
_DECODER = Path(__file__).with_name("decoder_worker.py")
#: Environment variables that Python needs to start; no others are passed, as they may hold secrets.
_PASSED_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONUSERBASE",
    "SYSTEMROOT",
    "VIRTUAL_ENV",
)
_DECODER_SLOTS = BoundedSemaphore(
    max(2, os.cpu_count() or 1)
)  # bounds concurrent decoder processes


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded recording.

    `samples` is float32 `(samples,)` at 16 kHz in [-1, 1]. `truncated` is set if the file ends
    before its audio does. `channel_count` is set if the channels cancel each other out, so that
    only the loudest is used.
    """

    samples: AudioSamples
    truncated: bool = False
    channel_count: int | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / SAMPLE_RATE


def read_audio(
    path: Path,
    *,
    name: str | None = None,
    max_seconds: float = MAX_SECONDS,
    max_memory: int | None = MAX_DECODER_MEMORY,
) -> AudioSamples:
    """Return the samples of `read_recording`."""
    return read_recording(path, name=name, max_seconds=max_seconds, max_memory=max_memory).samples


def read_recording(
    path: Path,
    *,
    name: str | None = None,
    max_seconds: float = MAX_SECONDS,
    max_memory: int | None = MAX_DECODER_MEMORY,
) -> Recording:
    """Decode an audio file to the mean of its channels; a truncated file is decoded up to its end.

    `max_memory` limits the decoder process, in bytes; None disables its resource limits.
    Thread-safe. Raises SoundError, naming the file `name` or its file name, if it is missing, not
    audio, damaged, silent, longer than `max_seconds`, or exceeds the decoder's limits.
    """
    called = name or path.name
    try:
        # unbuffered: the decoder process inherits the file position
        with path.open("rb", buffering=0) as file:
            container, cut = _check_file(file, called)
            recording = _read_channels(file, container, called, max_seconds, max_memory)
    except FileNotFoundError as error:
        raise SoundError(f"there is no sound {called}") from error
    except OSError as error:
        raise SoundError(
            f"{called} cannot be read", got=error.strerror or type(error).__name__
        ) from error
    cut = cut or recording.truncated
    if recording.seconds < MIN_SECONDS:
        got, wanted = f"{recording.seconds:.2f} s of sound", f"at least {MIN_SECONDS} s"
        raise SoundError(
            f"{called} is {'cut off' if cut else 'empty'}",
            got=got,
            wanted=wanted,
            do="Record or copy it again" if cut else None,
        )
    if not np.isfinite(recording.samples).all():
        raise SoundError(
            f"{called} cannot be read",
            got="samples that are not numbers",
            do="Record it again or save it as WAV",
        )
    if loudness(recording.samples) < MIN_LOUDNESS:
        raise no_speech_error(called, f"{recording.seconds:.1f} s of silence")
    return Recording(np.clip(recording.samples, -1, 1), cut, recording.channel_count)


def _read_channels(
    file: BinaryIO, container: Container, name: str, max_seconds: float, max_memory: int | None
) -> Recording:
    """Return the mean of the channels, or the loudest channel if they cancel each other out or the
    mean is too quiet.
    """
    sound, told = _decode(file, container, name, max_seconds, max_memory)
    promised, seconds = told["promised"], len(sound) / SAMPLE_RATE
    short = (
        promised is not None
        and container.demuxer not in _LENIENT
        and seconds < promised - max(0.12, 0.01 * promised)
    )
    cut = bool(short or told["broken"])
    if (
        told["channels"] == 1
        or len(sound) == 0
        or not (told["cancels"] or loudness(sound) < MIN_LOUDNESS)
    ):
        return Recording(sound, cut)
    file.seek(0)
    alone, _ = _decode(file, container, name, max_seconds, max_memory, channel=told["loudest"])
    return Recording(alone, cut, told["channels"])


def no_speech_error(name: str, got: str) -> SoundError:
    """The common error for silence, noise and unintelligible speech."""
    return SoundError(
        f"nothing was heard in {name}", got=got, do="Check the microphone and speak again"
    )


def loudness(sound: AudioSamples) -> float:
    """RMS of the loudest 30 ms."""
    size = SAMPLE_RATE * 30 // 1000
    frames = np.pad(sound, (0, -len(sound) % size)).reshape(-1, size)
    return float(np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1)).max())


def _check_file(file: BinaryIO, name: str) -> tuple[Container, bool]:
    """Check what can be checked without decoding; return the container, and whether the file is
    truncated.
    """
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise SoundError(f"{name} is empty", got="0 bytes", wanted=AUDIO_FORMATS)
    if size > MAX_AUDIO_BYTES:
        wanted = f"at most {MAX_AUDIO_BYTES // 2**20} MB"
        raise SoundError(
            f"{name} is too large",
            got=f"{size / 2**20:.0f} MB",
            wanted=wanted,
            do="Make it shorter",
        )
    container = find_container(file, size)
    if container is None:
        kind = sniff(file.read(HEAD_BYTES))
        if kind is None:
            raise SoundError(
                f"{name} is not a sound",
                got=f"{size} bytes of something else",
                wanted=AUDIO_FORMATS,
            )
        do = (
            "Record it again or save it as WAV"
            if kind.do.startswith("Name it where sounds")
            else kind.do
        )
        raise SoundError(
            f"{name} is no sound that can be heard", got=kind.name, wanted=AUDIO_FORMATS, do=do
        )
    if lacks_index(file, container, size):
        got = "an MP4 without its index (moov), which is written last: the recording was cut off"
        raise SoundError(f"{name} cannot be read", got=got, do="Record or copy it again")
    return container, ends_early(file, container, size)


def _decode(
    file: BinaryIO,
    container: Container,
    name: str,
    max_seconds: float,
    max_memory: int | None,
    channel: int | None = None,
) -> tuple[AudioSamples, dict[str, Any]]:
    """Return the samples of one channel or the mean of all, and the decoder's metadata."""
    asked = {
        "demuxer": container.demuxer,
        "start": container.start,
        "lenient": container.demuxer in _LENIENT,
        "longest": max_seconds,
        "rate": SAMPLE_RATE,
        "channel": channel,
        "memory": max_memory,
        "cpu": MAX_DECODER_CPU_SECONDS,
    }
    with _DECODER_SLOTS:
        said, code = _run_decoder(
            file, asked, max_bytes=8192 + 4 * int((max_seconds + 1) * SAMPLE_RATE)
        )
    head, _, samples = said.partition(b"\n")
    try:
        answer: dict[str, Any] = json.loads(head)
    except ValueError:
        answer = {}
    if "what" in answer:
        raise SoundError(
            f"{name} {answer['what']}",
            got=answer.get("got"),
            wanted=answer.get("wanted"),
            do=answer.get("do"),
        )
    if (
        code != 0
        or not answer.keys() >= {"promised", "broken", "channels", "loudest", "cancels"}
        or len(samples) % 4
    ):
        slow = code in (-getattr(signal, "SIGXCPU", 0), -signal.SIGTERM)
        got = (
            f"a file that takes more than {MAX_DECODER_CPU_SECONDS} s to decode"
            if slow
            else "a file that its decoder broke on"
        )
        raise SoundError(f"{name} cannot be read", got=got, do="Record it again or save it as WAV")
    return np.frombuffer(samples, np.float32), answer


def _run_decoder(file: BinaryIO, request: dict[str, Any], max_bytes: int) -> tuple[bytes, int]:
    """Run the decoder process for at most `DECODER_TIMEOUT` seconds; return at most `max_bytes` of
    its output, and its exit code.
    """
    command = [sys.executable, "-P", str(_DECODER), json.dumps(request)]
    env = {key: os.environ[key] for key in _PASSED_ENVIRONMENT if key in os.environ}
    with subprocess.Popen(  # noqa: S603
        command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    ) as process:
        clock = Timer(DECODER_TIMEOUT, process.terminate)
        clock.start()
        try:
            assert process.stdout is not None
            said = process.stdout.read(max_bytes)
            process.stdout.close()  # a decoder that keeps writing gets EPIPE and exits
            return said, process.wait()
        finally:
            clock.cancel()
            process.kill()
