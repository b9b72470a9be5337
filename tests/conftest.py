"""What many tests share: tiny parts with random weights, a little practice world, and one run that was really trained and merged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).parent.parent
FIXTURES = Path(os.environ.get("PHISENSE_FIXTURES", ROOT.parent / "shared" / "fixtures"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache alone."""
    os.environ["PHISENSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not FIXTURES.is_dir():
        pytest.skip(f"no fixtures: {FIXTURES} does not exist (set PHISENSE_FIXTURES)")
    return FIXTURES


@pytest.fixture(scope="session")
def verb() -> Any:
    from phisense.cli import run_verb

    return run_verb


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Language and vision parts with random weights, of the real classes."""
    from .tiny import make_language, make_vision

    folder = tmp_path_factory.mktemp("parts")
    return str(make_language(folder / "language")), str(make_vision(folder / "vision"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `data/`: few scenes of the practice world."""
    from phisense.practice.dataset import Sizes, write_world

    root = tmp_path_factory.mktemp("world")
    write_world(root / "data", seed=5, sizes=Sizes(train=1600, heldout=120, combinations=40, digits=40))
    return root


@pytest.fixture(scope="session")
def settings(world: Path) -> tuple[str, ...]:
    """The practice recipe on the little world, shortened."""
    return ("--set", f"root={world}", "--set", "train.instruct.epochs=1", "--set", "merge.samples=96")


@pytest.fixture(scope="session")
def trained(world: Path, settings: tuple[str, ...], verb: Any) -> dict[str, Any]:
    """features and train, by the verbs; the run's facts."""
    verb("features", "practice", *settings)
    facts: dict[str, Any] = verb("train", "practice", *settings)
    return facts


@pytest.fixture(scope="session")
def merged(trained: dict[str, Any], verb: Any) -> dict[str, Any]:
    """merge, by the verb: its report, and the folder under `model`."""
    report: dict[str, Any] = verb("merge", trained["run"])
    return report


@pytest.fixture(scope="session")
def model(merged: dict[str, Any]) -> Path:
    return Path(merged["model"])
