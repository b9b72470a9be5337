"""Pictures of the training set that are also held out: the same bytes, or the same picture saved again, resized or recoloured a little.

Two pictures are near when their difference hashes (64 bits; Krawetz 2013, hackerfactor.com/blog/archives/529) differ in few bits and
their 32 x 32 thumbnails nowhere by much, averaged over 3 x 3. The hash finds candidates among many, the thumbnail decides: photographs
saved again at another size and in JPEG of quality 40 differ by 2 to 7 there, and scenes of the practice world that differ in one
small digit by 20 and more, with the same hash. A crop, a flip or a turned picture is not found.
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

from .looking import Fault
from .pictures import FORMATS, MOST_PIXELS

SIDE = 32
MOST_BITS = 12
MOST_APART = 12.0  # of 255


class HeldOut:
    """Pictures that must not be trained on. `sources` are (what they are called, file or bytes); what is no picture is left out."""

    def __init__(self, sources: Iterable[tuple[str, Path | bytes]]) -> None:
        self.exact: dict[bytes, str] = {}
        self.names: list[str] = []
        hashes, thumbnails = [], []
        for name, digest, print_ in _all_prints(list(sources)):
            if digest is not None:
                self.exact.setdefault(digest, name)
            if print_ is not None:
                self.names.append(name)
                hashes.append(print_[0])
                thumbnails.append(print_[1])
        self.hashes = np.array(hashes, dtype=np.uint64)
        self.thumbnails = np.array(thumbnails, dtype=np.int16)

    def among(self, pictures: Iterable[tuple[str, Path | bytes]]) -> Iterator[tuple[str, Fault]]:
        """The name and the fault of each of `pictures` that is held out."""
        for name, digest, print_ in _all_prints(list(pictures)):
            if digest in self.exact:
                yield name, ("leak", f"names the picture {name}, whose bytes are those of {self.exact[digest]}, which is held out")
            elif print_ is not None and (near := self._near(*print_)) is not None:
                yield name, ("near-leak", f"names the picture {name}, which all but equals {near}, which is held out")

    def _near(self, hash_: int, thumbnail: np.ndarray) -> str | None:
        if not self.names:
            return None
        for at in np.flatnonzero(np.bitwise_count(self.hashes ^ np.uint64(hash_)) <= MOST_BITS):
            if _smoothed(self.thumbnails[at] - thumbnail) <= MOST_APART:
                return self.names[at]
        return None


def _smoothed(apart: np.ndarray) -> float:
    """The largest absolute mean over 3 x 3 of `apart` `(SIDE, SIDE, 3)`: what an edge that moved by a pixel leaves cancels out."""
    rows = apart[:-2] + apart[1:-1] + apart[2:]
    squares = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return float(np.abs(squares).max()) / 9


def _all_prints(sources: Sequence[tuple[str, Path | bytes]]) -> Iterator[tuple[str, bytes | None, tuple[int, np.ndarray] | None]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_prints, sources)


def _prints(source: tuple[str, Path | bytes]) -> tuple[str, bytes | None, tuple[int, np.ndarray] | None]:
    """Name, hash of the bytes, and the picture's own prints; None for what cannot be read, which the check names elsewhere."""
    name, at = source
    try:
        data = at.read_bytes() if isinstance(at, Path) else at
    except OSError:
        return name, None, None
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                return name, digest, None
            image.draft("RGB", (4 * SIDE, 4 * SIDE))  # a JPEG is decoded at the size that is needed
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow's decoders raise whatever comes of damaged bytes
        return name, digest, None
    small = upright.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(upright.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return name, digest, (int.from_bytes(bits.tobytes(), "big"), np.asarray(small, dtype=np.int16))
