"""The pages as a site, the reference as the code has it, and the troubles that are named as they
are named.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..conftest import ROOT

DOCS = ROOT / "docs"


def generator(name: str = "generate") -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["reference-recipe.md", "reference-commands.md"])
def test_the_reference_is_current(page: str) -> None:
    assert (DOCS / page).read_text() == generator().PAGES[page](), "run make docs"


def test_the_python_reference_is_current() -> None:
    page = generator("reference_python")
    assert (DOCS / page.PAGE).read_text() == page.reference(), "run make docs"


def test_every_public_name_and_what_it_raises_is_in_the_python_reference() -> None:
    import phisense

    text = (DOCS / "reference-python.md").read_text()
    for name in phisense.__all__:
        assert name == "__version__" or f"### {name}\n" in text
    for step in ("check", "encode_features", "train", "merge", "evaluate", "export"):
        entry = text.split(f"### {step}\n")[1].split("\n### ")[0]
        assert f"```python\ndef {step}(" in entry
        assert "Raises " in entry


def test_the_python_reference_notices_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    import phisense

    page = generator("reference_python")
    monkeypatch.setattr(phisense.Notice, "__doc__", "Another.")
    assert (DOCS / page.PAGE).read_text() != page.reference()
    monkeypatch.setattr(phisense, "__all__", [*phisense.__all__, "new"])
    with pytest.raises(AssertionError, match="lacks \\['new'\\]"):
        page.reference()


def test_the_reference_has_every_key_and_what_it_is() -> None:
    from pydantic import BaseModel

    from phisense.recipe import Recipe

    text = (DOCS / "reference-recipe.md").read_text()

    def sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
        yield path, model
        for name, field in model.model_fields.items():
            if (inner := generator()._section_in(field.annotation)) is not None:
                yield from sections(inner, f"{path}.{name}".lstrip("."))

    for path, model in sections(Recipe, ""):
        for name, field in model.model_fields.items():
            assert f"| `{name}` |" in text, f"{path}.{name}"
            assert field.description, f"{path}.{name} has no description"
    assert "| `window` | whole number, ≥ 64, ≤ 32768 | `4096` |" in text
    assert "| `pool` | `1` or `2` or `3` | `1` |" in text


def test_the_reference_notices_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from phisense.recipe import Language

    monkeypatch.setattr(Language.model_fields["window"], "default", 2048)
    assert (DOCS / "reference-recipe.md").read_text() != generator().recipe_keys()


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip(
        "material", reason="mkdocs-material is not installed (pip install 'phisense[docs]')"
    )
    ran = _build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert ran.returncode == 0, ran.stderr
    pages = {page.stem for page in DOCS.glob("*.md")}
    for page in pages:
        assert (tmp_path / "site" / ("" if page == "index" else page) / "index.html").is_file()
    assert not list((tmp_path / "site").rglob("*.py"))
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"""<(?:link|script|img|iframe)[^>]+(?:src|href)=["']?(https?:)?//""", page.read_text()
        )
        assert not loaded, f"{page}: a reader's browser would fetch from elsewhere"
    assert "@import url(http" not in "".join(
        style.read_text() for style in (tmp_path / "site").rglob("*.css")
    )


def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    pytest.importorskip(
        "material", reason="mkdocs-material is not installed (pip install 'phisense[docs]')"
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[gone](gone.md)\n")
    config = {**yaml.safe_load((ROOT / "mkdocs.yml").read_text()), "nav": [{"Start": "index.md"}]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    ran = _build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert ran.returncode != 0
    assert "gone.md" in ran.stderr


def _build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(out),
    ]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    return subprocess.run(words, capture_output=True, text=True, check=False, env=env)


def test_every_page_is_in_the_sites_menu() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in (
            entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
        ):
            yield from pages(inner)

    assert sorted(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == sorted(
        page.name for page in DOCS.glob("*.md")
    )


def test_the_predicted_memory_is_what_doctor_predicts() -> None:
    from phisense.doctor import find_devices, make_plan
    from phisense.recipe import load_recipe

    def predicted(recipe: str, size: str) -> dict[str, str]:
        return {
            step.peak.step: f"{step.peak.total / 1e9:.1f} GB"
            for step in make_plan(load_recipe(recipe), find_devices(None, size)[0]).steps
        }

    small, large = predicted("phi3.5-clip-l336-16gb", "16GB"), predicted("phi3.5-clip-l336", "24GB")
    table = dict(
        re.findall(
            r"^\| (align|instruct|merge|evaluate|chat) \| ([\d.]+ GB) \|$",
            (DOCS / "howto-16gb.md").read_text(),
            re.M,
        )
    )
    assert table == small
    assert (
        f"| {large['align']}, {large['instruct']} | {small['align']}, {small['instruct']} |"
        in (ROOT / "README.md").read_text()
    )


@cache
def said() -> frozenset[str]:
    """Every text of the source, with an ellipsis where something is put in."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


def is_said(trouble: str) -> bool:
    return any(trouble in text for text in said())


def test_every_trouble_is_one_that_the_source_names() -> None:
    troubles = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.M)
    assert len(troubles) >= 30
    assert len(set(troubles)) == len(troubles)
    for trouble in troubles:
        assert is_said(trouble), f"no error says {trouble!r} any more"
    assert not is_said("there is no cookbook …"), "the control"
    assert not is_said("the part … was never found")
