"""Finds held-out images in the training set: the same bytes, or the same image re-encoded, resized
or slightly recolored.

Two images are near-duplicates if their difference hashes (64 bits; Krawetz 2013,
hackerfactor.com/blog/archives/529) differ in few bits and their 32 x 32 thumbnails, averaged over
3 x 3, differ nowhere by much. The hash selects candidates, the thumbnail decides: photographs saved
at another size and as JPEG of quality 40 differ by 2 to 7, and practice scenes that differ in one
small digit by 20 and more, with the same hash. Cropped, flipped or rotated images are not found.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..safe_parsing import MAX_PATH_LENGTH, escape
from .image_checks import ImageFault, image_subject
from .image_io import IMAGE_FORMATS, MAX_PIXELS

THUMBNAIL_SIDE = 32
MAX_HASH_DISTANCE = 12
MAX_PIXEL_DIFFERENCE = 12.0  # of 255


class HeldOutImages:
    """Images that must not be trained on.

    `sources` are (name, file or bytes); what is not an image is skipped.
    """

    def __init__(self, sources: Iterable[tuple[str, Path | bytes]]) -> None:
        self.exact: dict[bytes, str] = {}
        self.names: list[str] = []
        hashes, thumbnails = [], []
        for name, digest, print_ in _hash_images(list(sources)):
            if digest is not None:
                self.exact.setdefault(digest, name)
            if print_ is not None:
                self.names.append(name)
                hashes.append(print_[0])
                thumbnails.append(print_[1])
        self.hashes = np.array(hashes, dtype=np.uint64)
        self.thumbnails = np.array(thumbnails, dtype=np.int16)

    def find_in(
        self, pictures: Iterable[tuple[str, Path | bytes]]
    ) -> Iterator[tuple[str, ImageFault]]:
        """Yield the name and fault of each image that is held out."""
        for name, digest, print_ in _hash_images(list(pictures)):
            if digest in self.exact:
                yield (
                    name,
                    (
                        "leak",
                        (
                            f"{image_subject(name)}, whose bytes are those of"
                            f" {_display_name(self.exact[digest])}, which is held out"
                        ),
                    ),
                )
            elif print_ is not None and (near := self._near(*print_)) is not None:
                yield (
                    name,
                    (
                        "near-leak",
                        f"{image_subject(name)}, which all but equals {_display_name(near)}, which"
                        f" is held out",
                    ),
                )

    def _near(self, hash_: int, thumbnail: np.ndarray) -> str | None:
        if not self.names:
            return None
        for at in np.flatnonzero(
            np.bitwise_count(self.hashes ^ np.uint64(hash_)) <= MAX_HASH_DISTANCE
        ):
            if _max_smoothed_difference(self.thumbnails[at] - thumbnail) <= MAX_PIXEL_DIFFERENCE:
                return self.names[at]
        return None


def _max_smoothed_difference(apart: np.ndarray) -> float:
    """Largest absolute mean over 3 x 3 of the difference `apart` `(SIDE, SIDE, 3)`.

    Averaging cancels what an edge shifted by one pixel leaves.
    """
    rows = apart[:-2] + apart[1:-1] + apart[2:]
    squares = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return float(np.abs(squares).max()) / 9


def _hash_images(
    sources: Sequence[tuple[str, Path | bytes]],
) -> Iterator[tuple[str, bytes | None, tuple[int, np.ndarray] | None]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_hash_image, sources)


def _hash_image(
    source: tuple[str, Path | bytes],
) -> tuple[str, bytes | None, tuple[int, np.ndarray] | None]:
    """Name, hash of the bytes, and (difference hash, thumbnail); None for what cannot be read.

    Unreadable files are reported by `check_image`.
    """
    name, at = source
    try:
        data = at.read_bytes() if isinstance(at, Path) else at
    except OSError:
        return name, None, None
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return name, digest, None
            image.draft(
                "RGB", (4 * THUMBNAIL_SIDE, 4 * THUMBNAIL_SIDE)
            )  # lets the JPEG decoder downscale
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # noqa: BLE001, Pillow's decoders raise anything on damaged bytes
        return name, digest, None
    small = upright.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    grey = np.asarray(upright.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return name, digest, (int.from_bytes(bits.tobytes(), "big"), np.asarray(small, dtype=np.int16))


def _display_name(name: str) -> str:
    return escape(name, MAX_PATH_LENGTH)
