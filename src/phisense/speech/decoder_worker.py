"""Decodes untrusted audio in a process of its own: run as a script by `audio`, never imported by
the rest of phisense.

    stdin   the open file; this process never learns its name
    argv    one JSON object: demuxer, start (bytes), lenient, longest (s), rate (Hz), channel (or
            null), memory (bytes or null), cpu (s)
    stdout  one line of JSON, then the samples as float32 at `rate`: of that channel, or the mean of
            all

The JSON has the duration that the file declares, whether its end is damaged, the number of
channels, the loudest channel, and whether the channels cancel each other out in the mean (a
microphone with inverted polarity).

A codec is a large C parser of untrusted input. Here a crash, an endless loop or a decompression
bomb costs a small process without secrets or model and with bounded memory, and the caller reports
an error. Neither torch nor NumPy is imported, so that it starts in a fifth of a second.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypedDict

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import EOFError as AvEOFError
from av.error import FFmpegError, InvalidDataError

SAMPLE_RATES, MAX_CHANNELS = (4_000, 384_000), 8
SAMPLE_BYTES = 4  # bytes of a float32
_STEP = 4  # loudness is measured on every 4th sample
_RESERVE = 2**24  # bytes reserved for reporting an out-of-memory error


class _DecodeError(Exception):
    """An error, as the keyword arguments of a SoundError."""

    def __init__(self, what: str, **rest: object) -> None:
        super().__init__(what)
        self.reply = {"what": what, **rest}


def main() -> None:
    """Decode the audio on stdin within the limits; write a JSON header and the samples to
    stdout.
    """
    asked = json.loads(sys.argv[1])
    if asked["memory"] is not None:
        set_decoder_limits(asked["memory"], asked["cpu"])
    try:
        _write(*_answered(sys.stdin.buffer, asked))
    except MemoryError:  # FFmpeg's errors include MemoryError, and any line may run out of memory
        _free_reserve()
        wanted = f"at most {asked['memory'] // 2**20} MB" if asked["memory"] else None
        _write(
            {
                "what": "needs too much memory to be read",
                "wanted": wanted,
                "do": "Record it again or save it as WAV",
            },
            [],
        )


def _answered(file: BinaryIO, asked: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Return metadata and samples of a file; if it cannot be read, the keyword arguments of a
    SoundError and no samples.
    """
    try:
        return decode_audio(file, asked)
    except _DecodeError as refused:
        return refused.reply, []
    except AvEOFError:
        return {
            "what": "is cut off",
            "got": "a file that ends before any sound",
            "do": "Record or copy it again",
        }, []
    except (FFmpegError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise
        reason = error.strerror if isinstance(error, FFmpegError) and error.strerror else str(error)
        return {
            "what": "cannot be read",
            "got": f"a damaged file ({reason[:200]})",
            "do": "Record it again or save it as WAV",
        }, []


def _write(answer: dict[str, Any], pieces: list[bytes]) -> None:
    """Write header and samples. Serializes the header first, so that a failure can still be
    reported.
    """
    line = json.dumps(answer).encode() + b"\n"
    for piece in (line, *pieces):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def set_decoder_limits(memory: int, cpu: int) -> None:
    """Limit this process, where the OS supports it: `memory` bytes of data, plus a reserve that
    `_free_reserve` opens; `cpu` seconds; no files written, no core dumps.
    """
    try:
        import resource
    except ImportError:  # Windows: only the decoded size is limited
        return
    # DATA counts allocations; AS also counts libraries and thread stacks, which are only reserved.
    for kind, most, last in (
        (resource.RLIMIT_DATA, memory, max(memory, _in_use("VmData")) + _RESERVE),
        (resource.RLIMIT_AS, 4 * memory, max(4 * memory, _in_use("VmSize")) + _RESERVE),
        # the soft limit sends SIGXCPU, which identifies the cause; the hard limit kills
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        # some systems define a limit but do not support setting it
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, last))


def _in_use(key: str) -> int:
    """Bytes of this process that count toward a limit; 0 where the OS does not say."""
    with suppress(OSError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def _free_reserve() -> None:
    """Open the reserve: a process that has used up its memory can still report it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
            _, last = resource.getrlimit(kind)
            resource.setrlimit(kind, (last, last))


class _OffsetFile(io.RawIOBase):
    """A file from an offset on: FFmpeg does not see the tags before it."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return (
            self._file.seek(offset + self._start if whence == 0 else offset, whence) - self._start
        )

    def tell(self) -> int:
        return self._file.tell() - self._start


class _ChannelSummary(TypedDict):
    """Whether the end is damaged, how many channels there are, which is the loudest, and whether
    they cancel each other out in the mean.
    """

    broken: bool
    channels: int
    loudest: int
    cancels: bool


@dataclass
class _AudioStats:
    """Statistics collected while decoding: `energy` of the mean, then of each channel; `broken` if
    the end is damaged.
    """

    energy: list[float] = field(default_factory=list)
    broken: bool = False

    def add(self, at: int, samples: Any) -> None:
        self.energy += [0.0] * (at + 1 - len(self.energy))
        self.energy[at] += sum(value * value for value in samples[::_STEP].tolist())

    def summary(self) -> _ChannelSummary:
        mean, channels = (self.energy or [0.0])[0], self.energy[1:]
        loudest = max(range(len(channels)), key=channels.__getitem__) if channels else 0
        # A single active channel among silent ones gives a mean above this threshold.
        cancels = bool(channels) and mean * (2 * len(channels)) ** 2 < channels[loudest]
        return {
            "broken": self.broken,
            "channels": max(1, len(channels)),
            "loudest": loudest,
            "cancels": cancels,
        }


