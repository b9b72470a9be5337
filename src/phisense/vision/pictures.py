"""Reads a picture that a stranger may have made: bounded in bytes and pixels, upright, RGB.

Bounds are checked on the header, before any pixel is decoded: a 21 KB file can declare gigabytes.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_BYTES = 32 * 2**20
MOST_PIXELS = 40 * 10**6
MOST_RATIO = 100  # longer side to shorter side


def open_picture(source: Path | bytes, *, name: str | None = None, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture as RGB, turned upright by its EXIF tag; the first frame of an animation; transparency on white.

    Raises PictureError, calling the picture `name` or its file name, if it is missing, no picture, or out of bounds.
    """
    called = name or (source.name if isinstance(source, Path) else "the picture")
    data = _read(source, called)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_size(image, called)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _flat(upright)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{called} is not a picture", got=f"{len(data)} bytes of something else", wanted=", ".join(formats)) from error
    except Image.DecompressionBombError as error:
        wanted = f"at most {MOST_PIXELS // 10**6} million"
        raise PictureError(f"{called} has too many pixels", got="a picture made to burst", wanted=wanted, do="Make it smaller") from error
    except Exception as error:  # Pillow's decoders raise whatever comes of damaged bytes
        raise PictureError(f"{called} cannot be read", got=f"a damaged file ({error})", do="Save it again as JPEG or PNG") from error


def _read(source: Path | bytes, called: str) -> bytes:
    if isinstance(source, Path):
        if not source.is_file():
            raise PictureError(f"there is no picture {source}")
        size = source.stat().st_size
    else:
        size = len(source)
    if size > MOST_BYTES:
        raise PictureError(
            f"{called} is too large", got=f"{size / 2**20:.0f} MB", wanted=f"at most {MOST_BYTES // 2**20} MB", do="Make it smaller"
        )
    return source.read_bytes() if isinstance(source, Path) else source


def _check_size(image: Image.Image, called: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        wanted = f"at most {MOST_PIXELS // 10**6} million pixels"
        raise PictureError(f"{called} has too many pixels", got=f"{width} x {height}", wanted=wanted, do="Make it smaller")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise PictureError(f"{called} is too narrow", got=f"{width} x {height}", wanted=f"sides within 1 to {MOST_RATIO}")


def _flat(image: Image.Image) -> Image.Image:
    if has_alpha(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in ("I;16", "I;16B", "I"):  # 16-bit grey: a plain conversion would clip it to white
        return image.point(lambda v: v / 256).convert("L").convert("RGB")
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
