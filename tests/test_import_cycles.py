"""No module of the package imports itself through others, also not by a deferred import or one for
types alone: what a file needs can be read before the file.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of the package in `root`, and the modules of it that it imports anywhere."""
    files = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in root.rglob("*.py")
    }
    return {
        name: {found for found in _imports(name, path, files) if found != name}
        for name, path in files.items()
    }


def _imports(name: str, path: Path, files: dict[str, Path]) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in files else source)
    return {one for one in found if one in files}


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph(ROOT / "src" / "phisense")
    assert len(graph) > 100
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "line",
    [
        "from .b import B",
        "def f():\n    from . import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.b import B",
        "import toy.b",
    ],
    ids=["at the top", "deferred", "for types", "absolute"],
)
def test_control_a_cycle_of_each_kind_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").touch()
    (tmp_path / "toy" / "a.py").write_text(line)
    (tmp_path / "toy" / "b.py").write_text("B = 1")
    list(TopologicalSorter(import_graph(tmp_path / "toy")).static_order())
    (tmp_path / "toy" / "b.py").write_text("from .a import A")
    with pytest.raises(CycleError):
        list(TopologicalSorter(import_graph(tmp_path / "toy")).static_order())
