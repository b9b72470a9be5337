"""A feature store of full scale, by a stub encoder: built, verified, and read at random. `python
bench/store.py --help`

81,479 pictures of 144 tokens of 1,024 in int8 need 12 GB of disk. The stub makes features by seed,
so that what is read back can be compared with what was written. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from phisense import artifacts
from phisense.conversations import ImageFinder
from phisense.vision.store import FeatureStore, encode_images
from phisense.vision.store.contents import STORE_KIND


class Stub:
    """An encoder whose features follow from the picture's first pixel, which numbers it."""

    fingerprint, device = "stub", "cpu"

    def __init__(self, tokens: int, width: int) -> None:
        self.patches, self.width = tokens, width
        self.facts: dict[str, Any] = {
            "weights": "none",
            "layer": 0,
            "processor": f"{tokens} x {width}",
            "libraries": "none",
        }
        self.base = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0))

    def of(self, number: int) -> torch.Tensor:
        return self.base.roll(number, 1) * (1 + number % 7)

    def encode(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        numbers = [
            r << 16 | g << 8 | b for r, g, b in (picture.getpixel((0, 0)) for picture in pictures)
        ]
        return torch.stack([self.of(number) for number in numbers])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=81_479)
    parser.add_argument("--tokens", type=int, default=144)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument(
        "--batch", type=int, default=16, help="pictures in a read, as a training step takes them"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as at:
        print(json.dumps(run(Path(at), asked)))


def run(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    encoder: Any = Stub(asked.tokens, asked.width)
    images = folder / "images"
    images.mkdir()
    for i in range(asked.pictures):
        Image.new("RGB", (2, 2), (i >> 16, i >> 8 & 255, i & 255)).save(images / f"{i:06d}.bmp")
    names = [f"{i:06d}.bmp" for i in range(asked.pictures)]
    started = time.monotonic()
    pictures = ImageFinder([images])
    encode_images(
        folder / "store",
        encoder,
        names,
        pictures,
        dtype=asked.dtype,
        batch=64,
        shard=512,
        on_event=lambda event: None,
    )
    built = time.monotonic() - started
    size = sum(path.stat().st_size for path in (folder / "store").iterdir())
    started = time.monotonic()
    artifacts.read_manifest(folder / "store", kind=STORE_KIND, verify=True)
    verified = time.monotonic() - started
    started = time.monotonic()
    store = FeatureStore(folder / "store", facts=encoder.facts, dtype=asked.dtype)
    opened = time.monotonic() - started
    rng = random.Random(0)
    shuffled = rng.sample(names, len(names))
    started = time.monotonic()
    for i in range(0, len(shuffled), asked.batch):
        store.batch(shuffled[i : i + asked.batch])  # as a first epoch does: every row is verified
    first = time.monotonic() - started
    chosen = [rng.sample(names, asked.batch) for _ in range(asked.reads // asked.batch)]
    started = time.monotonic()
    for some in chosen:
        store.batch(some)
    reading = time.monotonic() - started
    worst = max(apart(store, encoder, name) for name in rng.sample(names, 200))
    return {
        "pictures": asked.pictures,
        "gigabytes": round(size / 1e9, 2),
        "build_s": round(built, 1),
        "verify_s": round(verified, 1),
        "open_s": round(opened, 2),
        "first_read_s": round(first, 1),
        "random_pictures_per_s": round(asked.reads / reading),
        "largest_error_of_token_max": round(worst, 5),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def apart(store: FeatureStore, encoder: Stub, name: str) -> float:
    """The largest difference from what was encoded, as a share of its token's largest value."""
    wanted = encoder.of(int(name[:6]))
    return float(
        ((store.features(name).float() - wanted).abs() / wanted.abs().amax(-1, keepdim=True)).max()
    )


if __name__ == "__main__":
    main()
