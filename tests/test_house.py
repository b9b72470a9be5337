"""What surrounds the code: workflows, hooks, forms and versions agree with each other."""

from __future__ import annotations

import ast
import copy
import re
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from . import conftest
from .conftest import ROOT

GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PREFIX = "Programming Language :: Python :: 3."
Workflow = dict[Any, Any]


def classifiers() -> set[str]:
    return {
        f"3.{found.removeprefix(PREFIX)}"
        for found in PROJECT["classifiers"]
        if found.startswith(PREFIX)
    }


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def pins() -> dict[str, str]:
    """Names, normalised, and versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def requirements() -> list[Requirement]:
    groups = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    found = [Requirement(text) for group in groups for text in group]
    return [one for one in found if one.name != "phisense"]


@pytest.fixture(scope="module")
def workflow() -> Workflow:
    read: Workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
    return read


def steps(workflow: Workflow) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def pythons(workflow: Workflow) -> set[str]:
    """Versions that jobs set up, those of their matrices included."""
    named = {
        step["with"]["python-version"]
        for step in steps(workflow)
        if "python-version" in step.get("with", {})
    }
    matrices = [job.get("strategy", {}).get("matrix", {}) for job in workflow["jobs"].values()]
    return {one for one in named if not one.startswith("${{")} | {
        one for matrix in matrices for one in matrix.get("python", [])
    }


def defects(workflow: Workflow) -> list[str]:
    """What is wrong with a workflow."""
    found = []
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("permissions")
    if "group" not in workflow.get("concurrency", {}):
        found.append("concurrency")
    for step in steps(workflow):
        if "uses" in step and not re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]):
            found.append(f"not pinned to a major version: {step['uses']}")
        made = re.findall(r"\bmake ((?:(?!&&|\||;)[^\n])*)", step.get("run", ""))
        named = [word for words in made for word in words.split() if "=" not in word]
        found += [f"no target: {target}" for target in named if target not in targets()]
    found += [f"no classifier: {one}" for one in sorted(pythons(workflow) - classifiers())]
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    found += [f"not tested: {one}" for one in sorted(classifiers() - set(tested))]
    found += [
        f"unlimited: {name}"
        for name, job in workflow["jobs"].items()
        if not job.get("timeout-minutes")
    ]
    return found


def test_the_workflow_is_sound(workflow: Workflow) -> None:
    assert defects(workflow) == []
    called = {step["run"].split()[1] for step in steps(workflow) if "run" in step}
    assert called == {"check", "test", "test-lowest", "wheel"}
    assert workflow[True].keys() >= {"push", "pull_request"}  # YAML 1.1 reads `on` as true


def _drop_permissions(workflow: Workflow) -> None:
    workflow["permissions"] = "write-all"


def _unpin(workflow: Workflow) -> None:
    workflow["jobs"]["check"]["steps"][0]["uses"] = "actions/checkout@main"


def _misname(workflow: Workflow) -> None:
    workflow["jobs"]["check"]["steps"][-1]["run"] = "make coffee PYTHON=python"


def _old_python(workflow: Workflow) -> None:
    workflow["jobs"]["test"]["strategy"]["matrix"]["python"] = ["3.10", "3.11", "3.12", "3.13"]


def _one_python(workflow: Workflow) -> None:
    workflow["jobs"]["test"]["strategy"]["matrix"]["python"] = ["3.11", "3.12"]


def _no_limit(workflow: Workflow) -> None:
    del workflow["jobs"]["test"]["timeout-minutes"]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_drop_permissions, "permissions"),
        (_unpin, "not pinned to a major version: actions/checkout@main"),
        (_misname, "no target: coffee"),
        (_old_python, "no classifier: 3.10"),
        (_one_python, "not tested: 3.13"),
        (_no_limit, "unlimited: test"),
    ],
)
def test_a_damaged_workflow_is_found_out(
    workflow: Workflow, damage: Callable[[Workflow], None], found: str
) -> None:
    changed = copy.deepcopy(workflow)
    damage(changed)
    assert found in defects(changed)


def test_classifiers_are_what_requires_python_admits() -> None:
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert all(version in admitted for version in classifiers())
    lowest = min(classifiers(), key=Version)
    assert PROJECT["requires-python"] == f">={lowest}"


def test_every_requirement_has_a_lowest_version() -> None:
    """Without one the job on the lowest versions would install the first release ever made."""
    bare = [str(one) for one in requirements() if not re.search(r">=", str(one.specifier))]
    assert bare == []


def test_pinned_versions_are_in_the_ranges() -> None:
    pinned = pins()
    for one in requirements():
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        assert pinned[name] in one.specifier, f"{one}: constraints.txt has {pinned[name]}"


HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\S+))?$", re.M)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def changelog_defects(text: str, version: str) -> list[str]:
    """What is wrong with a changelog while the project is at `version`."""
    headings = [(found["name"], found["date"]) for found in HEADING.finditer(text)]
    if len(headings) != len(re.findall(r"^## ", text, re.M)):
        return ["a heading of another form"]
    if not headings or headings[0] != ("Unreleased", None):
        return ["no Unreleased section at the top"]
    released = [Version(name) for name, _ in headings[1:]]
    found = []
    try:
        dates = [date.fromisoformat(day or "") for _, day in headings[1:]]
    except ValueError:
        return ["a release without a date"]
    if released != sorted(set(released), reverse=True) or dates != sorted(dates, reverse=True):
        found.append("releases out of order")
    unreleased = HEADING.split(text)[3]
    coming = re.search(r"^To be released as (\S+)\.$", unreleased, re.M)
    if (Version(coming[1]) if coming else released[0]) != Version(version):
        found.append(f"not the changelog's version: {version}")
    if coming and Version(coming[1]) <= released[0]:
        found.append(f"released already: {coming[1]}")
    return found + sorted(set(re.findall(r"^### (.+)$", unreleased, re.M)) - KINDS)


def test_the_changelog_is_dated_and_says_the_version() -> None:
    text, version = (ROOT / "CHANGELOG.md").read_text(), PROJECT["version"]
    assert changelog_defects(text, version) == []
    assert changelog_defects(text, "9.9.9") == ["not the changelog's version: 9.9.9"]


GOOD = "## [Unreleased]\n\nTo be released as 0.2.0.\n\n### Fixed\n\n## [0.1.0] - 2026-01-02\n"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", []),
        ("To be released as 0.2.0.\n", "", ["not the changelog's version: 0.2.0"]),
        ("[0.1.0]", "[0.3.0]", ["released already: 0.2.0"]),
        ("[0.1.0] - 2026-01-02", "[0.1.0]", ["a release without a date"]),
        ("[0.1.0] - 2026-01-02", "0.1.0", ["a heading of another form"]),
        ("## [Unreleased]\n", "", ["no Unreleased section at the top"]),
        ("Fixed", "Mended", ["Mended"]),
        (
            "## [0.1.0]",
            "## [0.0.9] - 2026-01-01\n\n## [0.1.0]",
            ["releases out of order"],
        ),
    ],
)
def test_defects_of_a_changelog_are_found(old: str, new: str, found: list[str]) -> None:
    assert changelog_defects(GOOD.replace(old, new) if old else GOOD, "0.2.0") == found


def hooked(text: str) -> str:
    """The version of ruff that pre-commit runs."""
    repos = yaml.safe_load(text)["repos"]
    (ruff,) = [repo for repo in repos if repo["repo"].endswith("/ruff-pre-commit")]
    return str(ruff["rev"]).removeprefix("v")


def test_hooks_run_the_pinned_ruff() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert hooked(text) == pins()["ruff"]
    assert hooked(re.sub(r"rev: v.*", "rev: v0.0.1", text)) != pins()["ruff"]


def form_defects(form: dict[str, Any]) -> list[str]:
    """What GitHub would refuse in an issue form."""
    found = [key for key in ("name", "description", "body") if not form.get(key)]
    asked = [field for field in form.get("body", []) if field["type"] != "markdown"]
    found += [
        f"no label: {field.get('id')}" for field in asked if not field["attributes"].get("label")
    ]
    named = [field.get("id") for field in asked]
    if None in named or len(set(named)) < len(named):
        found.append("ids")
    return found


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_are_sound(name: str) -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / name).read_text())
    assert form_defects(form) == []
    form["body"][-1].pop("id")
    assert form_defects(form) == ["ids"]


def test_a_bug_report_asks_for_what_is_needed() -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    asked = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert {"version", "command", "doctor"} <= asked
    assert "phisense doctor --json" in (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text()


def test_files_that_are_named_exist() -> None:
    for page in (ROOT / "SECURITY.md", GITHUB / "pull_request_template.md"):
        text = page.read_text()
        named = re.findall(r"`([\w/.-]+\.(?:md|py|toml|txt))`|\]\(([\w/.-]+\.md)\)", text)
        assert named
        for path in (one or other for one, other in named):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"


class Item:
    """What the hook asks of a test."""

    def __init__(self, *fixtures: str) -> None:
        self.fixturenames = fixtures
        self.marked: list[Any] = []

    def get_closest_marker(self, name: str) -> Any:
        return next((one for one in self.marked if one.name == name), None)

    def add_marker(self, marker: Any) -> None:
        self.marked.append(marker)


def test_what_looks_at_the_trained_road_is_slow_and_first() -> None:
    quick, looks, again = Item("tmp_path"), Item("road", "model"), Item("road")
    items: list[Any] = [quick, looks, again]
    again.add_marker(pytest.mark.slow)
    conftest.pytest_collection_modifyitems(items)
    assert items == [looks, again, quick]
    assert [[mark.name for mark in one.marked] for one in items] == [["slow"], ["slow"], []]


def test_training_without_the_marker_is_refused() -> None:
    with pytest.raises(pytest.fail.Exception, match="must carry the marker slow"):
        conftest.refuse_training()


#: Modules outside the command line that still print for themselves; each must lose its line here.
PRINTING = {
    "chat/terminal.py",  # the chat of the command line, on a terminal that it is given
    "evaluation/benchmark_images.py",
    "evaluation/benchmark_io.py",
}
#: What console.py has for texts and JSON, and prints nothing.
SILENT = {"escape_controls", "json_bytes"}


def printing(source: str) -> set[str]:
    """What a module uses of `console` that prints."""
    if "console" not in source:
        return set()
    tree = ast.parse(source)
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == "console"
        for alias in node.names
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "console"
    }
    return (imported | used) - SILENT


def test_only_the_command_line_prints() -> None:
    """The library logs; `phisense` the program shows what is logged."""
    source = ROOT / "src" / "phisense"
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if path.name != "console.py" and printing(path.read_text())
    }
    assert {path for path in found if not path.startswith("cli/")} == PRINTING


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from .. import console\nconsole.err.print('so')", {"err"}),
        ("from ..console import escape_controls, print_table", {"print_table"}),
        ("from .. import console\nconsole.escape_controls('so')", set()),
        ("import logging\nlogging.getLogger(__name__).info('so')", set()),
    ],
)
def test_printing_is_found_out(source: str, found: set[str]) -> None:
    assert printing(source) == found
