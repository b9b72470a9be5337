"""Digests of image files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...conversations import ImageFinder
from ...errors import ImageError
from ...pipeline.progress import OnEvent, Progress


def image_digest(path: Path, name: str) -> str:
    """BLAKE2b digest of an image file. Raises ImageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise ImageError(f"the picture {name} cannot be read", got=error.strerror) from error


def image_digests(names: Sequence[str], images: ImageFinder, on_event: OnEvent) -> dict[str, str]:
    """The digest of each image, by name."""
    found = {}
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: image_digest(images.path(name), name), names)
        for done, (name, value) in enumerate(zip(names, digests, strict=True), 1):
            found[name] = value
            if not done % 256 or done == len(names):
                on_event(Progress("finding pictures", done, len(names), "images"))
    return found


__all__ = ["image_digest", "image_digests"]
