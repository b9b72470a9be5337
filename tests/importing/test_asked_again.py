"""An import whose figures fail is measured twice: a fault of the import stays, one of the machine
does not; the report says which.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from phisense.errors import PartError
from phisense.importing import importer as importing
from phisense.importing.probes import Probes

from . import made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = made.plain(
        made.make_whole(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("plain") / "base"
    )
    return made.adapter(
        whole, tmp_path_factory.mktemp("adapter") / "trained", ["o_proj", "down_proj"]
    )


def disturb(monkeypatch: pytest.MonkeyPatch, *wrong: int) -> list[int]:
    """The answers of these numbers, in the order of asking, are off by a little."""
    asked: list[int] = []
    plain = Probes.logits

    def logits(*args: Any) -> Any:
        asked.append(len(asked))
        found = plain(*args)
        return (
            [one + 0.01 * one.std() * torch.randn_like(one) for one in found]
            if asked[-1] in wrong
            else found
        )

    monkeypatch.setattr(Probes, "logits", logits)
    return asked


def test_what_fits_is_asked_once(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = disturb(monkeypatch)
    report = importing.import_folder(str(adapter), tmp_path / "out", device="cpu")
    assert len(asked) == 2
    assert report.asked_again is None


@pytest.mark.parametrize(("wrong", "moved"), [(0, "source_moved"), (1, "written_moved")])
def test_a_fault_that_does_not_come_again(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, moved: str
) -> None:
    asked = disturb(monkeypatch, wrong)
    importing.import_folder(str(adapter), tmp_path / "out", device="cpu")
    report = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert len(asked) == 4
    assert report["largest_difference"] < 1e-4
    again = report["asked_again"]
    assert again["first_difference"] > 1e-3
    other = {"source_moved": "written_moved", "written_moved": "source_moved"}[moved]
    assert again[moved] > 1e-3 > 1e-4 > again[other], "which of the two it was"


@pytest.mark.parametrize("wrong", [(0, 3), (1, 2), (1, 3), (0, 1, 2, 3)])
def test_a_fault_that_comes_again_is_one_of_the_import(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, ...]
) -> None:
    disturb(monkeypatch, *wrong)
    with pytest.raises(
        PartError,
        match=(
            r"so it was not written; got a logit .* off.*; before .*, the source .* off itself,"
            r" what was written"
        ),
    ):
        importing.import_folder(str(adapter), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_other_pixels_are_asked_once(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pictures that are prepared otherwise, other answers are no riddle, and the source is not
    opened again.
    """
    asked = disturb(monkeypatch, 1)
    prepared = importing._preprocess
    monkeypatch.setattr(importing, "_preprocess", lambda *args: prepared(*args) + 0.5)
    with pytest.raises(PartError, match="so it was not written"):
        importing.import_folder(str(adapter), tmp_path / "out", device="cpu")
    assert len(asked) == 2
