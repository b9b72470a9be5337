"""What `check` lets pass is opened, and what it refuses is not: over every mode and format that
Pillow writes, whole and damaged.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from phisense.conversations.defects import DEFECT_KINDS
from phisense.errors import ImageError
from phisense.vision import image_io
from phisense.vision.image_checks import check_image
from phisense.vision.image_io import IMAGE_FORMATS, OpenedImage, open_image, open_image_with_notes

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
    "I;16L",
)
SIDE = 32
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

RAMP = np.tile(np.linspace(0, 1, SIDE), (SIDE, 1))  # dark on the left, bright on the right
GREY = Image.fromarray((RAMP * 255).astype(np.uint8))


def picture(mode: str) -> Image.Image:
    """The ramp in a mode, over the mode's whole range."""
    if mode.startswith("I;16"):
        values = (RAMP * 65535).astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, GREY.size, values.tobytes())
    if mode == "I":
        return Image.fromarray((RAMP * 65535).astype(np.int32))
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        found = ImageCms.profileToProfile(GREY.convert("RGB"), *profiles, outputMode="LAB")
        assert found is not None
        return found
    made = GREY.convert("RGB")
    if mode == "P":
        return made.quantize(64)
    if mode == "PA":
        return made.quantize(64).convert(mode)
    if mode in ("La", "RGBa"):
        return made.convert(mode.upper()).convert(mode)
    return made.convert(mode)


def save(image: Image.Image, format_: str, **how: Any) -> bytes | None:
    data = io.BytesIO()
    try:
        with warnings.catch_warnings():  # Pillow 13 will write mode I no longer
            warnings.simplefilter("ignore", DeprecationWarning)
            image.save(data, format_, **how)
    except (OSError, ValueError, KeyError, TypeError):
        # Pillow does not write this mode in this format
        return None
    return data.getvalue()


def deep_tiff(
    values: Any,
    *,
    order: str = "<",
    bits: int = 16,
    kind: int = 1,
    photometric: int = 1,
    pack: bytes | None = None,
) -> bytes:
    """An uncompressed grey TIFF, tag by tag: Pillow itself writes only some of the kinds that it
    reads.
    """
    pixels = pack if pack is not None else np.asarray(values).tobytes()
    tags = [
        (256, SIDE),
        (257, SIDE),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, SIDE),
        (279, len(pixels)),
        (339, kind),
    ]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        head + pixels + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    )


def chunk_before_pixels(png: bytes, kind: bytes, data: bytes) -> bytes:
    made = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    at = png.index(b"IDAT") - 4
    return png[:at] + made + png[at:]


def plain() -> Iterator[tuple[str, bytes | None]]:
    """Every mode in every format, and TIFF compressed (Pillow itself aborts where it compresses
    rarer modes).
    """
    for mode in MODES:
        for format_ in IMAGE_FORMATS:
            yield f"{format_} {mode}", save(picture(mode), format_)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"):
            yield f"TIFF {mode} {compression}", save(picture(mode), "TIFF", compression=compression)
    for mode in ("L", "RGB"):
        yield f"TIFF {mode} jpeg", save(picture(mode), "TIFF", compression="jpeg")
    yield "TIFF 1 group4", save(picture("1"), "TIFF", compression="group4")


def deep() -> Iterator[tuple[str, bytes | None]]:
    """Grey of 12, 16 and 32 bits and floats, of both ends and signs."""
    for order in "<>":
        for name, top in {"u2": 65535, "i2": 32767, "u4": 2**31 - 1, "i4": 2**31 - 1}.items():
            values = (RAMP * top).astype(f"{order}{name}")
            yield (
                f"TIFF {order}{name}",
                deep_tiff(
                    values, order=order, bits=8 * int(name[1]), kind=1 if name[0] == "u" else 2
                ),
            )
        for top in (1.0, 255.0, 65535.0, 1e9):
            yield (
                f"TIFF {order}f4 to {top}",
                deep_tiff((RAMP * top).astype(f"{order}f4"), order=order, bits=32, kind=3),
            )
    yield (
        "TIFF 16 bits, white is zero",
        deep_tiff((65535 * (1 - RAMP)).astype("<u2"), photometric=0),
    )
    twelve = (RAMP * 4095).astype(int).reshape(-1, 2)
    packed = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in twelve.tolist())
    yield "TIFF 12 bits", deep_tiff(None, bits=12, pack=packed)
    grey16 = save(picture("I;16"), "PNG")
    assert grey16 is not None
    yield "PNG 16 bits with a transparent grey", chunk_before_pixels(grey16, b"tRNS", b"\x12\x34")


def marked() -> Iterator[tuple[str, bytes | None]]:
    """Turned by a tag, of several frames, with a transparent colour."""
    turned = (
        ("RGB", "JPEG"),
        ("RGBA", "PNG"),
        ("RGB", "WEBP"),
        ("I;16", "PNG"),
        ("L", "TIFF"),
        ("I;16", "TIFF"),
        ("I;16B", "TIFF"),
    )
    for orientation in range(9):
        exif = Image.Exif()
        exif[274] = orientation
        for mode, format_ in turned:
            yield f"{format_} {mode} turned {orientation}", save(picture(mode), format_, exif=exif)
    for mode in ("L", "RGB", "P", "1"):
        for format_ in ("GIF", "PNG", "TIFF", "WEBP"):
            frames = save(
                picture(mode),
                format_,
                save_all=True,
                append_images=[ImageOps.mirror(picture(mode))] * 3,
            )
            yield f"{format_} {mode} of several frames", frames
    for mode in ("L", "RGB", "P", "LA"):
        colour = save(picture(mode), "PNG", transparency=7 if mode != "RGB" else (7, 7, 7))
        yield f"PNG {mode} with a transparent colour", colour


