"""The source that several test files import from."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native LLaVA folder with random weights."""
    return made.make_whole(tmp_path_factory.mktemp("whole"))
