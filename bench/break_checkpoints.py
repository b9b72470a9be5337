"""Breaks checkpoints in many ways, and looks whether that is seen. `python
bench/break_checkpoints.py --help`

A training dies between two checkpoints. Of the newest one file is broken: a bit flipped, cut short,
or gone. Resuming must take the one before. Some of the runs then go on to their end, which must be
that of an uninterrupted run, bit for bit. The control is the stock loader: transformers'
`get_last_checkpoint`, and every file read as its own format.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from lives import begin, in_a_life
from small_runs import STEPS, make, outcome, train

from phisense import artifacts
from phisense.model.trainable import TRAINABLE_FILE
from phisense.training import checkpoints

WAYS = ("a bit flipped", "cut short", "gone")


def damage(checkpoint: Path, way: str, rng: random.Random) -> str:
    """Breaks one file in one way; which."""
    path = rng.choice(
        sorted(path for path in checkpoint.iterdir() if path.name != artifacts.MANIFEST)
    )
    data = bytearray(path.read_bytes())
    if way == "gone":
        path.unlink()
    elif way == "cut short":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    return path.name


def stock_takes_it(stage: Path, said: Path) -> None:
    """Writes whether `get_last_checkpoint` names the newest and its files load, as far as the stock
    Trainer looks at them.
    """
    import torch
    from safetensors.torch import load_file
    from transformers.trainer_pt_utils import safe_globals
    from transformers.trainer_utils import get_last_checkpoint

    try:
        at = Path(str(get_last_checkpoint(str(stage))))
        load_file(at / TRAINABLE_FILE)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            if name != "rng_state.pth" or (at / name).is_file():  # without one it only tells
                with safe_globals():
                    torch.load(at / name, weights_only=True)
        json.loads((at / "trainer_state.json").read_text())
    except Exception as error:
        said.write_text(f"no: {type(error).__name__}")
        return
    said.write_text("yes" if at.name == f"checkpoint-{2 * STEPS // 3}" else "no: another")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--breaks", type=int, default=200)
    parser.add_argument(
        "--ends", type=int, default=20, help="how many of the runs go on to their end"
    )
    asked = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as at:
        root = Path(at)
        in_a_life(make, root)
        in_a_life(train, root, "whole", False)
        wanted = outcome(root, "whole")
        in_a_life(train, root, "broken", False, STEPS - 5)
        run, spare = root / "runs" / "broken", root / "spare"
        run.rename(spare)
        newest, before = (f"checkpoint-{STEPS * thirds // 3}" for thirds in (2, 1))
        about = artifacts.read_manifest(
            spare / "stages" / "instruct" / newest, kind=checkpoints.CHECKPOINT_KIND
        )
        if (
            checkpoints.latest_verified(spare / "stages" / "instruct", about=about)
            != spare / "stages" / "instruct" / newest
        ):
            raise SystemExit("the whole checkpoint is refused")
        unseen, taken_by_stock, ended, different = 0, 0, 0, 0
        for number in range(asked.breaks):
            shutil.copytree(spare, run)
            stage = run / "stages" / "instruct"
            name = damage(stage / newest, WAYS[number % len(WAYS)], rng)
            found = checkpoints.latest_verified(stage, about=about)
            if found != stage / before:
                unseen += 1
                print(f"unseen: {name} {WAYS[number % len(WAYS)]}", flush=True)
            in_a_life(stock_takes_it, stage, root / "said")
            taken_by_stock += (root / "said").read_text() == "yes"
            if number % max(1, asked.breaks // max(1, asked.ends)) == 0 and ended < asked.ends:
                process = begin(train, root, "broken", True)
                process.join()
                ended += 1
                different += process.exitcode != 0 or outcome(root, "broken") != wanted
            shutil.rmtree(run)
    print(json.dumps({
        "broken": asked.breaks, "unseen": unseen, "taken_by_the_stock_loader": taken_by_stock,
        "went_on": ended, "ended_differently": different,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
