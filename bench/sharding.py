"""Sharded training beside training in one process: the most memory that a process ever had, and how
far the losses are apart.

    python bench/sharding.py                # two processes on a CPU; some minutes on two cores
    python bench/sharding.py --layers 32    # of a larger model
    python bench/sharding.py --json         # one last JSON line

Makes a Phi-3 of width 1024 with random weights (16 layers: 205 million weights, 0.82 GB in float32)
and trains three steps of it, all weights and LoRA, in one process and sharded over two. Each
process says the most memory it ever had, VmHWM of /proc/self/status, from its start through
loading, the gradient check and training to the saved weights; nothing is taken off. `beyond` is the
ratio without the memory of a process that has only imported the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import yaml
from parts import make_parts

#: 12.8 million weights a layer.
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
SEEN = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
KINDS: dict[str, Any] = {"full": None, "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}
STEPS = 3
_RATIOS = ("kind", "ratio", "beyond", "loss_difference")

CHILD = """
import sys
from pathlib import Path
from phisense.cli import run_verb
imported = len(sys.argv) < 4
if imported:
    import phisense.training
else:
    run_verb("train", *sys.argv[2:])
lines = dict(one.split(":", 1) for one in Path("/proc/self/status").read_text().splitlines())
Path(sys.argv[1]).write_text(str(int(lines["VmHWM"].split()[0]) * 1024))
"""


def make_root(root: Path, layers: int) -> None:
    """Parts, pictures of one colour, and short conversations, every other one without a picture."""
    from PIL import Image

    make_parts(root, layers, SHAPE, SEEN, vocabulary=768)
    (root / "images").mkdir()
    rows = []
    for number in range(8):
        Image.new("RGB", (32, 32), (number * 30, 90, 200)).save(root / "images" / f"{number}.png")
        seen = {"image": f"{number}.png"} if number % 2 else {}
        question = ("<image>\n" if seen else "") + "Which colour is it?"
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": "It is " + "very " * (number % 3) + "blue."},
        ]
        rows.append({"id": f"row-{number}", **seen, "conversations": turns})
    (root / "rows.json").write_text(json.dumps(rows))


def recipe_of(root: Path, name: str, kind: str, shard: bool) -> Path:
    """The recipe of one run."""
    raw = {
        "name": name,
        "root": str(root),
        "compute_dtype": "float32",
        "language": {"part": str(root / "language")},
        "vision": {"part": str(root / "vision")},
        "data": {"images": "images", "instruct": ["rows.json"]},
        "features": {"folder": "features"},
        "train": {
            "quantize": False,
            "shard": shard,
            "lora": KINDS[kind],
            "log_every": 1,
            "instruct": {"max_steps": STEPS, "batch_size": 4, "micro_batch_size": 1},
        },
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def run(root: Path, processes: int, *words: str) -> int:
    """Start the child in so many processes; the largest peak of any, in bytes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", CHILD, str(root / f"peak-{rank}"), *words]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
    if any(one.wait() for one in started):
        raise SystemExit("a process failed")
    return max(int((root / f"peak-{rank}").read_text()) for rank in range(processes))


def losses(root: Path, name: str) -> list[float]:
    """The losses of a run, step by step."""
    lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def predict(recipe: Path, processes: int) -> float:
    """The peak that doctor plans for each process."""
    from phisense.doctor import find_devices, make_plan
    from phisense.recipe import load_recipe

    device = replace(find_devices(compute_dtype="float32")[0], processes=processes)
    steps = make_plan(load_recipe(recipe), device).steps
    return next(step.peak.total for step in steps if step.peak.step == "instruct")


def compare(root: Path, kind: str, baseline: int) -> dict[str, Any]:
    """One kind of training in one process and in two."""
    peaks, planned = {}, {}
    for processes in (1, 2):
        name = f"{kind}-{processes}"
        recipe = recipe_of(root, name, kind, shard=processes > 1)
        peaks[processes] = run(root, processes, str(recipe), "--overwrite")
        planned[processes] = predict(recipe, processes)
    pairs = list(zip(losses(root, f"{kind}-1"), losses(root, f"{kind}-2"), strict=True))
    assert len(pairs) == STEPS
    return {
        "kind": kind,
        "one": peaks[1],
        "each": peaks[2],
        "planned_one": planned[1],
        "planned_each": planned[2],
        "ratio": peaks[2] / peaks[1],
        "beyond": (peaks[2] - baseline) / (peaks[1] - baseline),
        "loss_difference": max(abs(a - b) for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--kind", choices=KINDS, action="append", help="both if left out")
    parser.add_argument("--json", action="store_true", help="print one last JSON line")
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as spare:
        root = Path(spare)
        make_root(root, asked.layers)
        encode = [sys.executable, "-m", "phisense", "features"]
        recipe = recipe_of(root, "features", "lora", shard=False)
        subprocess.run([*encode, str(recipe)], check=True, stdout=subprocess.DEVNULL)
        baseline = run(root, 1)
        print(f"a process with nothing but the libraries: {baseline / 1e9:.2f} GB", flush=True)
        for kind in asked.kind or KINDS:
            row = compare(root, kind, baseline)
            found.append(row)
            sizes = {key: f"{row[key] / 1e9:.2f} GB" for key in row if key not in _RATIOS}
            print(
                f"{kind:5} one process {sizes['one']} (planned {sizes['planned_one']}), each of two"
                f" {sizes['each']} (planned {sizes['planned_each']}): {row['ratio']:.2f},"
                f" {row['beyond']:.2f} beyond the libraries; losses within"
                f" {row['loss_difference']:.1e}",
                flush=True,
            )
    if asked.json:
        print(orjson.dumps({"baseline": baseline, "kinds": found}).decode())


if __name__ == "__main__":
    main()
