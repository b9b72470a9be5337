"""Faults and notes of an image file, as the classes of `conversations.defects`."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ..safe_parsing import MAX_PATH_LENGTH, escape
from .bit_depth import is_high_depth
from .image_io import (
    IMAGE_FORMATS,
    OpenedImage,
    UnusableImageError,
    decode_image,
    has_alpha,
    open_validated,
    read_image_bytes,
)

ImageFault = tuple[str, str]

#: Bytes that a complete file of the format has near its end.
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_ORIENTATION = 0x0112


def check_image(source: Path | bytes, name: str, *, decode: bool) -> list[ImageFault]:
    """Code and message for each fault of an image.

    Without `decode` only the header and the end of the file are checked, which is ten times as
    fast. With it, `open_image` opens every image without a rejecting fault, as long as the file
    does not change and memory suffices. The one difference is a blank image: `open_image` opens it,
    but it is rejected here, since a data set gains nothing from it. A rejecting fault ends the
    check; entries before it are notes.
    """
    notes: list[ImageFault] = []
    data = b""
    try:
        data = read_image_bytes(source)
        with open_validated(data) as image:
            notes = _notes(image, data, name)
            end = _END_MARKERS.get(image.format or "")
            if decode or (end is not None and end not in data[-1024:]):
                notes = _with_decoded_notes(notes, decode_image(image, data), name)
    except OSError as error:
        return [
            ("missing-picture", f"{image_subject(name)}, which cannot be read: {error.strerror}")
        ]
    except UnusableImageError as error:
        return [*notes, (error.code, f"{image_subject(name)}{_sentence(error, data)}")]
    return notes


def _with_decoded_notes(
    notes: list[ImageFault], opened: OpenedImage, name: str
) -> list[ImageFault]:
    """The notes, extended with what decoding has revealed."""
    told = [
        (code, f"{what}, {opened.range}" if code == "16-bit" and opened.range else what)
        for code, what in notes
    ]
    if opened.patch is not None:
        return [*told, ("one-colour", f"{image_subject(name)}, which is {opened.patch}")]
    return (
        told
        if opened.blank is None
        else [*told, ("blank-picture", f"{image_subject(name)}, which is {opened.blank}")]
    )


def image_subject(name: str) -> str:
    """Start of the message about an image; escapes its name."""
    return f"names the picture {escape(name, MAX_PATH_LENGTH)}"


def _sentence(error: UnusableImageError, data: bytes) -> str:
    match error.code:
        case "too-many-bytes":
            return f" of {error.got}"
        case "empty-picture":
            return ", an empty file"
        case "not-a-picture":
            return (
                f", which is {error.got}. {error.do}"
                if error.do
                else f", {len(data):,} bytes of something else"
            )
        case "too-many-pixels" | "too-narrow":
            return (
                f" of {error.got} pixels" if error.got[0].isdigit() else ", which is made to burst"
            )
        case "truncated-picture":
            return ", which ends too early"
        case _:
            return f", which is {error.got}"


def _notes(image: Image.Image, data: bytes, name: str) -> list[ImageFault]:
    """What `open_image` will change about the image, according to its header."""
    found = []
    if _is_animated(image, data):
        found.append(("animated", f"{image_subject(name)}, which has several frames"))
    # To look for EXIF after the pixels, where hardly any program writes it, Pillow decodes a whole
    # PNG.
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    if exif.get(_ORIENTATION, 1) not in (0, 1):
        found.append(("exif-rotation", f"{image_subject(name)}, which is turned by its EXIF tag"))
    if is_high_depth(image):
        found.append(("16-bit", f"{image_subject(name)} with more than 8 bits a channel"))
    if image.mode == "CMYK":
        found.append(("cmyk", f"{image_subject(name)} in CMYK"))
    elif has_alpha(image):
        found.append(("alpha", f"{image_subject(name)} with transparency"))
    elif image.mode == "P" and image.format != "GIF":
        found.append(("palette", f"{image_subject(name)} in palette colours"))
    ending = Path(name).suffix.lower()
    known = Image.registered_extensions().get(ending)
    if known is not None and known != image.format and {known, image.format} != {"JPEG", "MPO"}:
        found.append(("wrong-extension", f"{image_subject(name)}, which is {image.format}"))
    return found


def _is_animated(image: Image.Image, data: bytes) -> bool:
    """Whether there is a second frame.

    Frames are not counted, as there may be a million of a few bytes each, and faults in later
    frames are ignored, as these are never decoded.
    """
    if image.format != "GIF":
        return bool(getattr(image, "is_animated", False))
    try:  # on a second handle: `is_animated` seeks to the second frame
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as other:
            return bool(other.is_animated)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001, Pillow's decoders raise anything on damaged bytes
        return True
