"""What a verb returns is typed, and its JSON is made in one place."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import ClassVar

import pytest

import phisense
from phisense.cli import app
from phisense.cli.common import VerbResult
from phisense.cli.rendering import to_json
from phisense.evaluation.results import EvaluationReport
from phisense.pipeline.results import FolderResult

SOURCE = Path(phisense.__file__).parent
#: Functions whose dictionaries are others': keyword arguments, state of an optimizer, documents.
MOST_UNTYPED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(FolderResult):
    PLACE: ClassVar[str] = "thing"

    number: int


def test_the_json_of_a_result_begins_with_what_was_written() -> None:
    made = Made(folder=Path("there"), number=3)
    assert to_json(made) == {"thing": "there", "number": 3}
    assert to_json([made, made]) == [{"thing": "there", "number": 3}] * 2
    report = EvaluationReport("own", "accuracy", 1, 1, {}, folder=Path("there"))
    found = to_json(report)
    assert isinstance(found, dict)
    assert next(iter(found.items())) == ("report", str(Path("there") / "report.html"))
    assert to_json(None) is None


@pytest.mark.parametrize(
    "name", [one.name or one.callback.__name__ for one in app.registered_commands if one.callback]
)
def test_a_verb_with_json_returns_a_typed_result(name: str) -> None:
    verb = next(
        one.callback
        for one in app.registered_commands
        if one.callback and name == (one.name or one.callback.__name__)
    )
    hints = get_annotations(verb, eval_str=True)
    if "json" in hints:
        assert hints["return"] in (VerbResult, Sequence[VerbResult])


def untyped(source: str) -> list[str]:
    """The functions of a module that return `dict[str, Any]`."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.returns is not None
        and ast.unparse(node.returns).startswith("dict[str, Any]")
    ]


def test_results_are_typed() -> None:
    found = {
        path.relative_to(SOURCE).as_posix(): names
        for path in sorted(SOURCE.rglob("*.py"))
        if (names := untyped(path.read_text()))
    }
    assert sum(map(len, found.values())) <= MOST_UNTYPED, found
    assert untyped("def facts() -> dict[str, Any]: ...\ndef figure() -> float: ...") == ["facts"]
