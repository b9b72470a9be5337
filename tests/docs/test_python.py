"""The page and the notebook about Python run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ..conftest import ROOT
from .test_commands import copy_of

PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "notebooks" / "first-steps.ipynb"


def fences(page: Path) -> list[str]:
    """The Python of a page, with empty lines before it, so that an error names the page's line."""
    return [
        "\n" * (token.map[0] + 1) + token.content
        for token in MarkdownIt().parse(page.read_text())
        if token.type == "fence" and token.info.strip() == "python" and token.map is not None
    ]


def cells() -> list[str]:
    """The code cells, without those that only a notebook can run."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
    return [source for source in sources if not source.startswith("%")]


def execute(blocks: list[str], name: str) -> dict[str, Any]:
    """Runs the blocks one after another, in one namespace, which is returned."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
    return namespace


@pytest.mark.slow
def test_the_page_runs(
    road: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_of(road[0], tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    left = execute(fences(PAGE), PAGE.name)
    told = capsys.readouterr().out
    assert "rows can be used" in told
    assert "of 60 right" not in told
    assert "% without the image" in told, "held-out questions were shown"
    assert "demo/runs/short" in told, "the error names the run that is there already"
    assert 0 <= left["report"].real.accuracy.low <= left["report"].real.accuracy.high <= 1


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    left = execute(cells(), NOTEBOOK.name)
    assert left["report"].questions == 40
    assert (tmp_path / "first-steps" / "report" / "report.html").is_file()


def test_the_notebook_is_stored_without_outputs() -> None:
    found = json.loads(NOTEBOOK.read_text())
    assert (found["nbformat"], len(cells())) == (4, 3)
    for cell in found["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_an_error_of_a_page_names_its_line() -> None:
    """The control: a fence that fails is told by the line of the page."""
    with pytest.raises(ZeroDivisionError) as error:
        execute(["x = 1", "\n\n1 / 0"], "page.md")
    assert error.traceback[-1].lineno + 1 == 3
