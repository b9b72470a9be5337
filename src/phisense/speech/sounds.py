"""Reads a sound that a stranger may have made: bounded in bytes and seconds, complete, not silent.

What a file is, its first bytes decide, never its name or a guess of the decoder's: FFmpeg also knows playlists, which would make
it open other files and addresses.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError

from ..errors import SoundError

Sound = npt.NDArray[np.float32]

RATE = 16_000  # Hz; what Whisper hears
MOST_BYTES = 32 * 2**20
MOST_SECONDS = 30.0
LEAST_SECONDS = 0.1
LEAST_LOUD = 10 ** (-60 / 20)  # root mean square of the loudest 30 ms, of full scale 1.0
RATES, MOST_CHANNELS = (4_000, 384_000), 8
STREAMED = 2**31 - 2**20  # bytes
FORMATS = "WAV, FLAC, MP3, Ogg, WebM, MP4/M4A, AAC or AIFF"
#: Streams of frames with no promise of how many there are, in which readers skip what they do not know (tags, junk).
_LENIENT = ("mp3", "aac")


def read_sound(path: Path, *, name: str | None = None, longest: float = MOST_SECONDS) -> Sound:
    """`(samples,)` float32 at 16 kHz, mono, within -1..1.

    Raises SoundError, calling the sound `name` or its file name, if it is missing, no sound, damaged, cut off, silent, or
    longer than `longest` seconds.
    """
    called = name or path.name
    data = _read(path, called)
    demuxer = _demuxer(data)
    if demuxer is None:
        raise SoundError(f"{called} is not a sound", got=f"{len(data)} bytes of something else", wanted=FORMATS)
    try:
        sound, promised = _decode(data, demuxer, called, longest)
    except (FFmpegError, ValueError) as error:
        damage = f"a damaged file ({_reason(error)})"
        raise SoundError(f"{called} cannot be read", got=damage, do="Record it again or save it as WAV") from error
    _check_complete(data, demuxer, called)
    seconds = len(sound) / RATE
    if promised is not None and demuxer not in _LENIENT and seconds < 0.95 * promised - 0.2:
        wanted = f"the {promised:.1f} s that it names"
        raise SoundError(f"{called} is cut off", got=f"{seconds:.1f} s", wanted=wanted, do="Record or copy it again")
    if seconds < LEAST_SECONDS:
        raise SoundError(f"{called} is empty", got=f"{seconds:.2f} s of sound", wanted=f"at least {LEAST_SECONDS} s")
    if not np.isfinite(sound).all():
        raise SoundError(f"{called} cannot be read", got="samples that are not numbers", do="Record it again or save it as WAV")
    if loudness(sound) < LEAST_LOUD:
        raise SoundError(f"{called} is silent", do="Check the microphone and speak again")
    return np.clip(sound, -1, 1)


def loudness(sound: Sound) -> float:
    """Root mean square of the loudest 30 ms."""
    size = RATE * 30 // 1000
    frames = np.pad(sound, (0, -len(sound) % size)).reshape(-1, size)
    return float(np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1)).max())


def _read(path: Path, called: str) -> bytes:
    if not path.is_file():
        raise SoundError(f"there is no sound {path}")
    size = path.stat().st_size
    if size == 0:
        raise SoundError(f"{called} is empty", got="0 bytes", wanted=FORMATS)
    if size > MOST_BYTES:
        wanted = f"at most {MOST_BYTES // 2**20} MB"
        raise SoundError(f"{called} is too large", got=f"{size / 2**20:.0f} MB", wanted=wanted, do="Make it shorter")
    return path.read_bytes()


def _demuxer(data: bytes) -> str | None:
    """FFmpeg's name for what the first bytes say the file is."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if data[4:8] == b"ftyp":
        return "mp4"
    for magic, demuxer in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1aE\xdf\xa3", "matroska"), (b"ID3", "mp3")):
        if data.startswith(magic):
            return demuxer
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # the sync word of a frame; layer 0 is AAC
        return "mp3" if data[1] & 0x06 else "aac"
    return None


def _check_complete(data: bytes, demuxer: str, called: str) -> None:
    """A WAV names its size up front, which FFmpeg forgives; recorders that cannot know it write about 2 or 4 GiB."""
    named = int.from_bytes(data[4:8], "little") + 8
    if demuxer == "wav" and len(data) + 1 < named < STREAMED:
        wanted = f"the {named} that it names"
        raise SoundError(f"{called} is cut off", got=f"{len(data)} bytes", wanted=wanted, do="Record or copy it again")


def _decode(data: bytes, demuxer: str, called: str, longest: float) -> tuple[Sound, float | None]:
    """The samples, and how many seconds the file says it has; stops reading where it gets too long."""
    with av.open(io.BytesIO(data), format=demuxer, mode="r", metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise SoundError(f"{called} has no sound in it", wanted=FORMATS)
        stream = container.streams.audio[0]
        _check_stream(stream, called)
        promised = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        if promised is None and container.duration:
            promised = container.duration / av.time_base
        resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
        pieces: list[Sound] = []
        samples = 0
        for piece in _pieces(container, stream, resampler, lenient=demuxer in _LENIENT):
            pieces.append(piece)
            samples += len(piece)
            if samples > longest * RATE:
                length = f"{promised:.1f} s" if promised is not None and promised > longest else f"more than {longest:g} s"
                raise SoundError(f"{called} is too long", got=length, wanted=f"at most {longest:g} s", do="Ask in fewer words")
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), promised


def _check_stream(stream: AudioStream, called: str) -> None:
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    if not RATES[0] <= rate <= RATES[1]:
        raise SoundError(f"{called} has a strange sampling rate", got=f"{rate} Hz", wanted=f"{RATES[0]} to {RATES[1]} Hz")
    if not 1 <= channels <= MOST_CHANNELS:
        raise SoundError(f"{called} has too many channels", got=channels, wanted=f"at most {MOST_CHANNELS}")


def _pieces(container: InputContainer, stream: AudioStream, resampler: AudioResampler, *, lenient: bool) -> Iterator[Sound]:
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except InvalidDataError:
            if lenient:
                continue
            raise
        for frame in frames:
            frame.pts = None  # recorders leave gaps in the clock; the sound is what counts
            for resampled in resampler.resample(frame):
                yield resampled.to_ndarray()[0]
    for resampled in resampler.resample(None):
        yield resampled.to_ndarray()[0]


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, FFmpegError) and error.strerror else str(error)
