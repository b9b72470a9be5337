"""The glossary names files that exist and what they define; and what readers look for is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ..conftest import ROOT

SOURCE = ROOT / "src" / "phisense"
ROW = re.compile(r"^\| ([^|]+) \| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", re.M)
LOOKED_FOR = (
    "KV cache", "prefill", "image token", "detokenizer", "packing", "sampling", "rate limit",
    "LoRA", "attention map", "engine", "projector", "vision encoder", "checkpoint",
)  # fmt: skip


def rows(text: str) -> list[tuple[str, str, str]]:
    """Term, file, name."""
    return ROW.findall(text)


def defined(path: Path) -> set[str]:
    """The names that a module defines at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def wrong(text: str) -> list[str]:
    """Terms whose file is not there or does not define the name."""
    return [
        term
        for term, file, name in rows(text)
        if not (SOURCE / file).is_file() or name not in defined(SOURCE / file)
    ]


GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()


def test_every_term_leads_to_code() -> None:
    assert wrong(GLOSSARY) == []
    tables = [line for line in GLOSSARY.split("\n") if line.startswith("|")]
    assert len(rows(GLOSSARY)) == len([line for line in tables if "`" in line])


@pytest.mark.parametrize(
    "row",
    [
        "| a | b | `model/nowhere.py` | `main` |",
        "| a | b | `prompt.py` | `NoSuchName` |",
    ],
)
def test_a_wrong_row_is_found_out(row: str) -> None:
    assert wrong(row) == ["a"]


@pytest.mark.parametrize("term", LOOKED_FOR)
def test_what_readers_look_for_is_there(term: str) -> None:
    assert any(term.lower() in found.lower() for found, _, _ in rows(GLOSSARY)), term


def test_a_term_stands_once() -> None:
    terms = [term for term, _, _ in rows(GLOSSARY)]
    assert len(set(terms)) == len(terms)
