"""What of this machine a process may use: it may be a container's share."""

from __future__ import annotations

import os
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Physical cores: hyperthreads share what the arithmetic waits for."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    siblings = {cpu: Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in os.sched_getaffinity(0)}
    physical = {path.read_text().strip() if path.is_file() else str(cpu) for cpu, path in siblings.items()}
    quota = _words(_GROUP / "cpu.max")  # microseconds of all cores together, in how many
    granted = max(1, int(quota[0]) // int(quota[1])) if len(quota) == 2 and quota[0].isdigit() else len(physical)
    return min(len(physical), granted)


def free_memory() -> int | None:
    """Bytes that can still be had; None where the system does not tell."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines()) if Path("/proc/meminfo").is_file() else {}
    if "MemAvailable" not in rows:
        return None
    free = int(rows["MemAvailable"].split()[0]) * 1024
    most, now = _words(_GROUP / "memory.max"), _words(_GROUP / "memory.current")
    if most and now and most[0].isdigit():
        free = min(free, int(most[0]) - int(now[0]))
    return free


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []
