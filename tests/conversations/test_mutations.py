"""A short round of `bench/fuzz_check.py`, whose full one is in docs/benchmarks.md; and that it
would notice.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phisense import console


@pytest.fixture(scope="module")
def fuzz_check() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "bench")
        patch.setattr(console.err, "quiet", console.err.quiet)  # it silences what later tests read
        yield loaded()


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location(
        "fuzz_check", Path(__file__).parents[2] / "bench" / "fuzz_check.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_inputs_are_found_or_refused(fuzz_check: Any) -> None:
    came = fuzz_check.fuzz(1000, seed=1)
    assert came["untyped_errors"] == 0, came["first"]
    assert came["found"] > 200
    assert came["refused"] > 50


def test_the_control_an_error_of_no_kind_is_counted(
    fuzz_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fuzz_check, "check_image", breaks)
    assert fuzz_check.fuzz(40, seed=1)["untyped_errors"] > 0


@pytest.mark.slow
def test_the_control_what_cannot_be_written_is_counted(
    fuzz_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phisense.conversations.defects.Defect.__post_init__", lambda self: None)
    monkeypatch.setattr("phisense.conversations.defects.escape", str)
    assert any("surrogates not allowed" in fault for fault in fuzz_check.fuzz(300, seed=1)["first"])


def test_files_are_drawn_of_every_kind(fuzz_check: Any) -> None:
    """Each class of what people bring comes in a thousand draws, so that none is left out
    unseen.
    """
    draw = random.Random(2)
    files = [fuzz_check.good_file(draw) for _ in range(1000)]
    wanted = (
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1f\x8b",
        b"PK\x03\x04",
        b"PAR1",
        b"sep=;",
        b"C:\\\\Users",
        b"/data/coco",
        b"file:///",
        b"<|image_1|>",
        b"<img>",
        b'"choices"',
        b'"data": [',
        b'"video"',
        b'"IMAGE"',
        b"id;",
        b"id\t",
        b"id|",
    )
    assert [
        signature for signature in wanted if not any(signature in data for _, data in files)
    ] == []
    assert {Path(name).suffix for name, _ in files} >= {
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".parquet",
        ".arrow",
    }
