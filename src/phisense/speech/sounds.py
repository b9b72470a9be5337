"""Reads a sound that a stranger may have made: bounded in bytes, seconds and memory, complete, not silent.

What a file is, its first bytes decide, never its name or a guess of the decoder's: FFmpeg also knows playlists, which would make
it open other files and addresses. It is decoded in another process (`decoding`), so that no file can harm this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import BoundedSemaphore, Timer
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import SoundError

Sound = npt.NDArray[np.float32]

RATE = 16_000  # Hz; what Whisper hears
MOST_BYTES = 32 * 2**20
MOST_SECONDS = 60.0
LEAST_SECONDS = 0.1
LEAST_LOUD = 10 ** (-60 / 20)  # root mean square of the loudest 30 ms, of full scale 1.0
STREAMED = 2**31 - 2**20  # bytes
FORMATS = "WAV, FLAC, MP3, Ogg, WebM, MP4/M4A, AAC or AIFF"
#: Streams of frames with no promise of how many there are, in which readers skip what they do not know (tags, junk).
_LENIENT = ("mp3", "aac")

MOST_MEMORY = 256 * 2**20  # bytes, of the process that decodes
MOST_COMPUTING = 10  # seconds, of that process
MOST_WAIT = 30.0  # seconds, on the clock
_DECODER = Path(__file__).with_name("decoding.py")
#: What a Python needs in order to start, and nothing that may be a secret.
_NEEDED = (
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
_SEATS = BoundedSemaphore(max(2, os.cpu_count() or 1))  # as many decode at once, whoever asks


def read_sound(path: Path, *, name: str | None = None, longest: float = MOST_SECONDS, memory: int | None = MOST_MEMORY) -> Sound:
    """`(samples,)` float32 at 16 kHz, mono, within -1..1.

    `memory` bounds the process that decodes, in bytes; None sets no limits there. May be called from several threads. Raises
    SoundError, calling the sound `name` or its file name, if it is missing, no sound, damaged, cut off, silent, longer than
    `longest` seconds, or more than its decoder may take.
    """
    called = name or path.name
    try:
        with path.open("rb", buffering=0) as file:  # the other process goes on where this one stands
            demuxer = _check_file(file, called)
            sound, promised = _decode(file, demuxer, called, longest, memory)
    except FileNotFoundError as error:
        raise SoundError(f"there is no sound {called}") from error
    except OSError as error:
        raise SoundError(f"{called} cannot be read", got=error.strerror or type(error).__name__) from error
    seconds = len(sound) / RATE
    if promised is not None and demuxer not in _LENIENT and seconds < 0.95 * promised - 0.2:
        wanted = f"the {promised:.1f} s that it names"
        raise SoundError(f"{called} is cut off", got=f"{seconds:.1f} s", wanted=wanted, do="Record or copy it again")
    if seconds < LEAST_SECONDS:
        raise SoundError(f"{called} is empty", got=f"{seconds:.2f} s of sound", wanted=f"at least {LEAST_SECONDS} s")
    if not np.isfinite(sound).all():
        raise SoundError(f"{called} cannot be read", got="samples that are not numbers", do="Record it again or save it as WAV")
    if loudness(sound) < LEAST_LOUD:
        raise nothing_heard(called, f"{seconds:.1f} s of silence")
    return np.clip(sound, -1, 1)


def nothing_heard(called: str, got: str) -> SoundError:
    """The one sentence for silence, noise and mumbling."""
    return SoundError(f"nothing was heard in {called}", got=got, do="Check the microphone and speak again")


def loudness(sound: Sound) -> float:
    """Root mean square of the loudest 30 ms."""
    size = RATE * 30 // 1000
    frames = np.pad(sound, (0, -len(sound) % size)).reshape(-1, size)
    return float(np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1)).max())


def _check_file(file: BinaryIO, called: str) -> str:
    """The demuxer for `file`, after what can be said without decoding."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise SoundError(f"{called} is empty", got="0 bytes", wanted=FORMATS)
    if size > MOST_BYTES:
        wanted = f"at most {MOST_BYTES // 2**20} MB"
        raise SoundError(f"{called} is too large", got=f"{size / 2**20:.0f} MB", wanted=wanted, do="Make it shorter")
    head = file.read(16)
    file.seek(0)
    demuxer = _demuxer(head)
    if demuxer is None:
        raise SoundError(f"{called} is not a sound", got=f"{size} bytes of something else", wanted=FORMATS)
    # A WAV names its size up front, which FFmpeg forgives; recorders that cannot know it write about 2 or 4 GiB.
    named = int.from_bytes(head[4:8], "little") + 8
    if demuxer == "wav" and size + 1 < named < STREAMED:
        wanted = f"the {named} that it names"
        raise SoundError(f"{called} is cut off", got=f"{size} bytes", wanted=wanted, do="Record or copy it again")
    return demuxer


def _demuxer(head: bytes) -> str | None:
    """FFmpeg's name for what the first bytes say the file is."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mp4"
    for magic, demuxer in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1aE\xdf\xa3", "matroska"), (b"ID3", "mp3")):
        if head.startswith(magic):
            return demuxer
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # the sync word of a frame; layer 0 is AAC
        return "mp3" if head[1] & 0x06 else "aac"
    return None


def _decode(file: BinaryIO, demuxer: str, called: str, longest: float, memory: int | None) -> tuple[Sound, float | None]:
    """The samples, and how many seconds the file says it has."""
    asked = {"demuxer": demuxer, "lenient": demuxer in _LENIENT, "longest": longest, "rate": RATE, "memory": memory, "cpu": MOST_COMPUTING}
    with _SEATS:
        said, code = _ask_decoder(file, asked, most=8192 + 4 * int((longest + 1) * RATE))
    head, _, samples = said.partition(b"\n")
    try:
        answer: dict[str, Any] = json.loads(head)
    except ValueError:
        answer = {}
    if "what" in answer:
        raise SoundError(f"{called} {answer['what']}", got=answer.get("got"), wanted=answer.get("wanted"), do=answer.get("do"))
    if code != 0 or "promised" not in answer or len(samples) % 4:
        slow = code in (-getattr(signal, "SIGXCPU", 0), -signal.SIGTERM)
        got = f"a file that takes more than {MOST_COMPUTING} s to decode" if slow else "a file that its decoder broke on"
        raise SoundError(f"{called} cannot be read", got=got, do="Record it again or save it as WAV")
    return np.frombuffer(samples, np.float32), answer["promised"]


def _ask_decoder(file: BinaryIO, asked: dict[str, Any], most: int) -> tuple[bytes, int]:
    """What the decoder wrote, at most `most` bytes of it, and how it ended; it gets `MOST_WAIT` seconds."""
    command = [sys.executable, "-P", str(_DECODER), json.dumps(asked)]
    env = {key: os.environ[key] for key in _NEEDED if key in os.environ}
    with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:  # noqa: S603
        clock = Timer(MOST_WAIT, process.terminate)
        clock.start()
        try:
            assert process.stdout is not None
            said = process.stdout.read(most)
            process.stdout.close()  # one that writes on gets an error and ends
            return said, process.wait()
        finally:
            clock.cancel()
            process.kill()
