"""Sounds that are not what they say: each is refused with a sentence, before it costs anything; and
would cost, were the limits off.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from phisense.errors import SoundError
from phisense.speech import audio, read_audio
from phisense.speech.audio import SAMPLE_RATE, read_recording

from .made import tone, write

pytestmark = pytest.mark.slow

HOUR = 3600


def silence(path: Path, seconds: int, codec: str, rate: int = 16_000) -> Path:
    """`seconds` of nothing, encoded a minute at a time."""
    minute = np.zeros((1, 60 * rate), np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(
            format=stream.codec_context.format,
            layout="mono",
            rate=rate,
            frame_size=stream.codec_context.frame_size or None,
        )
        for _ in range(seconds // 60):
            frame = av.AudioFrame.from_ndarray(minute, format="s16", layout="mono")
            frame.sample_rate = rate
            for piece in resampler.resample(frame):
                container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def table_bomb(path: Path, samples: int = 2**25) -> Path:
    """An MP4 of a second whose tables name `samples` samples of one size: a few bytes that become
    an index of gigabytes.
    """
    data = bytearray(write(path, tone(1), "aac").read_bytes())
    for box, entries in (
        (b"stsz", struct.pack(">III", 0, 1, samples)),
        (b"stts", struct.pack(">IIII", 0, 1, samples, 1024)),
        (b"stsc", struct.pack(">IIIII", 0, 1, 1, samples, 1)),
    ):
        at = data.index(box) + 4
        data[at : at + len(entries)] = entries
    path.write_bytes(data)
    return path


def make(kind: str, path: Path) -> Path:
    """One of the bombs, small enough for the limit on bytes."""
    if kind == "twenty minutes of FLAC":
        return silence(path, HOUR // 3, "flac")
    if kind == "twenty minutes of FLAC that say they are a second":
        data = bytearray(silence(path, HOUR // 3, "flac").read_bytes())
        # the last 36 of these 64 bits of STREAMINFO count the samples
        packed = int.from_bytes(data[18:26], "big")
        data[18:26] = (packed >> 36 << 36 | SAMPLE_RATE).to_bytes(8, "big")
        path.write_bytes(data)
    elif kind == "twenty minutes of Opus":
        return silence(path, HOUR // 3, "libopus", 48_000)
    elif kind == "twenty minutes of MP3":
        return silence(path, HOUR // 3, "libmp3lame")
    elif kind == "a WAV that says 4 GB":
        path.write_bytes(
            b"RIFF"
            + struct.pack("<I", 2**32 - 1)
            + write(path, np.zeros(16_000 * 300, np.float32), "pcm_s16le", 16_000).read_bytes()[8:]
        )
    elif kind == "a WAV that says 1 GB":
        path.write_bytes(
            b"RIFF" + struct.pack("<I", 2**30) + write(path, tone(1), "pcm_s16le").read_bytes()[8:]
        )
    elif kind == "an MP4 with huge tables":
        return table_bomb(path)
    elif kind == "half a file":
        whole = write(path, tone(3), "flac").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "a text":
        path.write_text("#EXTM3U\nfile:///etc/passwd\n")
    return path


BOMBS = {
    "twenty minutes of FLAC": ("a.flac", "is too long"),
    "twenty minutes of FLAC that say they are a second": (
        "a.flac",
        "is too long; got more than 60 s; wanted at most 60 s",
    ),
    "twenty minutes of Opus": ("a.ogg", "is too long"),
    "twenty minutes of MP3": ("a.mp3", "is too long"),
    "a WAV that says 4 GB": ("a.wav", "is too long"),
    "an MP4 with huge tables": ("a.m4a", "is cut off; got 0.00 s"),
    "a text": ("a.wav", "is not a sound"),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: make(kind, tmp_path_factory.mktemp("bomb") / name)
        for kind, (name, _) in BOMBS.items()
    }


@pytest.mark.parametrize(("kind", "seconds"), [("a WAV that says 1 GB", 1), ("half a file", 1.152)])
def test_a_promise_that_is_not_kept_costs_nothing(
    tmp_path: Path, kind: str, seconds: float
) -> None:
    """What is there is heard, and said to be less than promised."""
    path = make(kind, tmp_path / ("a.wav" if "WAV" in kind else "a.flac"))
    found = read_recording(path)
    assert found.truncated
    assert found.seconds == pytest.approx(seconds, abs=0.1)


def resident() -> int:
    """This process's memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_a_sentence(bombs: dict[str, Path], kind: str) -> None:
    assert bombs[kind].stat().st_size < audio.MAX_AUDIO_BYTES
    with pytest.raises(SoundError, match=rf"^The recording .*({BOMBS[kind][1]})") as refused:
        read_audio(bombs[kind], name="The recording")
    assert str(bombs[kind].parent) not in str(refused.value)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_all_bombs_at_once_leave_this_process_small(bombs: dict[str, Path]) -> None:
    before, refused = resident(), []

    def read(path: Path) -> None:
        try:
            read_audio(path)
        except SoundError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=read, args=(path,)) for path in bombs.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(bombs)
    assert resident() - before < 50 * 2**20


def test_without_the_limit_of_length_the_bomb_goes_off(tmp_path: Path) -> None:
    """The control: nothing else stops a long sound."""
    path = silence(tmp_path / "a.flac", 600, "flac")
    with pytest.raises(SoundError, match="is too long; got 600.0 s; wanted at most 60 s"):
        read_audio(path)
    with pytest.raises(SoundError, match="nothing was heard in a.flac; got 600.0 s of silence"):
        read_audio(path, max_seconds=HOUR)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound what is allocated")
