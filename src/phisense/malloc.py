"""glibc malloc settings: large freed blocks are returned to the system immediately, huge pages make
allocating them again cheap, and `release_free_memory` returns what smaller blocks leave behind.

By default glibc raises its mmap threshold, up to 32 MB, as a program frees larger blocks, and keeps
smaller blocks in its heap. Training frees thousands of blocks a step, and the next step needs other
sizes: a third of the peak memory of a 134-million-weight model was fragmentation, half with
checkpointing (docs/log.md).

Blocks below the threshold leave holes. torch asks for aligned blocks, and glibc before 2.38 cuts an
aligned block out of a larger one and gives the rest to whoever asks for a few bytes, so that a
freed block is too small for the next of its size. A deep and narrow model consists of such blocks;
`doctor` plans their holes. With a threshold of 1 MB they vanish, and the steps of such a model take
far longer, since every block comes back zeroed (docs/log.md).

Where there is memory to spare, returning it is a waste of time, a quarter of a training step on two
cores: `keep_freed_memory` has blocks of any size stay in the heap, until `return_freed_memory`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

MMAP_THRESHOLD_BYTES = 4_000_000
# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_MAX_INT = 2**31 - 1
_KEPT = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _MAX_INT, _M_TOP_PAD: 64 << 20}
_RETURNED = {_M_MMAP_MAX: 65_536, _M_TRIM_THRESHOLD: 128 << 10, _M_TOP_PAD: 128 << 10}


def set_mmap_threshold() -> None:
    """Set the threshold. Must be called before torch is imported, which reads its environment
    variable once. No effect without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        _mallopt({_M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES})


def keep_freed_memory() -> bool:
    """Keep freed blocks of any size for later ones, instead of returning them to the system.

    Returns False, and changes nothing, without glibc or if the user set any of malloc's limits.
    """
    return not any(name.startswith("MALLOC_") for name in os.environ) and _mallopt(_KEPT)


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`, and return what is free."""
    _mallopt(_RETURNED)
    release_free_memory()


def _mallopt(settings: dict[int, int]) -> bool:
    """Change malloc's settings; False where there is no `mallopt`, or one is refused."""
    mallopt = getattr(_libc(), "mallopt", None) if sys.platform.startswith("linux") else None
    return mallopt is not None and all(mallopt(*one) == 1 for one in settings.items())


def release_free_memory() -> None:
    """Return the free pages of malloc's heaps to the system: those at the end and those between
    blocks in use. No effect without glibc.

    To be called after work whose blocks the next will not fit into, such as generating answers.
    """
    trim = getattr(_libc(), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 outside Linux."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * mmap.PAGESIZE


def unmap_pages(address: int, length: int) -> None:
    """Take the pages of a file's mapping that overlap `length` bytes from `address` out of the
    process's resident memory; the next access reads them from the page cache.

    The mapping must be of a file and never written to: other memory would lose its content. No
    effect outside Linux.
    """
    madvise = getattr(_libc(), "madvise", None) if sys.platform.startswith("linux") else None
    if madvise is not None:
        start = address - address % mmap.PAGESIZE
        madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(address + length - start), mmap.MADV_DONTNEED
        )


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
