"""How fast a processor computes where OpenMP's waiting threads spin for a while, as they do by
default, where they sleep at once, and where they spin as briefly as phisense lets them.

    python bench/waiting_threads.py [--rounds 7] [--json]

One process alone, and several at once, each with a thread for every core, on a language part's
decoding (a vector times matrices) and on an encoder's products. The settings take turns, so
that what else the machine does falls on all alike; the figure is the median over the rounds of
products in a second, of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

from phisense.openmp import PASSIVE

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
    "brief": PASSIVE,
}
KINDS = ("decode", "encode")
WORK = """
import sys, time
import torch
torch.set_num_threads(int(sys.argv[1]))
shapes = {"decode": (1, 576, 1536), "encode": (256, 384, 1536)}
for line in sys.stdin:
    kind, seconds = line.split()
    m, k, n = shapes[kind]
    x, a, b = torch.randn(m, k), torch.randn(k, n), torch.randn(n, k)
    layer = lambda x: torch.nn.functional.gelu(x @ a) @ b * 1e-3
    for _ in range(5):
        layer(x)
    end, done = time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        layer(x)
        done += 1
    print(done / float(seconds), flush=True)
"""


def start(setting: dict[str, str], threads: int) -> subprocess.Popen[str]:
    """A process that computes when it is told to."""
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS["asleep"]}
    env.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(threads)],
        env={**env, **setting},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def rate(running: list[subprocess.Popen[str]], kind: str, seconds: float) -> float:
    """Products in a second of all processes together, which begin at once."""
    for one in running:
        assert one.stdin is not None
        one.stdin.write(f"{kind} {seconds}\n")
        one.stdin.flush()
    total = 0.0
    for one in running:
        assert one.stdout is not None
        total += float(one.stdout.readline())
    return total


def main() -> None:
    """Measure, and print a table or a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = {
        name: [start(setting, threads or 1) for _ in range(asked.processes)]
        for name, setting in SETTINGS.items()
    }
    for its in workers.values():  # until torch is loaded
        rate(its, "decode", 0.1)
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        for processes in (1, asked.processes):
            rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(asked.rounds):
                for name, its in workers.items():
                    rates[name].append(rate(its[:processes], kind, asked.seconds))
            found[f"{kind}, {processes} at once"] = {
                name: round(statistics.median(its), 1) for name, its in rates.items()
            }
    for its in workers.values():
        for one in its:
            one.communicate()
    if asked.json:
        print(json.dumps(found))
        return
    for what, figures in found.items():
        print(what, *(f"{name} {value:,.0f}/s" for name, value in figures.items()), sep="  ")


if __name__ == "__main__":
    main()
