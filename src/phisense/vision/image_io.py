"""Reads untrusted image files: bounded in bytes and pixels, upright, RGB.

Limits are checked on the header before any pixel is decoded: a 21 KB file can declare gigabytes.
`phisense check` (image_checks.py) uses the very functions that open images, so an image that passes
it can be opened later. A decoded image is tested for content: a blank one is opened and reported
as blank.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError, features

from ..errors import ImageError
from ..file_types import HEAD_BYTES, sniff
from .bit_depth import HIGH_DEPTH_MODES, ValueRange, color_to_8_bit, gray_to_8_bit, raw_mode

#: AVIF is in Pillow's wheels from 11.3 on, and optional where Pillow is compiled.
IMAGE_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    *(("AVIF",) if features.check("avif") else ()),
)
MAX_IMAGE_BYTES = 32 * 2**20
MAX_PIXELS = 40 * 10**6
MAX_ASPECT_RATIO = 100  # longer side / shorter side

#: An image is blank if no channel varies by this much, of 255.
MIN_CONTRAST = 8
#: A small patch of one color is not blank if it is colorful; images spoiled by preprocessing end
#: up black, gray or white. Pixels per side; channel difference, of 255.
MAX_PATCH_SIDE, MIN_PATCH_COLOR = 32, 64

_AGAIN = "Save it again as JPEG or PNG"
_SENTENCES: dict[str, tuple[str, str | None, str | None]] = {
    "too-many-bytes": ("is too large", f"at most {MAX_IMAGE_BYTES // 2**20} MB", "Make it smaller"),
    "too-many-pixels": (
        "has too many pixels",
        f"at most {MAX_PIXELS // 10**6} million pixels",
        "Make it smaller",
    ),
    "too-narrow": ("is too narrow", f"sides within 1 to {MAX_ASPECT_RATIO}", None),
    "truncated-picture": ("cannot be read", None, _AGAIN),
    "damaged-picture": ("cannot be read", None, _AGAIN),
}


class UnusableImageError(Exception):
    """Why an image cannot be used.

    `code` is a class of `conversations.defects`, `got` what was found, `do` a remedy.
    """

    def __init__(self, code: str, got: str, do: str | None = None) -> None:
        super().__init__(code, got)
        self.code, self.got, self.do = code, got, do


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A decoded image and what decoding revealed.

    `image` is RGB; `range` are the values that map to black and white, None for 8 bits. `blank`
    completes "which is ..." for an image without content; `patch` does so for a small one of a
    single bright color, which may be intended.
    """

    image: Image.Image
    range: ValueRange | None
    blank: str | None
    patch: str | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences for a user to whom the image is shown, about changes and missing content."""
        found = []
        if self.range is not None and self.range.stretched:
            found.append(
                f"The picture has more than 8 bits a channel; its values were {self.range}."
            )
        if self.blank is not None:
            found.append(f"There is nothing to see on the picture, which is {self.blank}.")
        return found


def open_image(
    source: Path | bytes, *, name: str | None = None, formats: tuple[str, ...] = IMAGE_FORMATS
) -> Image.Image:
    """Open an image as RGB: upright by its EXIF tag, first frame only, transparency on white.

    Raises ImageError, naming the image `name` or by its file name, if it is missing, not an image,
    or out of bounds.
    """
    return open_image_with_notes(source, name=name, formats=formats).image


def open_image_with_notes(
    source: Path | bytes, *, name: str | None = None, formats: tuple[str, ...] = IMAGE_FORMATS
) -> OpenedImage:
    """As `open_image`, with the notes of decoding."""
    called = name or (source.name if isinstance(source, Path) else "the picture")
    if isinstance(source, Path) and not source.is_file():
        raise ImageError(f"there is no picture {source}")
    try:
        data = read_image_bytes(source)
        with open_validated(data, formats) as image:
            return decode_image(image, data)
    except UnusableImageError as error:
        what, wanted, do = _SENTENCES.get(
            error.code, ("is not a picture", ", ".join(formats), None)
        )
        if error.do is not None:
            what = "is no picture that can be read"
        raise ImageError(
            f"{called} {what}", got=error.got, wanted=wanted, do=error.do or do
        ) from error


def read_image_bytes(source: Path | bytes) -> bytes:
    """Read at most `MAX_IMAGE_BYTES`. Raises UnusableImageError for a larger file."""
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > MAX_IMAGE_BYTES:
        raise UnusableImageError("too-many-bytes", f"{size / 2**20:.0f} MB")
    if not isinstance(source, Path):
        return source
    with source.open("rb") as file:
        return file.read(MAX_IMAGE_BYTES)


@contextmanager
def open_validated(data: bytes, formats: tuple[str, ...] = IMAGE_FORMATS) -> Iterator[Image.Image]:
    """Open an image whose header is valid and within the limits, without decoding pixels.

    Raises UnusableImageError for any other, and for any error that Pillow raises in the block.
    """
    try:
        if not data:
            raise UnusableImageError("empty-picture", "0 bytes")
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_size(*image.size)
            yield image
    except UnidentifiedImageError as error:
        raise _other_file_type(data, formats) from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError("too-many-pixels", "a picture made to burst") from error
    except UnusableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise any type on damaged bytes
        cut_off = any(
            word in str(error).lower() for word in ("truncated", "unexpected end", "premature")
        )
        raise UnusableImageError(
            "truncated-picture" if cut_off else "damaged-picture", f"a damaged file ({error})"
        ) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnusableImageError("too-many-pixels", f"{width} x {height}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnusableImageError("too-narrow", f"{width} x {height}")


def _other_file_type(data: bytes, formats: tuple[str, ...]) -> UnusableImageError:
    """Error that names the file type, found by its first bytes, whatever its extension says."""
    kind = sniff(data[:HEAD_BYTES])
    if kind is None:
        return UnusableImageError("not-a-picture", f"{len(data):,} bytes of something else")
    if kind.name.split(" ", 1)[1].removesuffix(" picture").upper() in formats:
        return UnusableImageError(
            "not-a-picture", f"{kind.name} that is damaged or of a rare kind", _AGAIN
        )
    return UnusableImageError(
        "not-a-picture",
        kind.name,
        _AGAIN if kind.group == "picture" and kind.do.startswith("Name it") else kind.do,
    )


def decode_image(image: Image.Image, data: bytes) -> OpenedImage:
    """Decode an opened image to upright RGB; `data` are the bytes it was opened from.

    Raises whatever Pillow raises.
    """
    raw = raw_mode(image)
    image.load()
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    upright = ImageOps.exif_transpose(image)
    shown: Image.Image
    values: ValueRange | None
    if upright.mode in HIGH_DEPTH_MODES:
        shown, values = gray_to_8_bit(upright, tags)
    else:
        shown, values = color_to_8_bit(upright, data, raw, image.format)
    flat = _on_white(shown)
    blank = _blank(flat, shown)
    return (
        OpenedImage(flat, values, None, blank)
        if blank is not None and _is_patch(flat, shown)
        else OpenedImage(flat, values, blank)
    )


def _on_white(image: Image.Image) -> Image.Image:
    if has_alpha(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _blank(flat: Image.Image, before: Image.Image) -> str | None:
    """Why an image is blank, or None; `before` is the image before flattening transparency."""
    ends: Any = flat.getextrema()
    if any(high - low >= MIN_CONTRAST for low, high in ends):
        return None
    if has_alpha(before):
        alpha: Any = before.convert("RGBA").getchannel("A").getextrema()
        if alpha[1] < MIN_CONTRAST:
            return "fully transparent"
        if alpha[0] < 255:
            return (
                "white where it is not transparent"
                if min(low for low, _ in ends) > 255 - MIN_CONTRAST
                else "of one colour"
            )
    dark, bright = (tuple(end[at] for end in ends) for at in (0, 1))
    return (
        f"of one colour {dark}" if dark == bright else f"all but of one colour, {dark} to {bright}"
    )


def _is_patch(flat: Image.Image, before: Image.Image) -> bool:
    """Whether a single-color image is a small opaque patch, not gray, black or white."""
    means = [(low + high) / 2 for low, high in flat.getextrema()]  # type: ignore[misc]
    return (
        max(flat.size) <= MAX_PATCH_SIDE
        and not has_alpha(before)
        and max(means) - min(means) >= MIN_PATCH_COLOR
    )


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has transparency."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
