"""Predicted against measured: peak memory (and seconds) of `phisense train` on a mid-size model
with random weights.

    python bench/memory.py                 # every setting; about fifteen minutes on two CPU cores
    python bench/memory.py --only 4-plain  # settings whose name contains it

Makes a Phi-3 of 134 million weights (width 768, 12 layers, the real 32,064-row vocabulary) and a
CLIP of B/16's shape, encodes some drawn pictures, and trains a few steps for each setting in a
process of its own. That process says the most memory it ever had: VmHWM of /proc/self/status on a
CPU, `torch.cuda.max_memory_allocated` on a GPU. Nothing is taken off the measured figure. On a CPU
the prediction is the plan's whole peak, on a GPU the peak without the framework's share, which lies
outside PyTorch's allocator.

`fit` marks the settings that the plan's two constants (`CPU_BASELINE`, `FRAGMENTS`) may be chosen
on; the others are only predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson
import yaml
from parts import make_parts

#: name -> (chosen on it?, changes). `align=0`: no alignment.
SETTINGS: dict[str, tuple[bool, dict[str, Any]]] = {
    "instruct-1-plain": (True, {"instruct": 1}),
    "instruct-4-plain": (True, {"instruct": 4}),
    "instruct-8-plain": (False, {"instruct": 8}),
    "instruct-4-checkpointing": (True, {"instruct": 4, "checkpointing": True}),
    "instruct-8-checkpointing": (False, {"instruct": 8, "checkpointing": True}),
    "instruct-1-nf4": (False, {"instruct": 1, "quantize": True}),
    "instruct-4-nf4": (True, {"instruct": 4, "quantize": True}),
    "instruct-8-nf4-checkpointing": (
        False,
        {"instruct": 8, "quantize": True, "checkpointing": True},
    ),
    "align-8-plain": (False, {"align": 8, "instruct": 1}),
    "align-8-nf4-checkpointing": (
        False,
        {"align": 8, "instruct": 1, "quantize": True, "checkpointing": True},
    ),
    "instruct-4-dropout-accumulated": (False, {"instruct": 4, "dropout": 0.05, "accumulate": 2}),
    "instruct-8-shared": (False, {"instruct": 8, "share": True}),
    "instruct-4-pooled-rank-64": (False, {"instruct": 4, "pool": 2, "rank": 64}),
}

CHILD = """
import json, resource, sys, torch
from phisense.cli import run_verb
facts = run_verb("train", sys.argv[1])
status = open("/proc/self/status").read() if sys.platform == "linux" else ""
lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
if "VmHWM" in lines:
    rss = int(lines["VmHWM"].split()[0]) * 1024
else:
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
seconds = {name: stage["seconds"] for name, stage in facts["stages"].items()}
told = {"rss": rss, "cuda": cuda, "trainable": facts["trainable"], "seconds": seconds}
json.dump(told, open(sys.argv[2], "w"))
"""


def make_data(root: Path, rows: int, pictures: int) -> None:
    """Conversations of several turns about pictures of one colour: what they say does not matter,
    how long they are does.
    """
    from PIL import Image

    (root / "data" / "images").mkdir(parents=True)
    for number in range(pictures):
        shade = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
        Image.new("RGB", (224, 224), shade).save(root / "data" / "images" / f"{number:03}.jpg")
    talks = []
    for number in range(rows):
        turns = []
        for turn in range(5):
            ask = "How many red circles are there left of the blue square in the picture?"
            turns += [
                {"from": "human", "value": f"<image>\n{ask}" if turn == 0 else ask},
                {
                    "from": "gpt",
                    "value": "There are two red circles left of the blue square, and one above it.",
                },
            ]
        talks.append(
            {"id": f"row-{number}", "image": f"{number % pictures:03}.jpg", "conversations": turns}
        )
    (root / "data" / "talks.json").write_text(json.dumps(talks))


def recipe_of(root: Path, changes: dict[str, Any]) -> Path:
    def stage(rows: int) -> dict[str, Any]:
        return {
            "max_steps": 2,
            "batch_size": rows * changes.get("accumulate", 1),
            "micro_batch_size": rows,
            "max_length": 1024,
        }

    raw = {
        "name": "memory",
        "root": str(root),
        "language": {"part": str(root / "language")},
        "vision": {"part": str(root / "vision")},
        "projector": {"pool": changes.get("pool", 1)},
        "data": {
            "images": "data/images",
            "align": ["data/talks.json"],
            "instruct": ["data/talks.json"],
        },
        "features": {"batch_size": 8},
        "train": {
            "quantize": changes.get("quantize", False),
            "gradient_checkpointing": changes.get("checkpointing", False),
            "share_pictures": changes.get("share", False),
            "lora": {"rank": changes.get("rank", 16), "dropout": changes.get("dropout", 0.0)},
            "align": stage(changes["align"]) if changes.get("align") else None,
            "instruct": stage(changes["instruct"]),
        },
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def one(root: Path, name: str, fit: bool, changes: dict[str, Any]) -> dict[str, Any]:
    from phisense.doctor import find_devices, make_plan
    from phisense.recipe import load_recipe

    path = recipe_of(root, changes)
    made = make_plan(load_recipe(path), find_devices()[0])
    stages = [step for step in made.steps if step.peak.step in ("align", "instruct")]
    largest = max(stages, key=lambda step: step.peak.total)
    said = root / "said.json"
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(said)],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    measured = json.loads(said.read_text())
    on_gpu = measured["cuda"] is not None
    predicted = largest.peak.total - (largest.peak.terms["framework"] if on_gpu else 0.0)
    was = measured["cuda"] if on_gpu else measured["rss"]
    return {
        "name": name,
        "fit": fit,
        "step": largest.peak.step,
        "moment": largest.peak.moment,
        "predicted": round(predicted),
        "measured": was,
        "ratio": predicted / was,
        "terms": {key: round(value) for key, value in largest.peak.terms.items()},
        "predicted_seconds": {step.peak.step: step.seconds for step in stages},
        "measured_seconds": measured["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument(
        "--root", type=Path, help="keep the parts and features here, to run again sooner"
    )
    parser.add_argument("--json", action="store_true", help="print one last JSON line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        root = (asked.root or Path(spare)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "features").is_dir():
            make_parts(root, layers=12)
            make_data(root, rows=96, pictures=48)
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "phisense",
                    "features",
                    str(recipe_of(root, {"instruct": 1})),
                ],
                check=True,
            )
        rows = []
        for name, (fit, changes) in SETTINGS.items():
            if asked.only not in name:
                continue
            row = one(root, name, fit, changes)
            rows.append(row)
            print(
                f"{name:32} {'fit' if fit else '':4} {row['step']:9} {row['moment']:11} predicted"
                f" {row['predicted'] / 1e9:6.2f} GB  measured {row['measured'] / 1e9:6.2f} GB "
                f" ratio {row['ratio']:.3f}",
                flush=True,
            )
    checked = [row for row in rows if not row["fit"]] or rows
    worst = max(checked, key=lambda row: abs(row["ratio"] - 1))
    print(
        f"worst of those not fitted on: {worst['name']}, {worst['ratio'] - 1:+.1%} (wanted: within"
        " 15%)"
    )
    if asked.json:
        print(orjson.dumps({"worst": worst["ratio"] - 1, "settings": rows}).decode())


if __name__ == "__main__":
    main()