def decode_audio(file: BinaryIO, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Return the metadata and the samples in chunks. Raises _DecodeError as soon as they exceed
    `longest`.
    """
    longest, pieces, size, heard = request["longest"], list[bytes](), 0, _AudioStats()
    source: Any = _OffsetFile(file, request["start"])
    if request["demuxer"] == "ogg":
        source = io.BytesIO(_repair_ogg(source.read()))
    with av.open(
        source, format=request["demuxer"], mode="r", metadata_errors="ignore"
    ) as container:
        if not container.streams.audio:
            raise _DecodeError("has no sound in it")
        stream = container.streams.audio[0]
        _check_stream(stream)
        # thread stacks count as memory, and some machines have a hundred cores
        stream.codec_context.thread_count = 1
        promised = (
            float(stream.duration * stream.time_base)
            if stream.duration and stream.time_base
            else None
        )
        if promised is None and container.duration:
            promised = container.duration / av.time_base
        frames = _frames(container, stream, heard, lenient=request["lenient"])
        for piece in _mix_channels(frames, stream, heard, request["rate"], request["channel"]):
            pieces.append(piece)
            size += len(piece)
            if size > longest * request["rate"] * SAMPLE_BYTES:
                raise _too_long(promised, longest)
    return {"promised": promised, **heard.summary()}, pieces


def _repair_ogg(data: bytes) -> bytes:
    """Truncate an incomplete last page to its complete packets: FFmpeg drops such a page, and it
    may be the only one.
    """
    at = data.rfind(b"OggS")
    if at < 0 or len(data) < at + 27:
        return data[: max(at, 0)]
    table = data[at + 27 : at + 27 + data[at + 26]]
    body = data[at + 27 + len(table) :]
    if len(table) == data[at + 26] and len(body) >= sum(table):
        return data
    there, whole, length = 0, 0, 0
    for count, segment in enumerate(table, 1):
        there += segment
        if there > len(body):
            break
        if segment < 255:  # end of a packet
            whole, length = count, there
    page = data[at : at + 22] + bytes(4) + bytes([whole]) + table[:whole] + body[:length]
    return data[:at] + (
        page[:22] + _ogg_checksum(page).to_bytes(4, "little") + page[26:] if whole else b""
    )


def _ogg_checksum(page: bytes) -> int:
    """CRC with polynomial 0x04c11db7, of a page whose checksum field is zero (RFC 3533, section
    6).
    """
    table = []
    for value in range(256):
        entry = value << 24
        for _ in range(8):
            entry = entry << 1 ^ (0x04C11DB7 if entry & 0x80000000 else 0)
        table.append(entry & 0xFFFFFFFF)
    found = 0
    for byte in page:
        found = (found << 8 ^ table[found >> 24 ^ byte]) & 0xFFFFFFFF
    return found


def _too_long(promised: float | None, longest: float) -> _DecodeError:
    length = (
        f"{promised:.1f} s"
        if promised is not None and promised > longest
        else f"more than {longest:g} s"
    )
    return _DecodeError(
        "is too long", got=length, wanted=f"at most {longest:g} s", do="Ask in fewer words"
    )


def _check_stream(stream: AudioStream) -> None:
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise _DecodeError(
            "has a strange sampling rate",
            got=f"{rate} Hz",
            wanted=f"{SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz",
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise _DecodeError("has too many channels", got=channels, wanted=f"at most {MAX_CHANNELS}")


def _frames(
    container: InputContainer, stream: AudioStream, heard: _AudioStats, *, lenient: bool
) -> Iterator[AudioFrame]:
    """Yield the decodable frames, up to where the file is truncated.

    Unless `lenient`, raises FFmpeg's error if the file is damaged from the start, or if audio
    follows the damage.
    """
    packets, any_yet, damage = container.demux(stream), False, None
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except MemoryError:
            raise
        except FFmpegError as error:
            if lenient and isinstance(error, InvalidDataError):
                continue
            if not any_yet:
                raise
            damage = damage or error
            continue
        if frames and damage is not None:
            raise damage
        any_yet = any_yet or bool(frames)
        yield from frames
    heard.broken = damage is not None


def _mix_channels(
    frames: Iterator[AudioFrame],
    stream: AudioStream,
    heard: _AudioStats,
    rate: int,
    channel: int | None,
) -> Iterator[bytes]:
    """Yield samples of one channel, or of the mean of all while recording each channel's energy."""
    channels = stream.codec_context.channels
    mean, each = (
        AudioResampler(format="flt", layout="mono", rate=rate),
        AudioResampler(format="flt", rate=rate),
    )
    for frame in _flush_after(frames):
        if frame is not None:
            frame.pts = None  # ignore timestamps: recorders leave gaps, which would be filled
        if channel is None or channels == 1:
            for mixed in mean.resample(frame):
                samples = _samples(mixed, 1)
                if channels > 1:
                    heard.add(0, samples)
                yield samples.tobytes()
        if channels > 1:
            for resampled in each.resample(frame):
                samples = _samples(resampled, channels)
                if channel is not None:
                    yield samples[channel::channels].tobytes()
                    continue
                for at in range(channels):
                    heard.add(1 + at, samples[at::channels])


def _samples(frame: AudioFrame, channels: int) -> Any:
    """View a frame as float32, channels interleaved; the plane's padding is cut off."""
    return memoryview(frame.planes[0])[: frame.samples * channels * SAMPLE_BYTES].cast("f")


def _flush_after(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame | None]:
    """Append None, on which a resampler returns its buffered samples."""
    yield from frames
    yield None


if __name__ == "__main__":
    main()
