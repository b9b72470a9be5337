"""What is wrong with a picture file, and what is unusual about it, in the classes of `conversations.defects`."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .pictures import FORMATS, MOST_BYTES, MOST_PIXELS, MOST_RATIO, has_alpha

Fault = tuple[str, str]

#: Bytes that a whole file of the format has near its end.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_ORIENTATION = 0x0112


def look_at(source: Path | bytes, name: str, *, decode: bool) -> list[Fault]:
    """Code and sentence for each fault of a picture. Without `decode`, of the header and the file's end alone: ten times as fast.

    A fault that rejects the picture ends the look; what comes before it are notes.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) and source.stat().st_size <= MOST_BYTES else source
    except OSError as error:
        return [("missing-picture", f"names the picture {name}, which cannot be read: {error.strerror}")]
    if isinstance(data, Path):
        return [("too-many-bytes", f"names the picture {name} of {data.stat().st_size / 2**20:.0f} MB")]
    if not data:
        return [("empty-picture", f"names the picture {name}, an empty file")]
    if len(data) > MOST_BYTES:
        return [("too-many-bytes", f"has the picture {name} of {len(data) / 2**20:.0f} MB")]
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _faults(image, data, name, decode)
    except UnidentifiedImageError:
        return [("not-a-picture", f"names the picture {name}, {_described(data)}")]
    except Image.DecompressionBombError:
        return [("too-many-pixels", f"names the picture {name}, which is made to burst")]
    except Exception as error:  # Pillow's decoders raise whatever comes of damaged bytes
        return [("damaged-picture", f"names the picture {name}, whose header is damaged: {error}")]


def _faults(image: Image.Image, data: bytes, name: str, decode: bool) -> list[Fault]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        return [("too-many-pixels", f"names the picture {name} of {width} x {height} pixels")]
    if max(width, height) > MOST_RATIO * min(width, height):
        return [("too-narrow", f"names the picture {name} of {width} x {height} pixels")]
    found = _notes(image, name)
    end = _ENDS.get(image.format or "")
    if decode or (end is not None and end not in data[-1024:]):
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise whatever comes of damaged bytes
            cut_off = any(word in str(error).lower() for word in ("truncated", "unexpected end", "premature"))
            code, what = ("truncated-picture", "which ends too early") if cut_off else ("damaged-picture", f"which is damaged: {error}")
            found.append((code, f"names the picture {name}, {what}"))
    return found


def _notes(image: Image.Image, name: str) -> list[Fault]:
    """What `open_picture` will do to it, by its header."""
    found = []
    if getattr(image, "is_animated", False):
        found.append(("animated", f"names the picture {name}, which has {getattr(image, 'n_frames', 2)} frames"))
    # Pillow decodes a whole PNG to look for EXIF behind its pixels, where hardly anything writes it.
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    if exif.get(_ORIENTATION, 1) not in (0, 1):
        found.append(("exif-rotation", f"names the picture {name}, which is turned by its EXIF tag"))
    if image.mode == "CMYK":
        found.append(("cmyk", f"names the picture {name} in CMYK"))
    elif image.mode.startswith("I"):
        found.append(("16-bit", f"names the picture {name} with 16 bits a channel"))
    elif has_alpha(image):
        found.append(("alpha", f"names the picture {name} with transparency"))
    elif image.mode == "P" and image.format != "GIF":
        found.append(("palette", f"names the picture {name} in palette colours"))
    ending = Path(name).suffix.lower()
    known = Image.registered_extensions().get(ending)
    if known is not None and known != image.format and {known, image.format} != {"JPEG", "MPO"}:
        found.append(("wrong-extension", f"names the picture {name}, which is {image.format}"))
    return found


def _described(data: bytes) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "which is a web page or SVG"
    if head.startswith((b"version https://git-lfs",)):
        return "which is a Git LFS pointer: the picture itself was not fetched"
    return f"{len(data):,} bytes of something else"
