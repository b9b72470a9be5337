"""Records: what is written is read again, and what is missing or wrong is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from phisense.errors import ArtifactError
from phisense.intervals import Interval
from phisense.pipeline.json_fields import JsonObject
from phisense.pipeline.records import Record, key, local, omitted, rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Record):
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer(Record):
    folder: Path = local(default=Path())
    text: str
    share: float | None
    renamed: bool = key("told")
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = omitted()
    many: tuple[Inner, ...] = ()
    pairs: tuple[tuple[int, float], ...] = ()
    table: Mapping[str, Inner]
    value: str | int | float | bool | None = None
    interval: Interval | None = None
    extra: JsonObject = rest()


DOCUMENT: dict[str, Any] = {
    "text": "x",
    "share": 0.5,
    "told": True,
    "kind": "b",
    "inner": {"number": 1},
    "many": [{"number": 2}, {"number": 3}],
    "pairs": [[0, 0.25]],
    "table": {"one": {"number": 4}},
    "value": 1.5,
    "interval": {"value": 1.0, "low": 0.0, "high": 2.0},
    "later": {"of": ["another", "version"]},
}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in DOCUMENT.items() if key != name}


def test_a_document_is_read_and_written_again() -> None:
    found = Outer.from_dict(DOCUMENT)
    assert found.renamed
    assert found.table["one"].number == 4
    assert found.extra == {"later": {"of": ["another", "version"]}}
    assert found.to_dict() == DOCUMENT
    assert Outer.from_dict(found.to_dict()) == found


def test_what_may_be_missing() -> None:
    found = Outer.from_dict({"text": "x", "share": None, "told": False, "table": {}})
    assert (found.inner, found.many, found.kind) == (None, (), "a")
    assert "inner" not in found.to_dict()
    assert found.to_dict()["share"] is None


@pytest.mark.parametrize("name", ["text", "share", "told", "table"])
def test_a_missing_key_is_one_sentence(name: str) -> None:
    """The control: each required key that is missing is named, with those that are there."""
    with pytest.raises(ArtifactError, match=rf"a.json lacks {name}; got .*later"):
        Outer.from_dict(without(name), "a.json")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("text", 1, "a.json: text is of another type; got 1; wanted a text"),
        ("share", "half", "a.json: share is of another type; got 'half'; wanted a number"),
        ("told", 1, "a.json: told is of another type; got 1; wanted true or false"),
        ("kind", "c", "a.json: kind is of another type; got 'c'; wanted a, b"),
        ("inner", {"number": True}, "a.json: inner: number is of another type; got True"),
        ("inner", {}, "a.json: inner lacks number; got an empty object"),
        ("many", {}, "a.json: many is of another type; got {}; wanted a list"),
        (
            "pairs",
            [[1]],
            "a.json: pairs\\[0\\] is of another type; got \\[1\\]; wanted a list of 2",
        ),
        ("table", [], "a.json: table is of another type; got \\[\\]; wanted an object"),
        ("interval", {"value": 1.0}, "a.json: interval has no interval where one is expected"),
    ],
)
def test_a_wrong_value_is_one_sentence(name: str, value: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        Outer.from_dict({**DOCUMENT, name: value}, "a.json")


def test_only_an_object_is_read() -> None:
    with pytest.raises(ArtifactError, match="the file is of another type; got .*; wanted an obj"):
        Outer.from_dict([1])