WHOLE = {
    name: data for made in (plain(), deep(), marked()) for name, data in made if data is not None
}


def passes(data: bytes) -> bool:
    """A blank picture is rejected by the check, and opened for one who asks, who is told."""
    return not any(
        DEFECT_KINDS[code].rejects
        for code, _ in check_image(data, "a", decode=True)
        if code != "blank-picture"
    )


def opens(data: bytes) -> Image.Image | None:
    try:
        opened = open_image_with_notes(data)
    except ImageError:
        return None
    assert (opened.blank is not None) == (
        "blank-picture" in dict(check_image(data, "a", decode=True))
    )
    return opened.image


def disagreements(
    drawn: Iterator[bytes], judge: Callable[[bytes], bool] = passes
) -> tuple[int, int, int]:
    """How many were opened, how many were not, and of how many the check had said something
    else.
    """
    counts = [0, 0, 0]
    for data in drawn:
        opened = opens(data) is not None
        counts[0 if opened else 1] += 1
        counts[2] += judge(data) != opened
    return counts[0], counts[1], counts[2]


#: Pillow cannot read these, although it wrote them: what matters is that the check says so.
UNREADABLE = {"TIFF YCbCr", "TIFF >u4"}
#: What Pillow cuts off at 255 when it writes it.
CUT_OFF = {
    f"{format_} {mode}"
    for format_ in ("WEBP", "GIF", "AVIF")
    for mode in ("I", "F", "I;16", "I;16B", "I;16L")
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole_passes_and_opens_and_looks_like_itself(name: str) -> None:
    data = WHOLE[name]
    opened = opens(data)
    assert passes(data) == (opened is not None)
    assert (opened is None) == (name in UNREADABLE), check_image(data, "a", decode=True)
    if opened is None:
        return
    assert opened.mode == "RGB"
    if name in CUT_OFF or " turned " in name or "transparent colour" in name:
        return
    got = np.asarray(opened, dtype=float).mean(axis=(0, 2))
    coarse = any(word in name for word in (" 1", "group4", "HSV"))
    assert got[-1] - got[0] > 150, "dark on the left, bright on the right"
    if not coarse:
        assert np.abs(got - RAMP[0] * 255).max() < 12, "neither cut off nor darkened"


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "L"])
def test_the_tag_turns_grey_of_any_depth(mode: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        tagged = GREY.copy()
        tagged.getexif()[274] = orientation
        data = save(picture(mode), "TIFF" if mode != "I;16" else "PNG", exif=exif)
        assert data is not None
        wanted = np.asarray(ImageOps.exif_transpose(tagged).convert("RGB"), float)
        assert np.abs(np.asarray(open_image(data), float) - wanted).max() <= 1, orientation


def damaged(seed: int) -> Iterator[bytes]:
    """Cut off, with bytes changed, with bytes taken out, with a piece of another behind: three of
    each whole one.
    """
    draw = random.Random(seed)
    for data in WHOLE.values():
        yield data[: draw.randrange(len(data))]
        broken = bytearray(data)
        for _ in range(draw.choice((1, 2, 20))):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        yield bytes(broken)
        at = draw.randrange(len(data))
        yield data[:at] + data[at + draw.randint(1, 40) :]
        yield data[:at] + draw.choice(list(WHOLE.values()))[-at:]


@pytest.mark.slow
def test_damaged_ones_are_judged_alike() -> None:
    opened, refused, differed = disagreements(damaged(0))
    assert differed == 0
    assert opened > 100
    assert refused > 100


def test_the_control_a_check_of_its_own_judges_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before: the check decoded the pixels, and did not go on to what the opener does with
    them.
    """

    def loaded_alone(data: bytes) -> bool:
        with monkeypatch.context() as patched:
            patched.setattr(
                "phisense.vision.image_checks.decode_image",
                lambda image, data: OpenedImage(image, None, None if image.load() else "empty"),
            )
            return passes(data)

    monkeypatch.setattr(
        image_io, "gray_to_8_bit", lambda image, tags: image.point(lambda v: v / 256).convert("L")
    )
    _, _, differed = disagreements(iter([WHOLE["TIFF I;16B"], WHOLE["TIFF L"]]), loaded_alone)
    assert differed == 1


def test_the_control_a_plain_conversion_turns_deep_grey_white() -> None:
    with Image.open(io.BytesIO(WHOLE["PNG I;16"])) as image:
        cut_off = np.asarray(image.convert("RGB"), float).mean(axis=(0, 2))
    assert np.abs(cut_off - RAMP[0] * 255).max() > 100


def test_a_million_frames_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import GifImagePlugin, TiffImagePlugin

    def never(image: Any) -> int:
        raise AssertionError("somebody counts frames")

    for plugin in (GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(plugin, "n_frames", property(never))
    for name in ("GIF L of several frames", "TIFF L of several frames"):
        assert ("animated", "names the picture a, which has several frames") in check_image(
            WHOLE[name], "a", decode=True
        )
