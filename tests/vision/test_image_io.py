"""Pictures that strangers make: upright, RGB, bounded before a pixel is decoded."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phisense.errors import ImageError
from phisense.vision.image_io import open_image


def test_the_exif_tag_turns_a_real_photograph_upright(fixtures: Path) -> None:
    upright = open_image(fixtures / "images" / "landscape_exif1.jpg")
    turned = open_image(fixtures / "images" / "landscape_exif6.jpg")
    assert turned.size == upright.size
    difference = np.abs(np.asarray(turned, float) - np.asarray(upright, float)).mean()
    raw = Image.open(fixtures / "images" / "landscape_exif6.jpg").convert("RGB")
    assert difference < 12
    assert raw.size != upright.size, "without the turn it would lie on its side"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = (
        Image.new(mode, (20, 10))
        if mode == "I;16"
        else Image.new("RGBA", (20, 10), (200, 30, 30, 255)).convert(mode)
    )
    image.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").mode == "RGB"


def test_cmyk_and_transparency(fixtures: Path, tmp_path: Path) -> None:
    assert open_image(fixtures / "images" / "cmyk.jpg").mode == "RGB"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def bomb(side: int) -> bytes:
    """A PNG whose header declares side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", "is not a picture; got 5 bytes of something else"),
        (b"", "is not a picture"),
        (bomb(9_000), "too many pixels; got 9000 x 9000; wanted at most 40 million"),
        (bomb(60_000), "too many pixels; got a picture made to burst; wanted at most 40 million"),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "is no picture that can be read; got an SVG drawing; .* Draw it into a PNG",
        ),
    ],
)
def test_bad_bytes_are_a_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=rf"x\.png .*{words}"):
        open_image(tmp_path / "x.png")


def test_truncated_huge_and_narrow(tmp_path: Path, fixtures: Path) -> None:
    whole = (fixtures / "images" / "flower.jpg").read_bytes()
    with pytest.raises(ImageError, match="The upload cannot be read; got a damaged file"):
        open_image(whole[: len(whole) // 2], name="The upload")
    with pytest.raises(ImageError, match="too large; got 33 MB"):
        open_image(b"\0" * (33 * 2**20))
    Image.new("RGB", (1000, 2)).save(tmp_path / "n.png")
    with pytest.raises(ImageError, match="too narrow; got 1000 x 2"):
        open_image(tmp_path / "n.png")
    with pytest.raises(ImageError, match="there is no picture"):
        open_image(tmp_path / "none.png")
