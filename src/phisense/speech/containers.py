"""Detects an audio file's container from its bytes: where the audio starts after tags, which
demuxer reads it, and whether the file is truncated.

Nothing is decoded here. Only the sizes that containers declare for their parts are read, for a
bounded number of parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ..file_types import HEAD_BYTES, sniff

MIN_STREAMED_SIZE = (
    2**31 - 2**20
)  # bytes; recorders that stream write a placeholder size of about 2 or 4 GiB
_MAX_PARTS = 100_000
_MAX_TAGS = 64
_PADDING = 2**20  # bytes of zero padding between tags
_JUNK = 2**16  # bytes before the first frame, in a stream cut out of a longer one
_MAX_PAGE_BYTES = 27 + 255 + 255 * 255  # bytes of the largest Ogg page

# Hz, of MPEG 2.5, -, 2 and 1
_RATES = ((11025, 12000, 8000), None, (22050, 24000, 16000), (44100, 48000, 32000))
_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True, slots=True)
class Container:
    """`demuxer` is FFmpeg's name of the format, `start` the byte offset at which it begins."""

    demuxer: str
    start: int


class _FileBytes:
    """Random access to an open file that another process reads later."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file

    def read_at(self, place: int, count: int) -> bytes:
        self._file.seek(place)
        return self._file.read(count)


def find_container(file: BinaryIO, size: int) -> Container | None:
    """Return the container after ID3 and APE tags and zero padding; None if the file is not audio.
    Rewinds the file.
    """
    data = _FileBytes(file, size)
    try:
        start = _skip_tags(data)
        demuxer = _by_signature(data.read_at(start, 16)) or _by_frames(data, start)
        if demuxer is None and _may_hold_frames(data.read_at(start, HEAD_BYTES)):
            start, demuxer = _first_frames(data, start)
        return None if demuxer is None else Container(demuxer, start)
    finally:
        file.seek(0)


def lacks_index(file: BinaryIO, container: Container, size: int) -> bool:
    """Whether an MP4 has no `moov` box, without which it cannot be decoded; recorders write it
    last. Rewinds the file.
    """
    try:
        return container.demuxer == "mp4" and not any(
            name == b"moov" for name, _ in _boxes(_FileBytes(file, size), container.start)
        )
    finally:
        file.seek(0)


def ends_early(file: BinaryIO, container: Container, size: int) -> bool:
    """Whether the file is shorter than the sizes declared in it, or lacks an end marker. Rewinds
    the file.
    """
    data = _FileBytes(file, size)
    try:
        match container.demuxer:
            case "wav":
                return _riff_end(data, container.start) > size + 1
            case "aiff":
                return (
                    container.start
                    + 8
                    + int.from_bytes(data.read_at(container.start + 4, 4), "big")
                    > size + 1
                )
            case "mp4":
                return any(end > size for _, end in _boxes(data, container.start))
            case "matroska":
                return _cut_matroska(data, container.start)
            case "ogg":
                return _cut_ogg(data, container.start)
            case "mp3" | "aac":
                return _cut_frames(data, container)
        return False
    finally:
        file.seek(0)


def _skip_tags(data: _FileBytes) -> int:
    at = 0
    for _ in range(_MAX_TAGS):
        at = _skip_zeros(data, at)
        head = data.read_at(at, 32)
        if head[:3] == b"ID3" and len(head) > 10 and head[3] < 0xFF and max(head[6:10]) < 0x80:
            length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            at += 10 + length + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX":
            at += 32 + int.from_bytes(head[12:16], "little")
        else:
            break
    return min(at, data.size)


def _skip_zeros(data: _FileBytes, at: int) -> int:
    """Skip zero padding. An MP4 begins with up to three zero bytes, which are not padding."""
    some = data.read_at(at, 4096)
    if some[:4] != b"\0\0\0\0":
        return at
    end = at + _PADDING
    while at < end and some:
        left = some.lstrip(b"\0")
        if left:
            at += len(some) - len(left)
            return next(
                (at - own for own in (1, 2, 3) if data.read_at(at - own, 8)[4:] == b"ftyp"), at
            )
        at += len(some)
        some = data.read_at(at, 4096)
    return at


def _by_signature(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mp4"
    return {b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "matroska"}.get(head[:4])


def _by_frames(data: _FileBytes, at: int) -> str | None:
    """Return mp3 or aac if a frame begins at `at`, followed by another frame or the end of the
    file.
    """
    first = data.read_at(at, 8)
    for name in ("mp3", "aac"):
        length = _frame(first, name)
        if length is not None and (
            at + length >= data.size or _frame(data.read_at(at + length, 8), name) is not None
        ):
            return name
    return None


def _may_hold_frames(head: bytes) -> bool:
    """Whether to search for frames: not in known file types such as archives and videos, which may
    contain audio by chance, and not in text.
    """
    return (
        sniff(head) is None
        and re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x80-\xff]", head) is not None
    )


def _first_frames(data: _FileBytes, start: int) -> tuple[int, str | None]:
    """Return the offset and format of the first three consecutive frames near `start`."""
    some = data.read_at(start, _JUNK)
    at = some.find(b"\xff")
    while at >= 0:
        for name in ("mp3", "aac"):
            if len(list(_frames(data, start + at, name, most=3))) == 3:
                return start + at, name
        at = some.find(b"\xff", at + 1)
    return start, None


def _frame(head: bytes, name: str) -> int | None:
    """Length in bytes of the frame whose header is `head`; None if it is not a frame header."""
    if len(head) < 7 or head[0] != 0xFF:
        return None
    if name == "aac":
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        return (
            length if head[1] & 0xF6 == 0xF0 and (head[2] >> 2 & 15) < 13 and length > 7 else None
        )
    version = head[1] >> 3 & 3
    layer = 4 - (head[1] >> 1 & 3)
    kbps = head[2] >> 4
    rate = head[2] >> 2 & 3
    rates = _RATES[version]
    if head[1] & 0xE0 != 0xE0 or layer == 4 or rates is None or rate == 3 or not 0 < kbps < 15:
        return None
    bits = 1000 * _KBPS[1 if version == 3 else 2, layer][kbps - 1]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return 4 * (12 * bits // rates[rate] + padding)
    return (72 if layer == 3 and version != 3 else 144) * bits // rates[rate] + padding


def _frames(data: _FileBytes, at: int, name: str, most: int = _MAX_PARTS) -> Iterator[int]:
    """Yield the end offset of each consecutive frame; the last may lie beyond the end of the
    file.
    """
    for _ in range(most):
        length = _frame(data.read_at(at, 8), name)
        if length is None:
            return
        at += length
        yield at


def _cut_frames(data: _FileBytes, container: Container) -> bool:
    """Whether it is truncated, by the total size in the first frame (Xing header), or else by the
    last frame.
    """
    first = data.read_at(container.start, 200)
    found = re.search(rb"Xing|Info", first[:48])
    if container.demuxer == "mp3" and found is not None:
        about = first[found.end() :]
        # the byte count is present, after the frame count if there is one
        if len(about) > 3 and about[3] & 2:
            at = 8 if about[3] & 1 else 4
            return container.start + int.from_bytes(about[at : at + 4], "big") > data.size
    end = container.start
    for end in _frames(data, container.start, container.demuxer):  # noqa: B007
        pass
    return end > data.size


def _riff_end(data: _FileBytes, start: int) -> int:
    head = data.read_at(start, 28)
    if head[:4] == b"RF64":
        return start + 8 + int.from_bytes(head[20:28], "little") if head[12:16] == b"ds64" else 0
    length = 8 + int.from_bytes(head[4:8], "little")
    return start + length if length < MIN_STREAMED_SIZE else 0


def _boxes(data: _FileBytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Yield name and end offset of each top-level box. A remainder too short for a box header
    counts as a truncated box.
    """
    for _ in range(_MAX_PARTS):
        head = data.read_at(at, 16)
        if not head:
            return
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0 and len(head) >= 8:  # extends to the end of the file
            length = data.size - at
        yield name, at + max(length, 8)
        at += max(length, 8)


