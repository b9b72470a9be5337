"""Numbers with units, as people read them."""

from __future__ import annotations


def format_seconds(seconds: float) -> str:
    """`370 ms`, `3.4 s`, `45 s`, `12 min`, `5.5 h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_bytes(count: float) -> str:
    """`512 B`, `1.5 KB`, `2.0 MB`, `96.1 GB`, in powers of 1,000."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
