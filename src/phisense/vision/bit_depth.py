"""Conversion of images with more than 8 bits per channel, or float samples, to 8 bits.

Such files use many value ranges: 12 sensor bits in 16, depth in meters as floats, 0 to 1. An image
that spans at least half of a common range (0 to 1; 0 to 255, 1,023, 4,095, 16,383, 65,535; the
range of the file) is scaled from that range, so that dark images stay dark. All others are
stretched from their own minimum to their own maximum; unstretched, they would be nearly black.
Outliers (at most one pixel in a thousand, as from dead sensor pixels) are clipped. NaN, infinity
and the no-data value of a TIFF become black and do not count.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

#: Grayscale modes of more than 8 bits. Pillow would clip them at 255: nearly all pixels turn white.
HIGH_DEPTH_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
#: 16-bit color, of which Pillow keeps the high byte: raw mode -> the raw mode that reads the low
#: byte of the same file.
_LOWER = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBA", "RGBX")
    for order, other in {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}.items()
}
_LOWER["LA;16B"] = "RGBA"  # no other mode exists: each of the four bytes becomes a channel
_SENSORS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO, _NO_DATA = 258, 262, 0, 42113  # TIFF tags; the last is GDAL's
_IMPLAUSIBLE = 1e30  # written by programs for missing float values
_OUTLIERS = 0.1  # percent at either end
# If the inner percentiles span a range this many times narrower than all values, the rest are
# outliers.
_FAR = 8
_SAMPLE = 10**6  # pixels sampled for the percentiles

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values that map to black and white.

    `stretched` is true if they are not the full range of the format.
    """

    low: float
    high: float
    stretched: bool

    def __str__(self) -> str:
        return (
            f"{'stretched' if self.stretched else 'scaled'} from {_format_value(self.low)} to"
            f" {_format_value(self.high)}"
        )


def _format_value(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def is_high_depth(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits per channel; decided before its pixels are decoded."""
    return image.mode in HIGH_DEPTH_MODES or (
        image.format in ("PNG", "TIFF") and any(";16" in mode for mode in _raw_modes(image))
    )


def gray_to_8_bit(image: Image.Image, tags: Mapping[int, Any]) -> tuple[Image.Image, ValueRange]:
    """Convert a decoded image in one of `HIGH_DEPTH_MODES` to 8 bits; `tags` are TIFF tags."""
    values = np.asarray(image).astype(np.float32)
    known = np.isfinite(values) & (np.abs(values) < _IMPLAUSIBLE)
    if (nothing := _no_data(tags)) is not None:
        known &= values != np.float32(nothing)
    within = values if known.all() else values[known]
    span = _range(within, _tops(image.mode, tags))
    shown = _scaled(np.where(known, values, span.low), span)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shown = 255 - shown
    return Image.fromarray(shown), span


def color_to_8_bit(
    image: Image.Image, data: bytes, raw: str | None, format_: str | None
) -> tuple[Image.Image, ValueRange | None]:
    """Convert a decoded, upright RGB or RGBA image whose file has raw mode `raw`.

    Unchanged (the high bytes of 16-bit samples) if these span half of the range; else stretched
    from all 16 bits, with one range for all three channels. Raw modes that are not in `_LOWER` are
    returned unchanged, without a range.
    """
    if raw not in _LOWER or format_ is None:
        return image, None
    ends: Any = image.getextrema()[:3]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if high - low >= 128 and not _has_outliers(np.asarray(image)[..., :3]):
        return image, ValueRange(0, 65535, stretched=False)
    lower = _lower_bits(data, _LOWER[raw], format_)
    upper = np.asarray(image)
    values = upper[..., :3].astype(np.uint16) << 8 | (
        lower[..., 1:2] if raw == "LA;16B" else lower[..., :3]
    )
    span = _range(values, _SENSORS)
    table = _scaled(np.arange(65536, dtype=np.float32), span)
    made = Image.fromarray(
        np.dstack([table[values], upper[..., 3:]]) if image.mode == "RGBA" else table[values]
    )
    made.info |= image.info
    return made, span


def raw_mode(image: Image.Image) -> str | None:
    """Raw mode of an image that is not decoded yet; None if its tiles have several."""
    modes = _raw_modes(image)
    return modes.pop() if len(modes) == 1 else None


def _raw_modes(image: Image.Image) -> set[str]:
    """Raw modes in the decoder arguments of Pillow's tiles: the first or only argument."""
    found = (
        tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        for tile in getattr(image, "tile", ())
    )
    return {mode for mode in found if isinstance(mode, str)}


def _lower_bits(data: bytes, raw: str, format_: str) -> Values:
    """Low bytes of the samples: the same file, decoded again with the validated decoder."""
    with Image.open(io.BytesIO(data), formats=(format_,)) as opened:
        image: Any = opened
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
            for tile in image.tile
        ]
        image.load()
        return np.asarray(ImageOps.exif_transpose(opened))


def _tops(mode: str, tags: Mapping[int, Any]) -> tuple[float, ...]:
    """Maxima of the common ranges that begin at 0; the last is the file's own, if it has one."""
    stored = int(tags.get(_BITS, (16,))[0])
    if mode.startswith("I;16"):
        return (*(top for top in _SENSORS if top < 2.0**stored - 1), 2.0**stored - 1)
    if mode == "I" and stored == 16 and tags:  # signed
        return (*_SENSORS[:-1], 2.0**15 - 1)
    return _SENSORS if mode == "I" else (1.0, *_SENSORS)


def _range(values: Values, tops: tuple[float, ...]) -> ValueRange:
    if not values.size:
        return ValueRange(0, tops[0], stretched=False)
    low, high = float(values.min()), float(values.max())
    inner = _percentiles(values)
    if 0 < inner[1] - inner[0] < (high - low) / _FAR:
        low, high = inner
    top = next((top for top in tops if high <= top), None) if low >= 0 else None
    # Constant apart from float rounding.
    flat = high - low <= 1e-6 * max(abs(low), abs(high))
    if top is not None and (flat or high - low >= top / 2):
        return ValueRange(0, top, stretched=top != tops[-1] and (tops[0] > 1 or top > 255))
    return ValueRange(low, high if not flat else low + 1, stretched=not flat)


def _has_outliers(values: Values) -> bool:
    low, high = _percentiles(values)
    return high - low < (float(values.max()) - float(values.min())) / _FAR


def _percentiles(values: Values) -> tuple[float, float]:
    some = values.reshape(-1)[:: max(1, values.size // _SAMPLE)]
    low = np.percentile(some, _OUTLIERS, method="higher")
    return float(low), float(np.percentile(some, 100 - _OUTLIERS, method="lower"))


def _scaled(values: Values, span: ValueRange) -> npt.NDArray[np.uint8]:
    """Map values to 0 to 255, rounded."""
    scaled = (values - np.float32(span.low)) * np.float32(
        255 / (span.high - span.low)
    ) + np.float32(0.5)
    shown: npt.NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return shown


def _no_data(tags: Mapping[int, Any]) -> float | None:
    try:
        return float(str(tags[_NO_DATA]).strip(" \0"))
    except (KeyError, ValueError):
        return None
