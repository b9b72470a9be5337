"""Pictures as people bring them: of many depths and ranges, with nothing to see on them, in formats
that are no picture's here.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phisense.conversations import check as look_through
from phisense.conversations.defects import DEFECT_KINDS
from phisense.errors import ImageError
from phisense.vision import bit_depth, image_io
from phisense.vision.image_checks import check_image
from phisense.vision.image_io import IMAGE_FORMATS, open_image, open_image_with_notes

from .test_same_judgement import SIDE, deep_tiff

# dark at the top left, bright at the bottom right
RAMP = np.add.outer(np.linspace(0, 0.6, SIDE), np.linspace(0, 0.4, SIDE))
COLOURS = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
AVIF = pytest.mark.skipif("AVIF" not in IMAGE_FORMATS, reason="this Pillow was built without AVIF")


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: `(H, W)` grey, or `(H, W, C)` of 2 (grey, alpha), 3 or 4
    channels.
    """
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def opaque(values: np.ndarray) -> np.ndarray:
    return np.dstack([values, np.full(values.shape[:2], 65535)])


def tiff16(values: np.ndarray) -> bytes:
    return deep_tiff(values.astype("<u2"))


def tiff_white_is_zero(values: np.ndarray) -> bytes:
    return deep_tiff((values.max() - values).astype("<u2"), photometric=0)


def tiff_float(values: np.ndarray) -> bytes:
    return deep_tiff(values.astype("<f4"), bits=32, kind=3)


def tiff_int(values: np.ndarray) -> bytes:
    return deep_tiff(values.astype("<i4"), bits=32, kind=2)


def tiff_signed(values: np.ndarray) -> bytes:
    return deep_tiff(values.astype("<i2"), kind=2)


#: how it is stored -> (writer, ranges)
STORED: dict[str, tuple[Callable[[np.ndarray], bytes], list[tuple[float, float]]]] = {
    "16-bit grey PNG": (
        png16,
        [
            (0, 60),
            (0, 255),
            (0, 1023),
            (0, 4095),
            (0, 16383),
            (0, 65535),
            (30000, 40000),
            (1000, 1400),
        ],
    ),
    "16-bit grey and alpha PNG": (lambda v: png16(opaque(v)), [(0, 60), (0, 4095), (0, 65535)]),
    "16-bit TIFF": (tiff16, [(0, 60), (0, 4095), (0, 65535), (500, 900)]),
    "16-bit TIFF, white is zero": (tiff_white_is_zero, [(0, 4095), (0, 65535)]),
    "16-bit TIFF with a sign": (tiff_signed, [(-1024, 3071), (0, 4095), (0, 32767), (-300, -10)]),
    "32-bit TIFF": (tiff_int, [(0, 255), (0, 4095), (0, 2**31 - 1), (-(10**6), 10**6)]),
    "float TIFF": (
        tiff_float,
        [
            (0, 1),
            (0, 0.04),
            (0, 255),
            (0, 80),
            (0, 65535),
            (-1, 1),
            (0.2, 0.3),
            (1e6, 1.5e6),
            (0, 1e-5),
        ],
    ),
}
CASES = [(stored, low, high) for stored, (_, ranges) in STORED.items() for low, high in ranges]


def seen(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data), float).mean(axis=2)


def fits(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.corrcoef(got.ravel(), wanted.ravel())[0, 1])


@pytest.mark.parametrize(("stored", "low", "high"), CASES)
def test_grey_of_any_depth_and_range_is_seen(stored: str, low: float, high: float) -> None:
    data = STORED[stored][0](low + (high - low) * RAMP)
    got = seen(data)
    assert fits(got, RAMP) > 0.99
    assert got.max() - got.min() > 120, "neither black nor grey all over"
    assert 60 < got.mean() < 190
    codes = dict(check_image(data, "a", decode=True))
    assert set(codes) <= {"16-bit", "alpha"}
    assert " from " in codes["16-bit"], "the range is said"


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("top", [60, 255, 4095, 16383, 65535])
def test_colours_of_16_bits_are_seen_as_they_are(top: int, alpha: bool) -> None:
    values = top * COLOURS
    data = png16(opaque(values) if alpha else values)
    got = np.asarray(open_image(data), float)
    for channel in range(3):
        assert fits(got[..., channel], COLOURS[..., channel]) > 0.99
    assert np.ptp(got) > 200
    assert "16-bit" in dict(check_image(data, "a", decode=True))


def test_a_full_range_is_left_alone() -> None:
    """A stretch would brighten what is meant to be dark."""
    for data in (png16(40000 * RAMP), tiff_float(0.6 * RAMP)):
        opened = open_image_with_notes(data)
        assert opened.range is not None
        assert not opened.range.stretched
        assert opened.notes == []
    assert open_image_with_notes(png16(4095 * RAMP)).notes == [
        "The picture has more than 8 bits a channel; its values were stretched from 0 to 4,095."
    ]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38])
