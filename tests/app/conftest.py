"""The page, served once on a free port: over the model that was trained for the tests, and over a
toy that says what it is told to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..chat.test_session import Echo
from .browsing import launch_browser


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


class Toy(Echo):
    """Answers several at once: how many messages it was given, with how many pictures of which
    size, and the question. `go` holds answers back after the first word while it is not set.
    """

    name, window, places = "toy", 4096, 4

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()
        self.seen: list[list[Any]] = []

    def attention_map(self, messages: Any, seen: Any) -> Any:
        return np.eye(4)

    def stream(  # type: ignore[override]
        self, messages: Any, seen: Sequence[Any], sampling: Any, stop: threading.Event, owner: Any
    ) -> Iterator[str]:
        self.given.append(list(messages))
        self.seen.append(list(seen))
        yield f"{len(messages)} messages, "
        while not self.go.wait(0.05):
            if stop.is_set():
                return
        yield f"pictures {[*seen]}: {messages[-1].text.split(chr(10))[-1]}"


class ToyPage:
    """A page over `Toy`, and pictures to show on it."""

    def __init__(self, folder: Path) -> None:
        from phisense.app import Example, build, launch

        self.engine = Toy()
        shown = [make_picture(folder / f"example-{n}.png", 100 + n) for n in range(4)]
        questions = ("What is it?", "Describe the picture.", "How many things are there?")
        self.picture = make_picture(folder / "picture.png", 200)
        self.page = build(self.engine, None, [Example(path, questions) for path in shown])
        _, self.url, _ = launch(self.page, port=0, block=False)


def make_picture(path: Path, width: int) -> Path:
    """A picture that its width tells from others."""
    Image.linear_gradient("L").resize((width, 80)).convert("RGBA").save(path)
    return path


@pytest.fixture(scope="session")
def toy_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyPage]:
    made = ToyPage(tmp_path_factory.mktemp("toy"))
    yield made
    made.page.close()


@pytest.fixture
def toy(toy_page: ToyPage) -> Iterator[ToyPage]:
    toy_page.engine.given.clear()
    toy_page.engine.seen.clear()
    yield toy_page
    toy_page.engine.go.set()


@pytest.fixture(scope="module")  # not longer: while it is open, this thread has an event loop
def sync() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chromium(sync: Any) -> Iterator[Any]:
    started = launch_browser(sync)
    yield started
    started.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """Without profiles in the beginning, and in the end."""
    yield chromium
    for context in list(chromium.contexts):
        context.close()
