"""What steps leave behind in malloc's heap is returned once the process has grown, not after every
step.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from phisense import malloc
from phisense.training import heap_callback
from phisense.training.heap_callback import MAX_GROWTH, HeapCallback


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is left, so that nothing is kept but where a test says so."""
    monkeypatch.setattr(heap_callback, "available_memory", lambda: None)


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


GB = 10**9
KEEP, RETURN = "keep", "return"
#: For each step what is left beside a peak of 2 GB, and what is done after it.
ROOMS: dict[str, list[tuple[float | None, str | None]]] = {
    "enough": [(10, KEEP), (10, None), (9, None)],
    "never enough": [(0.9, None), (1.0, None)],
    "enough later": [(0.9, None), (1.1, KEEP), (0.6, None)],
    "others take it, once and for all": [(10, KEEP), (0.6, None), (0.4, RETURN), (10, None)],
    "not known": [(None, None), (None, None)],
}


@pytest.mark.parametrize("name", ROOMS)
@pytest.mark.parametrize("works", [True, False])
def test_freed_memory_is_kept_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, name: str, works: bool
) -> None:
    done: list[str] = []
    told: list[object] = []
    monkeypatch.setattr(heap_callback, "peak_memory", lambda: 2 * GB)
    monkeypatch.setattr(heap_callback, "resident_bytes", lambda: GB)
    monkeypatch.setattr(heap_callback, "keep_freed_memory", lambda: works and not done.append(KEEP))
    monkeypatch.setattr(heap_callback, "return_freed_memory", lambda: done.append(RETURN))
    callback, nothing = HeapCallback(told.append), cast(Any, None)
    expected: list[str] = []
    for left, what in ROOMS[name]:
        monkeypatch.setattr(
            heap_callback, "available_memory", lambda v=left: None if v is None else int(v * GB)
        )
        callback.on_step_end(nothing, nothing, nothing)
        expected += [what] if what and works else []
        assert done == expected
    assert len(told) == expected.count(RETURN), "that steps take longer from now on"
    kept = done[-1:] == [KEEP]
    callback.on_train_end(nothing, nothing, nothing)
    assert done == expected + [RETURN] * kept, "what is kept at the end is returned"


HEAP = """
import sys
from phisense import malloc
if sys.argv[1] == "kept":
    assert malloc.keep_freed_memory()
blocks = [bytearray(50_000_000) for _ in range(10)]
for block in blocks:
    block[::4096] = b"1" * len(block[::4096])
full = malloc.resident_bytes()
del block, blocks
freed = malloc.resident_bytes()
malloc.return_freed_memory()
blocks = [bytearray(50_000_000)]
del blocks
print(full - freed, full - malloc.resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(("how", "at_once"), [("kept", False), ("returned", True)])
def test_freed_blocks_stay_or_go(how: str, at_once: bool) -> None:
    """In a process of its own: of 500 MB freed the system has all or nothing at once, and all of
    it after `return_freed_memory`.
    """
    ran = subprocess.run(
        [sys.executable, "-c", HEAP, how], capture_output=True, text=True, check=True
    )
    freed, later = map(int, ran.stdout.split())
    assert (freed > 450e6) is at_once
    assert (freed < 50e6) is not at_once
    assert later > 450e6


def test_a_users_own_limits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert not malloc.keep_freed_memory()


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