@pytest.mark.parametrize("top", [0.01, 1.0, 4000.0])
def test_what_is_no_number_does_not_count(wrong: float, top: float) -> None:
    values = top * RAMP
    values[:6, :6] = wrong
    got = seen(tiff_float(values))
    assert fits(got[6:], RAMP[6:]) > 0.99
    assert np.ptp(got[6:]) > 100


@pytest.mark.parametrize("outlier", [65535, 60000])
def test_a_broken_sensor_s_point_does_not_make_the_rest_black(outlier: int) -> None:
    values = np.kron(4000 * RAMP, np.ones((2, 2)))
    values[20, 20] = outlier
    got = seen(png16(values))
    assert np.ptp(np.delete(got.ravel(), 20 * 64 + 20)) > 150


def test_the_named_value_of_no_data_does_not_count() -> None:
    values = 900 * RAMP + 100
    values[:, :8] = -9999
    data = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(data, "TIFF", tiffinfo={42113: "-9999"})
    got = seen(data.getvalue())
    assert fits(got[:, 8:], RAMP[:, 8:]) > 0.99
    assert got[:, :8].max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_colours_of_16_bits_are_turned_and_stretched(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    plain = Image.fromarray((255 * COLOURS).astype(np.uint8))
    tagged = io.BytesIO()
    plain.save(tagged, "PNG", exif=exif)
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    deep_one = png16(4095 * COLOURS)
    at = deep_one.index(b"IDAT") - 4
    data = (
        deep_one[:at]
        + struct.pack(">I", len(chunk) - 4)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + deep_one[at:]
    )
    wanted = np.asarray(open_image(tagged.getvalue()), float)
    got = np.asarray(open_image(data), float)
    assert np.abs(got - wanted).max() <= 2


def test_the_control_as_pillow_shows_them_they_are_black(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png16(1000 * COLOURS)
    monkeypatch.setattr(bit_depth, "_LOWER", {})
    assert seen(data).max() < 8
    assert "blank-picture" in dict(check_image(data, "a", decode=True)), (
        "and if nothing stretched them, that would be said"
    )


def saved(image: Image.Image, format_: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, format_)
    return data.getvalue()


def with_alpha(alpha: int | np.ndarray, colours: np.ndarray = COLOURS) -> bytes:
    layer = np.broadcast_to(np.asarray(alpha), RAMP.shape)
    return saved(Image.fromarray(np.dstack([255 * colours, layer]).astype(np.uint8), "RGBA"))


SPOT = np.where(np.add.outer((np.arange(SIDE) - 16) ** 2, (np.arange(SIDE) - 16) ** 2) < 50, 255, 0)
#: what -> (file, how the sentence ends)
BLANK: dict[str, tuple[bytes, str]] = {
    "black": (saved(Image.new("RGB", (64, 48))), "which is of one colour (0, 0, 0)"),
    "white": (saved(Image.new("L", (64, 48), 255)), "which is of one colour (255, 255, 255)"),
    "red": (saved(Image.new("P", (64, 48), 3)), "which is of one colour"),
    "a JPEG of one colour": (
        saved(Image.new("RGB", (64, 48), (90, 20, 200)), "JPEG"),
        "which is of one colour",
    ),
    "one bit": (saved(Image.new("1", (64, 48))), "which is of one colour (0, 0, 0)"),
    "all but black": (
        saved(Image.fromarray((5 * COLOURS).astype(np.uint8))),
        "which is all but of one colour, (0, 0, 0) to (5, 5, 5)",
    ),
    "fully transparent": (with_alpha(0), "which is fully transparent"),
    "white where it shows": (
        with_alpha(SPOT, np.ones_like(COLOURS)),
        "which is white where it is not transparent",
    ),
    "16 bits of one value": (
        png16(np.full((8, 8), 30000)),
        "which is of one colour (117, 117, 117)",
    ),
    "floats without a number": (
        tiff_float(np.full((SIDE, SIDE), np.nan)),
        "which is of one colour (0, 0, 0)",
    ),
    "floats of one value": (tiff_float(np.full((SIDE, SIDE), 7.5)), "which is of one colour"),
}


@pytest.mark.parametrize("what", BLANK)
def test_what_has_nothing_to_see_is_a_defect_and_is_opened(what: str) -> None:
    data, sentence = BLANK[what]
    found = dict(check_image(data, "a.png", decode=True))
    assert found["blank-picture"].startswith("names the picture a.png, ")
    assert sentence in found["blank-picture"]
    opened = open_image_with_notes(data)
    assert opened.notes[-1].startswith("There is nothing to see on the picture, which is ")
    assert "blank-picture" not in dict(check_image(data, "a.png", decode=False)), (
        "it takes the pixels to know"
    )


PATCHES = {
    "red": Image.new("RGB", (32, 32), "red"),
    "one pixel": Image.new("RGB", (1, 1), (90, 20, 200)),
    "palette": Image.new("RGB", (8, 8), "blue").quantize(4),
}
NO_PATCHES = {
    "larger": Image.new("RGB", (33, 32), "red"),
    "black": Image.new("RGB", (8, 8)),
    "white": Image.new("L", (8, 8), 255),
    "grey": Image.new("RGB", (8, 8), (90, 100, 110)),
    "transparent": Image.new("RGBA", (8, 8), (255, 0, 0, 128)),
}


def test_a_patch_of_a_colour_is_used_and_said() -> None:
    """What preparation spoils ends black, grey, white or transparent, and is a defect in any
    size.
    """
    assert all(
        [code for code, _ in check_image(saved(one), "a", decode=True)][-1:] == ["one-colour"]
        for one in PATCHES.values()
    )
    assert all(
        "blank-picture" in dict(check_image(saved(one), "a", decode=True))
        for one in NO_PATCHES.values()
    )


def line(shape: tuple[int, int], value: int, width: int) -> bytes:
    image = np.full(shape, 255, np.uint8)
    image[shape[0] // 2 : shape[0] // 2 + width, 4:-4] = value
    return saved(Image.fromarray(image))


FULL = {
    "a thin line on a page": line((400, 300), 0, 1),
    "a faint line on a page": line((400, 300), 240, 1),
    "one point": saved(
        Image.fromarray(
            np.where(np.arange(10_000).reshape(100, 100) == 5050, 255, 0).astype(np.uint8)
        )
    ),
    "a dark picture": saved(Image.fromarray((20 * COLOURS).astype(np.uint8))),
    "half transparent": with_alpha(128),
    "a shape on nothing": with_alpha(SPOT),
    "a black shape on nothing": with_alpha(SPOT, np.zeros_like(COLOURS)),
}


@pytest.mark.parametrize("what", FULL)
def test_what_has_little_to_see_is_no_defect(what: str) -> None:
    assert not any(
        DEFECT_KINDS[code].rejects for code, _ in check_image(FULL[what], "a", decode=True)
    )
    assert open_image_with_notes(FULL[what]).blank is None


def test_no_photograph_is_said_to_be_blank(fixtures: Path) -> None:
    found = [
        path
        for folder in ("images", "photographs/images")
        for path in sorted((fixtures / folder).glob("*.jpg"))
    ][:60]
    assert len(found) >= 5
    for path in found:
        assert not any(
            DEFECT_KINDS[code].rejects for code, _ in check_image(path, path.name, decode=True)
        ), path.name


def ftyp(brand: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(others)
    return struct.pack(">I", 4 + len(body)) + body + bytes(60)


#: bytes -> what they are called, and a word of the way out
OTHERS: list[tuple[bytes, str, str]] = [
    (ftyp(b"heic", b"mif1"), "a HEIC picture", "Most Compatible"),
    (ftyp(b"mif1", b"heic"), "a HEIC picture", "JPEG"),
    (ftyp(b"isom", b"mp42"), "an MP4 or QuickTime video", "single frames"),
    (ftyp(b"qt  "), "an MP4 or QuickTime video", "single frames"),
    (ftyp(b"crx "), "a camera's raw picture", "Develop"),
    (b"\xff\x0a" + bytes(60), "a JPEG XL picture", "JPEG or PNG"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(60), "a JPEG XL picture", "JPEG or PNG"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(60), "a JPEG 2000 picture", "JPEG or PNG"),
    (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing", "PNG"),
    (b"\xef\xbb\xbf<svg/>", "an SVG drawing", "PNG"),
    (b"%PDF-1.7\n...", "a PDF", "pages"),
    (b"<!DOCTYPE html><p>Not found", "a web page", "Fetch"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
    (b"PK\x03\x04" + bytes(60), "a zip archive", "Unpack"),
    (b"\x1f\x8b\x08" + bytes(60), "a gzip archive", "Unpack"),
    (b"8BPS\x00\x01" + bytes(60), "a Photoshop picture", "JPEG or PNG"),
    (b"P6\n8 8\n255\n" + bytes(192), "a Netpbm picture", "JPEG or PNG"),
    (bytes(128) + b"DICM" + bytes(60), "a DICOM picture", "PNG"),
    (b"SIMPLE  =                    T", "a FITS picture", "PNG"),
    (b"\x76\x2f\x31\x01" + bytes(60), "an OpenEXR picture", "JPEG or PNG"),
    (b"\x1aE\xdf\xa3" + bytes(60), "a WebM or Matroska file", "single frames"),
    (b"RIFF\x40\x00\x00\x00WAVEfmt " + bytes(60), "a WAV sound", "sounds are asked for"),
    (
        b"\xff\xd8\xff\xe0" + bytes(60),
        "a JPEG picture that is damaged or of a rare kind",
        "JPEG or PNG",
    ),
    (
        b"II*\x00\x08\x00\x00\x00" + bytes(60),
        "a TIFF picture that is damaged or of a rare kind",
        "JPEG or PNG",
    ),
]


@pytest.mark.parametrize(
    ("data", "called", "way_out"), OTHERS, ids=[called for _, called, _ in OTHERS]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a"])
def test_what_is_no_picture_is_named_with_a_way_out(
    tmp_path: Path, data: bytes, called: str, way_out: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for decode in (True, False):
        [(code, sentence)] = check_image(path, name, decode=decode)
        assert DEFECT_KINDS[code].rejects
        assert f"names the picture {name}, which is {called}. " in sentence
        assert way_out in sentence
    with pytest.raises(ImageError) as refused:
        open_image(path)
    assert f"{name} is no picture that can be read; got {called}; wanted JPEG, PNG" in str(
        refused.value
    )
    assert way_out in str(refused.value)


def test_embedded_pictures_are_named_alike(tmp_path: Path) -> None:
    rows = []
    for data, _, _ in OTHERS[:8]:
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        told = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": told},
                    {"role": "assistant", "content": "A."},
                ]
            }
        )
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = look_through(
        tmp_path / "a.json",
        [tmp_path],
        check_image=lambda source, name: check_image(source, name, decode=True),
    )
    assert [(finding.row, finding.code) for finding in found.findings] == [
        (row, "not-a-picture") for row in range(1, 9)
    ]
    assert all(
        called in finding.what
        for finding, (_, called, _) in zip(found.findings, OTHERS, strict=False)
    )


@AVIF
def test_avif_is_read_within_the_same_bounds(tmp_path: Path) -> None:
    ramp = Image.fromarray((255 * COLOURS).astype(np.uint8))
    data = saved(ramp, "AVIF")
    assert np.abs(np.asarray(open_image(data), float) - np.asarray(ramp, float)).mean() < 12
    assert check_image(data, "a.avif", decode=True) == []
    assert [code for code, _ in check_image(data, "a.jpg", decode=True)] == ["wrong-extension"]
    frames = io.BytesIO()
    ramp.save(frames, "AVIF", save_all=True, append_images=[ramp.rotate(180)] * 2)
    assert [code for code, _ in check_image(frames.getvalue(), "a.avif", decode=True)] == [
        "animated"
    ]
    assert (
        np.abs(np.asarray(open_image(frames.getvalue()), float) - np.asarray(ramp, float)).mean()
        < 12
    ), "the first frame"
    with pytest.raises(
        ImageError,
        match="cannot be read|is no picture that can be read; got an AVIF picture that is damaged",
    ):
        open_image(data[: len(data) // 2])


@AVIF
def test_avif_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import AvifImagePlugin

    large = saved(Image.new("RGB", (400, 300), "red"), "AVIF")
    monkeypatch.setattr(image_io, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(
        AvifImagePlugin.AvifImageFile, "load", lambda self: pytest.fail("pixels were decoded")
    )
    with pytest.raises(ImageError, match="too many pixels; got 400 x 300"):
        open_image(large)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 200_000)
    with pytest.raises(pytest.fail.Exception, match="pixels were decoded"):
        open_image(large)


def test_without_avif_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ftyp(b"avif", b"mif1")
    with pytest.raises(
        ImageError, match="got an AVIF picture; wanted JPEG, PNG. Save it as JPEG or PNG"
    ):
        open_image(data, formats=("JPEG", "PNG"))


def test_the_reported_pictures(fixtures: Path) -> None:
    folder = fixtures / "reported"
    if not folder.is_dir():
        pytest.skip("the fixtures have no reported situations")
    black = folder / "11-black-pictures"
    shown, wanted = (np.asarray(open_image(black / name), float) for name in ("f32.tif", "ok.png"))
    assert abs(shown.mean() - wanted.mean()) < 5
    assert fits(shown.mean(axis=2), wanted.mean(axis=2)) > 0.95
    for name in ("photo.heic", "photo.jpg"):
        [(code, sentence)] = check_image(folder / "18-heic-avif" / name, name, decode=True)
        assert code == "not-a-picture"
        assert "a HEIC picture. Save it as JPEG" in sentence
    if "AVIF" in IMAGE_FORMATS:  # it is a red square
        assert [
            code
            for code, _ in check_image(
                folder / "18-heic-avif" / "photo.avif", "photo.avif", decode=True
            )
        ] == ["one-colour"]
