"""How the C library keeps freed memory: large blocks go back to the system at once, in huge pages so that fetching them anew is cheap.

glibc raises the size from which it does so, up to 32 MB, as a program frees larger blocks, and keeps the rest for itself. Training frees
thousands of blocks a step that the next step cuts otherwise: of the peak of a 134-million-weight model a third was holes, half with
checkpointing (docs/log.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

RETURNED_FROM = 4_000_000  # bytes
_M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> None:
    """Must be called before torch is imported, which reads its variable once. Does nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, RETURNED_FROM)