def _cut_matroska(data: _FileBytes, at: int) -> bool:
    """Whether it is truncated. Recorders leave the sizes of segment and clusters unknown; then the
    blocks inside are checked.
    """
    for _ in range(_MAX_PARTS):
        head = data.read_at(at, 16)
        if not head:
            return False
        name, behind = _ebml_number(head, keep_mark=True)
        length, behind = _ebml_number(head[behind:], shift=behind)
        if name is None or length is None:
            return len(head) < 16
        if length < 0:  # unknown size: its children follow
            at += behind
            continue
        end = at + behind + length
        if end > data.size or name == 0x18538067:  # nothing follows a segment of known size
            return end > data.size
        at = end
    return False


def _ebml_number(head: bytes, *, keep_mark: bool = False, shift: int = 0) -> tuple[int | None, int]:
    """Parse a variable-length integer; return it with its end offset. The value is -1 for an
    unknown size, None if malformed.
    """
    count = 9 - head[0].bit_length() if head else 9
    if count > 8 or len(head) < count:
        return None, shift
    value = int.from_bytes(head[:count], "big")
    if not keep_mark:
        value &= (1 << 7 * count) - 1
        if value == (1 << 7 * count) - 1:
            value = -1
    return value, shift + count


def _cut_ogg(data: _FileBytes, start: int) -> bool:
    """Whether the last page is incomplete, or is not marked as the last."""
    tail = data.read_at(max(start, data.size - _MAX_PAGE_BYTES), _MAX_PAGE_BYTES)
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return True
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    whole = len(segments) == tail[at + 26] and at + 27 + len(segments) + sum(segments) <= len(tail)
    return not whole or not tail[at + 5] & 4
