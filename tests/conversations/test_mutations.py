"""A short round of `bench/fuzz_check.py`, whose full one is in docs/benchmarks.md; and that it would notice."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def fuzz_check() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_check", Path(__file__).parents[2] / "bench" / "fuzz_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_inputs_are_found_or_refused(fuzz_check: Any) -> None:
    came = fuzz_check.fuzz(1000, seed=1)
    assert came["untyped_errors"] == 0, came["first"]
    assert came["found"] > 50
    assert came["refused"] > 200


def test_the_control_an_error_of_no_kind_is_counted(fuzz_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fuzz_check, "look_at", breaks)
    assert fuzz_check.fuzz(40, seed=1)["untyped_errors"] > 0
