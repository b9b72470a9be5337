"""Kills a training with -9 at random moments, again and again, and compares how it ends. `python
bench/kill_training.py --help`

Every life is killed: every other one after a random time, the rest as soon as a checkpoint is half
written; the next goes on with `--resume`. Whenever a run reaches its end, it must have the final
weights, the loss curve and at each checkpoint the optimizer of an uninterrupted run, bit for bit,
and another begins. The control compares with a run of another seed, which must not pass.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from lives import begin, in_a_life
from small_runs import make, outcome, train

from phisense import artifacts


def half_written(run: Path) -> set[tuple[Path, int]]:
    """Checkpoints without a manifest, and when something came into them."""
    found = set()
    for path in (
        path
        for stage in ("align", "instruct")
        for path in (run / "stages" / stage).glob("checkpoint-*")
    ):
        try:
            if not (path / artifacts.MANIFEST).exists():
                found.add((path, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def wait_for_a_save(process: BaseProcess, run: Path, rng: random.Random) -> None:
    """Until a checkpoint has begun to be written, the first or a later one, and a little more."""
    for _ in range(rng.randint(1, 3)):
        old = half_written(run)
        while process.is_alive() and not half_written(run) - old:
            pass
    time.sleep(rng.uniform(0, 0.02))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    asked = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as at:
        root = Path(at)
        in_a_life(make, root)
        started = time.monotonic()
        in_a_life(train, root, "whole", False)
        seconds = time.monotonic() - started
        wanted = outcome(root, "whole")
        run = root / "runs" / "killed"
        killed = saving = lost = ended = different = 0
        while killed < asked.kills or run.is_dir():
            process = begin(train, root, "killed", run.is_dir())
            old = half_written(run)
            if killed >= asked.kills:
                process.join()
            elif killed % 2:
                wait_for_a_save(process, run, rng)
            else:
                process.join(rng.uniform(0, seconds))
            process.kill()
            process.join()
            killed += process.exitcode == -9
            saving += process.exitcode == -9 and bool(half_written(run) - old)
            if process.exitcode not in (0, -9):
                lost += 1
                print((root / "killed.errors").read_text()[-2000:], flush=True)
            if process.exitcode == 0:
                ended += 1
                different += outcome(root, "killed") != wanted
            if process.exitcode != -9:
                shutil.rmtree(run)
                (root / "killed.optimizers").unlink(missing_ok=True)
        in_a_life(train, root, "control", False, None, 7)
        control = outcome(root, "control") != wanted
    print(
        json.dumps(
            {
                "kills": killed,
                "while_saving": saving,
                "runs_ended": ended,
                "runs_lost": lost,
                "runs_different": different,
                "control_found_out": control,
            }
        )
    )


if __name__ == "__main__":
    main()
