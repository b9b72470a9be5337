"""Decodes a stranger's sound, in a process of its own: run as a script by `sounds`, never imported by the rest of phisense.

    stdin   the file itself, open; this process is never told its name
    argv    one JSON object: demuxer, lenient, longest (s), rate (Hz), memory (bytes or null), cpu (s)
    stdout  one line of JSON, then the samples as float32, mono, at `rate`

A codec is a large parser in C that reads what anyone may have sent. Here a fault, an endless loop or a file that unpacks to gigabytes
costs a small process that has no secrets, no model and bounded memory, and the one that asked says a sentence. Neither torch nor
NumPy is imported, so that starting it takes a fifth of a second.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import av
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError

RATES, MOST_CHANNELS = (4_000, 384_000), 8
WIDTH = 4  # bytes of a float32


class _RefusedError(Exception):
    """What is wrong, as the keywords of a SoundError."""

    def __init__(self, what: str, **rest: object) -> None:
        super().__init__(what)
        self.answer = {"what": what, **rest}


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["memory"] is not None:
        limit(asked["memory"], asked["cpu"])
    samples = b""
    try:
        samples, promised = decode(sys.stdin.buffer, asked)
        answer: dict[str, Any] = {"promised": promised}
    except _RefusedError as refused:
        answer = refused.answer
    except MemoryError:  # FFmpeg's own is one, too
        wanted = f"at most {asked['memory'] // 2**20} MB" if asked["memory"] else None
        answer = {"what": "needs too much memory to be read", "wanted": wanted, "do": "Record it again or save it as WAV"}
    except (FFmpegError, ValueError) as error:
        reason = error.strerror if isinstance(error, FFmpegError) and error.strerror else str(error)
        answer = {"what": "cannot be read", "got": f"a damaged file ({reason[:200]})", "do": "Record it again or save it as WAV"}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + samples)


def limit(memory: int, cpu: int) -> None:
    """At most `memory` bytes of data and `cpu` seconds of computing, no file written, no core left; where the system can."""
    try:
        import resource
    except ImportError:  # Windows: what was decoded is counted all the same
        return
    # DATA is what is allocated; AS also counts libraries and the stacks of threads, which are only reserved.
    for kind, most, last in (
        (resource.RLIMIT_DATA, memory, memory),
        (resource.RLIMIT_AS, 4 * memory, 4 * memory),
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # the first sends SIGXCPU, which says why; the last kills
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        with suppress(ValueError, OSError):  # some systems know a limit and will not set it
            resource.setrlimit(kind, (most, last))


def decode(file: BinaryIO, asked: dict[str, Any]) -> tuple[bytes, float | None]:
    """The samples, and how many seconds the file says it has; stops where it says too many, or has too many."""
    with av.open(file, format=asked["demuxer"], mode="r", metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise _RefusedError("has no sound in it")
        stream = container.streams.audio[0]
        _check_stream(stream)
        stream.codec_context.thread_count = 1  # a thread's stack counts as memory, and some machines have a hundred cores
        promised = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        if promised is None and container.duration:
            promised = container.duration / av.time_base
        longest, pieces, size = asked["longest"], [], 0
        if promised is not None and promised > longest and not asked["lenient"]:
            raise _too_long(promised, longest)
        for piece in _pieces(container, stream, asked["rate"], lenient=asked["lenient"]):
            pieces.append(piece)
            size += len(piece)
            if size > longest * asked["rate"] * WIDTH:
                raise _too_long(promised, longest)
    return b"".join(pieces), promised


def _too_long(promised: float | None, longest: float) -> _RefusedError:
    length = f"{promised:.1f} s" if promised is not None and promised > longest else f"more than {longest:g} s"
    return _RefusedError("is too long", got=length, wanted=f"at most {longest:g} s", do="Ask in fewer words")


def _check_stream(stream: AudioStream) -> None:
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    if not RATES[0] <= rate <= RATES[1]:
        raise _RefusedError("has a strange sampling rate", got=f"{rate} Hz", wanted=f"{RATES[0]} to {RATES[1]} Hz")
    if not 1 <= channels <= MOST_CHANNELS:
        raise _RefusedError("has too many channels", got=channels, wanted=f"at most {MOST_CHANNELS}")


def _pieces(container: InputContainer, stream: AudioStream, rate: int, *, lenient: bool) -> Iterator[bytes]:
    resampler = AudioResampler(format="flt", layout="mono", rate=rate)
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
                yield bytes(resampled.planes[0])[: resampled.samples * WIDTH]  # a plane is padded
    for resampled in resampler.resample(None):
        yield bytes(resampled.planes[0])[: resampled.samples * WIDTH]


if __name__ == "__main__":
    main()
