"""What steps leave behind in malloc's heap is returned once the process has grown, not after every
step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from phisense import malloc
from phisense.training import heap_callback
from phisense.training.heap_callback import MAX_GROWTH, HeapCallback


def steps(monkeypatch: pytest.MonkeyPatch, held: list[float]) -> tuple[list[int], HeapCallback]:
    """The steps after which free memory was released, if so much was held after each."""
    callback, released = HeapCallback(), []
    for step, bytes_ in enumerate(held):
        monkeypatch.setattr(heap_callback, "resident_bytes", lambda value=bytes_: int(value))
        monkeypatch.setattr(
            heap_callback, "release_free_memory", lambda at=step: released.append(at)
        )
        nothing: Any = cast(Any, None)
        callback.on_step_end(nothing, nothing, nothing)
    return released, callback


def test_growth_is_released_and_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    above = 1000 * MAX_GROWTH + 1
    released, callback = steps(monkeypatch, [1000, 1100, above, 1200, 1300, 1200 * MAX_GROWTH + 1])
    assert released == [2, 5]
    assert callback.releases == 2


@pytest.mark.parametrize("held", [[1000] * 5, [1000, 1000 * MAX_GROWTH, 900, 1000], [0] * 3])
def test_what_did_not_grow_is_left(monkeypatch: pytest.MonkeyPatch, held: list[float]) -> None:
    """The last: a system that does not tell what a process holds."""
    assert steps(monkeypatch, held)[0] == []


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_what_a_process_holds_is_measured() -> None:
    before = malloc.resident_bytes()
    block = bytearray(b"1") * 200_000_000
    assert 150e6 < malloc.resident_bytes() - before < 300e6
    del block


def test_elsewhere_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert malloc.resident_bytes() == 0
