"""The page, served once on a free port, over the model that was trained for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def url(model: Path, world: Path) -> Iterator[str]:
    from phisense.app import build, find_examples, launch
    from phisense.chat.torch_engine import TorchEngine
    from phisense.practice.spoken import RECORDINGS_FOLDER
    from phisense.speech import Transcriber

    examples = find_examples(world / "data" / "heldout.jsonl", world / "data" / "images")
    page = build(
        TorchEngine.open(model, "cpu"), Transcriber(RECORDINGS_FOLDER.parent / "speech"), examples
    )
    _, address, _ = launch(page, port=0, block=False)
    yield address
    page.close()
