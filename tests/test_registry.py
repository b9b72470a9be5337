"""The registry of a seam: names without imports, objects when they are asked for."""

import sys

import pytest

from phisense.errors import UsageError
from phisense.registry import Registry


@pytest.fixture
def fruits(tmp_path, monkeypatch):
    (tmp_path / "toy_apple.py").write_text("FRUIT = 'apple'")
    (tmp_path / "toy_pear.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry("fruit", "FRUIT", {"apple": "toy_apple", "pear": "toy_pear"})
    sys.modules.pop("toy_apple", None)


def test_names_are_listed_without_an_import(fruits):
    assert list(fruits) == ["apple", "pear"]
    assert len(fruits) == 2
    assert "pear" in fruits
    assert "plum" not in fruits
    assert "toy_apple" not in sys.modules


def test_only_the_module_asked_for_is_imported(fruits):
    assert fruits["apple"] == "apple"
    with pytest.raises(RuntimeError, match="imported"):
        fruits["pear"]


def test_an_unknown_name_is_a_sentence_with_the_nearest(fruits):
    with pytest.raises(UsageError) as caught:
        fruits["aple"]
    assert "unknown fruit" in str(caught.value)
    assert "apple, pear" in str(caught.value)
    assert "Did you mean apple?" in str(caught.value)


def test_a_toy_is_one_entry(fruits, monkeypatch):
    monkeypatch.setitem(fruits.modules, "plum", "toy_apple")
    assert fruits["plum"] == "apple"
