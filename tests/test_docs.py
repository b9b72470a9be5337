"""The documents say what is so: the map lists every file, the verbs exist, the version is the
changelog's.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from .conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_map_names_every_file_and_nothing_else() -> None:
    named = set(re.findall(r"^\| `(src/phisense/[^`]+)` \|", README, re.M))
    source = ROOT / "src" / "phisense"
    present = {
        f"src/phisense/{p.name}/"
        for p in source.iterdir()
        if p.is_dir() and p.name != "__pycache__"
    }
    present |= {
        f"src/phisense/{p.name}" for p in source.glob("*.py") if not p.name.startswith("__")
    }
    assert named == present


def test_every_verb_of_the_readme_exists() -> None:
    from phisense.cli import app

    verbs = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    assert set(re.findall(r"^\| `phisense (\w+)", README, re.M)) == verbs


def test_links_and_pictures_are_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_dependency_has_its_row() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [
        d
        for group in (project["dependencies"], *project["optional-dependencies"].values())
        for d in group
    ]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for dependency in named:
        name = re.split(r"[<>=\[ ]", dependency)[0]
        assert name in text or name in ("phisense", "types-pyyaml"), name


def test_a_template_is_written_in_its_family_alone() -> None:
    """`<|user|>` appears in the files of the language families, and where `prompt.py` draws what it
    renders: nothing else knows a template.
    """
    src = ROOT / "src" / "phisense"
    found = {p.relative_to(src) for p in src.rglob("*.py") if "<|user|>" in p.read_text()}
    assert found == {Path("prompt.py"), Path("families/phi3.py"), Path("families/phi4_mini.py")}
    code = ast.parse((src / "prompt.py").read_text())
    code.body = code.body[1:]  # without the module's docstring
    assert "<|user|>" not in ast.unparse(code)


def test_the_parts_are_small_safe_and_shipped() -> None:
    parts = ROOT / "src" / "phisense" / "practice" / "parts"
    files = [p for p in parts.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files if "spoken" not in p.parts) <= 15e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".flac", ".txt"}
    assert {p.name for p in parts.iterdir()} == {"language", "vision", "speech", "spoken"}
