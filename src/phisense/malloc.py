"""glibc malloc settings: large freed blocks are returned to the system immediately, and huge pages
make allocating them again cheap.

By default glibc raises its mmap threshold, up to 32 MB, as a program frees larger blocks, and keeps
smaller blocks in its heap. Training frees thousands of blocks a step, and the next step needs other
sizes: a third of the peak memory of a 134-million-weight model was fragmentation, half with
checkpointing (docs/log.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

MMAP_THRESHOLD_BYTES = 4_000_000  # bytes
_M_MMAP_THRESHOLD = -3  # malloc.h


def set_mmap_threshold() -> None:
    """Set the threshold. Must be called before torch is imported, which reads its environment
    variable once. No effect without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
