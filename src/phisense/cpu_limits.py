"""CPU cores and memory available to this process, cgroup limits of a container included."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def physical_cores() -> int:
    """Number of usable physical cores: hyperthreads share a core's arithmetic units."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    siblings = {
        cpu: Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        for cpu in os.sched_getaffinity(0)
    }
    physical = {
        path.read_text().strip() if path.is_file() else str(cpu) for cpu, path in siblings.items()
    }
    return min(len(physical), granted_cores() or len(physical))


def granted_cores() -> int | None:
    """Number of cores whose time a container grants this process; None without such a limit."""
    quota = _read_fields(_CGROUP / "cpu.max")  # cgroup v2: quota and period in microseconds
    if len(quota) != 2 or not quota[0].isdigit():
        return None
    return max(1, int(quota[0]) // int(quota[1]))


def available_memory() -> int | None:
    """Available memory in bytes; None if the system does not report it."""
    rows = (
        dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        if Path("/proc/meminfo").is_file()
        else {}
    )
    if "MemAvailable" not in rows:
        return None
    free = int(rows["MemAvailable"].split()[0]) * 1024
    most, now = _read_fields(_CGROUP / "memory.max"), _read_fields(_CGROUP / "memory.current")
    if most and now and most[0].isdigit():
        free = min(free, int(most[0]) - int(now[0]))
    return free


def _read_fields(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []
