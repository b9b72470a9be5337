"""Sounds as people bring them: behind tags, cut at the end, wired the wrong way round, in formats
of telephones; all kinds of each.
"""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from phisense.errors import SoundError
from phisense.speech import audio, containers, read_audio
from phisense.speech.audio import SAMPLE_RATE, read_recording

from .made import FORMATS, tone, write

SECONDS = 3.0
#: Ways to write MP4: the index in front, or pieces that follow each other; the plain one has its
#: index at the end.
MP4 = {
    "front.m4a": {"movflags": "faststart"},
    "pieces.m4a": {"movflags": "empty_moov+default_base_moof", "frag_duration": "500000"},
}
LIVE = "live.webm"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three seconds of a tone in every container."""
    folder, found = tmp_path_factory.mktemp("whole"), {}
    for name, codec in FORMATS.items():
        found[name] = write(folder / name, tone(SECONDS), codec).read_bytes()
    for name, options in MP4.items():
        found[name] = _muxed(folder / name, "aac", options)
    found[LIVE] = _muxed(folder / LIVE, "libopus", {"live": "1"})
    return found


def _muxed(path: Path, codec: str, options: dict[str, str]) -> bytes:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (tone(SECONDS) * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = 48_000
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=48_000, frame_size=size
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path.read_bytes()


NAMES = [*FORMATS, *MP4, LIVE]


def put(folder: Path, data: bytes) -> Path:
    path = folder / "a.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_what_is_whole_is_not_said_to_be_cut(
    whole: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    found = read_recording(put(tmp_path, whole[name]))
    assert not found.truncated
    assert found.channel_count is None
    assert found.seconds == pytest.approx(SECONDS, abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_cut_is_heard_as_far_as_it_goes(
    whole: dict[str, bytes], tmp_path: Path, name: str, share: float
) -> None:
    data = whole[name]
    path = put(tmp_path, data[: int(share * len(data))])
    if name == "a.m4a":
        with pytest.raises(
            SoundError,
            match="cannot be read; got an MP4 without its index .*the recording was cut off",
        ):
            read_recording(path)
        return
    # little but headers is left
    if share == 0.1 and name in ("a.flac", "front.m4a", "vorbis.ogg", "pieces.m4a"):
        try:
            assert read_recording(path).truncated
        except SoundError as error:
            assert "cut off" in str(error) or "cannot be read" in str(error)
        return
    found = read_recording(path)
    assert found.truncated
    assert found.seconds <= SECONDS
    # whose headers are large
    assert found.seconds == pytest.approx(share * SECONDS, abs=0.8 if name == "vorbis.ogg" else 0.5)
    spectrum = np.abs(np.fft.rfft(found.samples[: SAMPLE_RATE // 5]))
    assert np.argmax(spectrum) * 5 == pytest.approx(440, abs=15)


def test_the_control_sizes_alone_do_not_see_a_cut(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no clock in the file promises, only the sizes in it tell."""
    data = whole[LIVE]
    path = put(tmp_path, data[: len(data) // 2])
    assert read_recording(path).truncated
    monkeypatch.setattr(audio, "ends_early", lambda *_: False)
    assert not read_recording(path).truncated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.webm", "front.m4a"])
def test_damage_from_the_beginning_is_refused(
    whole: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    data = whole[name]
    head = data[:16]
    with pytest.raises(
        SoundError,
        match=(
            "cannot be read|is empty|is cut off|nothing was heard|is not a sound|has no"
            " sound|strange sampling"
        ),
    ):
        read_recording(
            put(tmp_path, head + bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8)))
        )


def test_damage_within_is_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Sound follows the damage, so it is no cut."""
    data = bytearray(whole["front.m4a"])
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 600] = bytes(np.random.default_rng(0).integers(0, 256, 600, np.uint8))
    with pytest.raises(SoundError, match="cannot be read; got a damaged file"):
        read_recording(put(tmp_path, bytes(data)))


def id3(size: int, *, footer: bool = False) -> bytes:
    sizes = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    body = b"TIT2" + struct.pack(">IH", 6, 0) + b"\x03title" + bytes(size)
    tag = b"ID3\x04\x00" + (b"\x10" if footer else b"\x00") + sizes + body[:size]
    return tag + (b"3DI\x04\x00\x10" + sizes if footer else b"")


IN_FRONT = {
    "ID3": id3(300),
    "an empty ID3": id3(0),
    "ID3 with a footer": id3(128, footer=True),
    "two ID3": id3(20) + id3(5000),
    "a large ID3": id3(200_000),
    "zeros": bytes(64),
    "ID3 and zeros": id3(40) + bytes(10_000),
    "zeros and ID3": bytes(64) + id3(40),
    "APE": b"APETAGEX" + struct.pack("<IIII", 2000, 100, 1, 0xA0000000) + bytes(8) + b"x" * 100,
}


@pytest.mark.slow
@pytest.mark.parametrize("front", IN_FRONT)
@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.mp3", "a.m4a"])
def test_what_stands_in_front_of_a_sound_is_skipped(
    whole: dict[str, bytes], tmp_path: Path, name: str, front: str
) -> None:
    tag = IN_FRONT[front]
    if front == "APE":
        tag = tag[:12] + struct.pack("<I", 100) + tag[16:]
    path = put(tmp_path, tag + whole[name])
    # its index names places of the file, and programs that put tags in front do not move them
    if name == "a.m4a":
        with path.open("rb") as file:
            assert containers.find_container(file, path.stat().st_size) == containers.Container(
                "mp4", len(tag)
            )
    found = read_recording(path)
    assert found.seconds == pytest.approx(SECONDS, abs=0.12)
    assert not found.truncated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp3", "a.aac"])
@pytest.mark.parametrize("junk", ["noise", "a frame's tail"])
def test_a_stream_cut_out_of_a_longer_one_is_heard(
    whole: dict[str, bytes], tmp_path: Path, name: str, junk: str
) -> None:
    data = whole[name]
    front = (
        bytes(np.random.default_rng(1).integers(0, 255, 3000, np.uint8)) if junk == "noise" else b""
    )
    found = read_recording(put(tmp_path, front + data[1000:]))
    assert found.seconds > 2


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"#!AMR\n" + bytes(range(256)), "an AMR recording"),
        (b"#!AMR-WB\n" + bytes(range(256)), "an AMR recording"),
        (b"caff\x00\x01\x00\x00desc" + bytes(100), "a CAF recording"),
        (b"wvpk" + bytes(100), "a WavPack sound"),
        (b".snd\x00\x00\x00\x18" + bytes(100), "an AU sound"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(100), "a Windows Media file"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"<!doctype html><p>404", "a web page"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG picture"),
        (b"%PDF-1.7\n", "a PDF"),
    ],
)
@pytest.mark.parametrize("behind", ["alone", "behind a tag"])
def test_what_cannot_be_heard_is_named_with_a_way_out(
    tmp_path: Path, head: bytes, words: str, behind: str
) -> None:
    if behind == "behind a tag":
        head, words = id3(30) + head, "is no sound that can be heard|is not a sound"
    with pytest.raises(
        SoundError, match=rf"(is no sound that can be heard; got )?{words}.*wanted WAV, FLAC"
    ):
        read_recording(put(tmp_path, head))


def test_an_archive_with_a_sound_in_it_is_an_archive(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Frames are looked for in what is nothing else."""
    with pytest.raises(SoundError, match="got a zip archive.*Unpack it"):
        read_recording(put(tmp_path, b"PK\x03\x04" + bytes(26) + whole["a.mp3"]))


def wav(channels: list[np.ndarray]) -> bytes:
    data = (np.stack(channels, 1) * 32767).astype("<i2").tobytes()
    count = len(channels)
    head = struct.pack(
        "<IHHIIHH", 16, 1, count, SAMPLE_RATE, 2 * count * SAMPLE_RATE, 2 * count, 16
    )
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


VOICE, NOTHING = tone(2, rate=SAMPLE_RATE), np.zeros(2 * SAMPLE_RATE, np.float32)
#: channels -> whether one of them alone is heard
LAYOUTS: dict[str, tuple[list[np.ndarray], bool]] = {
    "mono": ([VOICE], False),
    "the same twice": ([VOICE, VOICE], False),
    "opposite phases": ([VOICE, -VOICE], True),
    "nearly opposite": ([VOICE, -0.95 * VOICE], True),
    "the left alone": ([VOICE, NOTHING], False),
    "the right alone": ([NOTHING, VOICE], False),
    "a soft one alone": ([NOTHING, 0.006 * VOICE], True),
    "a quarter apart": ([VOICE, tone(2.1, rate=SAMPLE_RATE)[9 : 9 + 2 * SAMPLE_RATE]], False),
    **{f"the last of {count}": ([NOTHING] * (count - 1) + [VOICE], None) for count in range(3, 9)},  # type: ignore[dict-item]
    "one of eight turned round": ([VOICE, -VOICE, *[NOTHING] * 6], True),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_that_is_not_silent_is_heard(tmp_path: Path, layout: str) -> None:
    channels, alone = LAYOUTS[layout]
    found = read_recording(put(tmp_path, wav(channels)))
    assert found.seconds == pytest.approx(2, abs=0.01)
    loudest = max(float(np.abs(channel).max()) for channel in channels)
    assert float(np.abs(found.samples).max()) > 0.1 * loudest
    assert np.argmax(np.abs(np.fft.rfft(found.samples[:SAMPLE_RATE]))) == pytest.approx(440, abs=3)
    if alone is not None:
        assert found.channel_count == (len(channels) if alone else None)


def test_the_control_the_mean_alone_is_silent(tmp_path: Path) -> None:
    path = put(tmp_path, wav([VOICE, -VOICE]))
    with path.open("rb") as file:
        mean, told = audio._decode(
            file, containers.Container("wav", 0), "it", 60, audio.MAX_DECODER_MEMORY
        )
    assert told["cancels"]
    assert audio.loudness(mean) < audio.MIN_LOUDNESS
    assert audio.loudness(read_audio(path)) > 0.1


def test_silence_in_every_channel_is_silence(tmp_path: Path) -> None:
    with pytest.raises(SoundError, match="nothing was heard"):
        read_audio(put(tmp_path, wav([NOTHING, NOTHING])))


@pytest.mark.parametrize("codec", ["libmp3lame", "aac", "libopus", "flac"])
def test_opposite_phases_are_heard_in_compressed_files(tmp_path: Path, codec: str) -> None:
    path = (
        tmp_path
        / {"libmp3lame": "a.mp3", "aac": "a.m4a", "libopus": "a.webm", "flac": "a.flac"}[codec]
    )
    voice = tone(2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.stack([voice, -voice]), format="fltp", layout="stereo"
        )
        frame.sample_rate = 48_000
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="stereo", rate=48_000, frame_size=size
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    found = read_recording(path)
    assert found.channel_count == 2
    assert audio.loudness(found.samples) > 0.1


#: file -> seconds, and whether it is cut
REPORTED = {
    "short.flac": (1.35, False),
    "id3.flac": (1.35, False),
    "voice.mp3": (2.80, False),
    "late.mp3": (2.80, False),
    "iphone.m4a": (2.82, False),
    "frag.m4a": (2.84, False),
    "cut.m4a": (2.79, True),
    "chrome60ms.webm": (2.80, False),
}


@pytest.mark.parametrize("name", REPORTED)
def test_the_reported_files_are_heard(fixtures: Path, name: str) -> None:
    path = fixtures / "reported" / "17-sound-files" / name
    if not path.is_file():
        pytest.skip(f"no {name} among the fixtures")
    seconds, cut = REPORTED[name]
    found = read_recording(path)
    assert found.seconds == pytest.approx(seconds, abs=0.02)
    assert found.truncated is cut