def test_the_decoder_keeps_to_its_memory(tmp_path: Path) -> None:
    """And the control: the same file, and the decoder may take what it likes."""
    path = table_bomb(tmp_path / "a.m4a", samples=2**24)  # an index of 400 MB
    # Forked from a small process: a child's peak begins with what its parent had.
    watch = (
        "import os, subprocess, sys; print(os.wait4(subprocess.Popen(sys.argv[1:],"
        " stdout=subprocess.DEVNULL).pid, 0)[2].ru_maxrss)"
    )
    peaks = {}
    for memory in (audio.MAX_DECODER_MEMORY, None):
        asked = {
            "demuxer": "mp4",
            "start": 0,
            "lenient": False,
            "longest": 60,
            "rate": SAMPLE_RATE,
            "channel": None,
            "memory": memory,
            "cpu": 30,
        }
        command = [
            sys.executable,
            "-c",
            watch,
            sys.executable,
            "-P",
            str(audio._DECODER),
            json.dumps(asked),
        ]
        with path.open("rb") as file:
            peaks[memory] = (
                int(subprocess.run(command, stdin=file, capture_output=True, check=True).stdout)
                * 1024
            )
    assert peaks[audio.MAX_DECODER_MEMORY] < audio.MAX_DECODER_MEMORY
    assert peaks[None] > 1.4 * audio.MAX_DECODER_MEMORY


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound what is allocated")
def test_too_little_memory_is_a_sentence_wherever_it_ends(tmp_path: Path) -> None:
    """Memory may end at any line: while it is decoded, put together, or written."""
    path = write(tmp_path / "a.flac", tone(50, rate=16_000), "flac", 16_000)
    heard = []
    for megabytes in (*range(1, 12), *range(12, 65, 2)):
        try:
            heard.append(len(read_audio(path, max_memory=megabytes * 2**20)))
        except SoundError as error:
            assert str(error).startswith(
                f"a.flac needs too much memory to be read; wanted at most {megabytes} MB"
            ), megabytes
    assert heard, "nothing was read even with 64 MB"
    assert set(heard) == {50 * SAMPLE_RATE}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "a file that its decoder broke on",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "a file that its decoder broke on",
        ),
        ("raise SystemExit(3)", "a file that its decoder broke on"),
        ("print('nonsense')", "a file that its decoder broke on"),
        ("print('{\"promised\": 1}'); print('abc')", "a file that its decoder broke on|is cut off"),
        (
            "import decoder_worker; decoder_worker.set_decoder_limits(2**28, 1)\nwhile True: pass",
            "a file that takes more than 10 s to decode",
        ),
        ("import time; time.sleep(60)", "a file that takes more than 10 s to decode"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_decoder_that_dies_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    path, decoder = write(tmp_path / "a.wav", tone(1), "pcm_s16le"), tmp_path / "decoder.py"
    decoder.write_text(
        f"import sys; sys.path.insert(0, {str(audio._DECODER.parent)!r})\n{script}\n"
    )
    monkeypatch.setattr(audio, "_DECODER", decoder)
    monkeypatch.setattr(audio, "DECODER_TIMEOUT", 3.0)
    with pytest.raises(SoundError, match=rf"The recording (cannot be read; got )?({words})"):
        read_audio(path, name="The recording")


def test_a_decoder_that_writes_for_ever_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it writes, this process takes no more than the sound could be."""
    path, decoder = write(tmp_path / "a.wav", tone(1), "pcm_s16le"), tmp_path / "decoder.py"
    decoder.write_text("import sys\nwhile True: sys.stdout.buffer.write(b'x' * 2**20)\n")
    monkeypatch.setattr(audio, "_DECODER", decoder)
    begun = time.perf_counter()
    with pytest.raises(SoundError, match="a file that its decoder broke on"):
        read_audio(path)
    assert time.perf_counter() - begun < audio.DECODER_TIMEOUT / 2


def test_the_decoder_is_small_and_has_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    real = subprocess.Popen

    def spy(command: list[str], **options: Any) -> Any:
        asked.update(options, command=command)
        return real(command, **options)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(subprocess, "Popen", spy)
    path = write(tmp_path / "a.wav", tone(1), "pcm_s16le")
    read_audio(path)
    assert "HF_TOKEN" not in asked["env"]
    assert not any(str(path) in word for word in asked["command"])
    look = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='looked at'); print({'numpy',"
        " 'torch', 'phisense'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", look, str(audio._DECODER)],
        env=asked["env"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "set()"


def test_what_is_refused_without_decoding_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    monkeypatch.setattr(audio, "MAX_AUDIO_BYTES", 1000)
    monkeypatch.setattr(subprocess, "Popen", lambda *_a, **_k: pytest.fail("a process was started"))
    for content, words in (
        (b"", "is empty; got 0 bytes"),
        (b"x" * 2000, "is too large"),
        (b"hello", "is not a sound"),
    ):
        path.write_bytes(content)
        with pytest.raises(SoundError, match=words):
            read_audio(path)
    write(path, tone(0.005), "pcm_s16le")
    with pytest.raises(pytest.fail.Exception, match="a process was started"):
        read_audio(path)


def test_a_folder_and_a_missing_file_are_sentences_without_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nope.wav"):
        with pytest.raises(SoundError) as refused:
            read_audio(path)
        assert str(tmp_path.parent) not in str(refused.value)
