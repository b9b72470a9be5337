"""Seven pictures and an encoder, of which the tests of the feature store make stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phisense.vision.encoders.encode import Encoder

NAMES = [f"{i}.png" for i in range(7)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def encoder(parts: tuple[str, str]) -> Encoder:
    return Encoder(parts[1])
