"""How the threads of OpenMP wait, which computes torch's operations on a CPU.

A thread that has finished its share of an operation spins until the others have. On cores that
other processes use, too, the spinning takes the time that these others, or the slowest thread
itself, would compute in: two busy processes on two cores reached a fraction of the speed
(docs/benchmarks.md). Threads that sleep at once cost a wake-up for each operation instead, which
took a quarter of a training's speed on cores of its own. So they spin for some microseconds, as
long as the shares of one operation differ, and then sleep.

OpenMP reads its settings once, when its library is loaded, which torch does. `import phisense`
therefore makes them before anything of phisense can import torch. A user's own settings stay.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from .cpu_limits import granted_cores

#: For GNU's library, which counts rounds of its spinning, and Intel's and LLVM's, in milliseconds.
#: GNU's default is 300,000 rounds, tens of milliseconds (docs/benchmarks.md compares).
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "6000", "KMP_BLOCKTIME": "0"}
_THREADS = "OMP_NUM_THREADS"
_LIBRARIES = ("libgomp", "libiomp5", "libomp.")
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' subsystem


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """What `set_passive_waiting` found: the variables that it set, and a sentence about the state
    that `doctor` prints. `late` is true if OpenMP was loaded before.
    """

    made: tuple[str, ...]
    told: str
    late: bool = False


def set_passive_waiting() -> None:
    """Let waiting threads sleep soon, and use no more threads than a container grants cores, unless
    the user has set these variables, or the machine has a GPU, or OpenMP is loaded already, of
    which a warning is logged. `wait_policy` tells what was done.
    """
    found = choose_wait_policy(os.environ)
    _state.append(found)
    if found.late:
        _log.warning("Waiting threads are %s.", found.told)


_state: list[WaitPolicy] = []


def wait_policy() -> WaitPolicy:
    """What the last `set_passive_waiting` did."""
    return _state[-1]


def choose_wait_policy(env: MutableMapping[str, str]) -> WaitPolicy:
    """Set the variables in `env` where they may be set, and return what was done."""
    found = [name for name in PASSIVE if name in env]
    if any(Path(device).exists() for device in _ACCELERATORS) and not _hides_gpus(env):
        return WaitPolicy((), "as OpenMP does by default, since a GPU computes")
    if any(env[name].upper() != PASSIVE[name] for name in found):
        told = ", ".join(f"{name}={env[name]}" for name in found)
        return WaitPolicy((), f"as you have set it: {told}")
    if env.get("OMP_WAIT_POLICY") and is_loaded():
        return WaitPolicy((), "asleep, as the environment says")
    if is_loaded():
        told = (
            "spinning: torch was imported before phisense. Import phisense first, or set"
            f" OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT={PASSIVE['GOMP_SPINCOUNT']}"
        )
        return WaitPolicy((), told, late=True)
    wanted = dict(PASSIVE)
    cores, granted = len(_affinity()), granted_cores()
    if granted is not None and granted < cores:
        wanted[_THREADS] = str(granted)
    made = tuple(name for name in wanted if name not in env)
    env.update({name: wanted[name] for name in made})
    told = f"asleep after a brief spin, by {', '.join(f'{name}={env[name]}' for name in wanted)}"
    return WaitPolicy(made, told)


def is_loaded() -> bool:
    """Whether a library of OpenMP is loaded in this process; False where the system does not
    say.
    """
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return False
    text = maps.read_text(encoding="utf-8", errors="replace")
    return any(name in text for name in _LIBRARIES)


def _hides_gpus(env: MutableMapping[str, str]) -> bool:
    return env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
