"""QLoRA at Phi-3.5-mini's shape on one GPU, beside TRL with PEFT: tokens a second, share of the
card's peak, memory.

Needs a CUDA GPU of 24 GB, 20 GB of disk, `pip install -e . trl`. Random weights: 32 layers of width
3,072 in NF4, LoRA of rank 64, CLIP-L/14-336's shape, conversations as in bench/training.py; 576
tokens a picture, and 144 (`--pool 2`). Both sides train the same conversations for one epoch in
processes of their own, alternating. The peak is that of a bfloat16 product of 8,192-square matrices
here; a token of training costs 4 N operations, N the weights of the language part's matrices
(docs/memory.md). `--tiny` runs all of it at a tiny shape on a CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import training as sides
import yaml
from parts import make_parts

REAL = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
LAYERS = {False: 32, True: 2}  # by --tiny
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
    "image_size": 336,
    "patch_size": 14,
}
CLIP_TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


def make(root: Path, *, tiny: bool, pool: int, pictures: int) -> None:
    """Parts of random weights, data, the recipe, stored features, and the folder that both sides
    begin with.
    """
    if not (root / "language").is_dir():
        make_parts(
            root,
            LAYERS[tiny],
            TINY if tiny else REAL,
            CLIP_TINY if tiny else CLIP_L,
            window=4096,
            cuda=not tiny,
        )
        sides.make_data(root, pictures)
    stage = {
        "epochs": 1,
        "batch_size": 16,
        "micro_batch_size": 8,
        "learning_rate": 2e-4,
        "max_length": 2048,
        "warmup_ratio": 0.03,
    }
    raw = {
        "name": "bench",
        "root": str(root),
        "language": {"part": str(root / "language")},
        "vision": {"part": str(root / "vision")},
        "projector": {"pool": pool},
        "data": {"images": "images", "instruct": ["train.json"]},
        "features": {"dtype": "float16"},
        "train": {
            "quantize": not tiny,
            "gradient_checkpointing": not tiny,
            "lora": {"rank": 64, "alpha": 128},
            "instruct": stage,
            "log_every": 1,
        },
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(raw))
    words = [
        sys.executable,
        "-m",
        "phisense",
        "features",
        str(root / "recipe.yaml"),
        "--set",
        "features.folder=features/bench",
    ]
    subprocess.run(words, check=True)
    subprocess.run(
        [
            sys.executable,
            __file__,
            "--side",
            "start",
            "--root",
            str(root),
            *(["--tiny"] if tiny else []),
        ],
        check=True,
    )


def one_side(side: str, root: Path, changes: tuple[str, ...], *, tiny: bool) -> dict[str, Any]:
    """What `sides` says, but tokens and seconds from the end of the second step to the end of the
    last: a run is not its first step.
    """
    import torch
    from transformers import Trainer, TrainerCallback

    marks: list[tuple[float, int]] = []

    class Pace(TrainerCallback):
        def __init__(self, collate: Any) -> None:
            self.collate = collate

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if not tiny:
                torch.cuda.synchronize()
            marks.append((time.perf_counter(), self.collate.tokens))

    train = Trainer.train

    def paced(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(Pace(self.data_collator))
        return train(self, *args, **kwargs)

    Trainer.train = paced
    said = (
        sides.ours(root, changes, "cpu" if tiny else "cuda")
        if side == "ours"
        else sides.trl(root, gpu=not tiny)
    )
    (began, before), (ended, after) = marks[1], marks[-1]
    said |= {
        "tokens": after - before,
        "seconds": ended - began,
        "memory": 0 if tiny else torch.cuda.max_memory_allocated(),
    }
    return said


def peak() -> float:
    """Operations a second of a large bfloat16 product."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        best = max(best, 2.0 * 8192**3 / (time.perf_counter() - started))
    return best


def weights(tiny: bool) -> int:
    shape = TINY if tiny else REAL
    width, mlp = shape["hidden_size"], shape["intermediate_size"]
    return LAYERS[tiny] * (4 * width**2 + 3 * width * mlp)


def compare(root: Path, rounds: int, tiny: bool, changes: tuple[str, ...]) -> dict[str, Any]:
    best = None if tiny else peak()
    rates: dict[str, list[float]] = {"ours": [], "trl": []}
    memory = {"ours": 0.0, "trl": 0.0}
    for number in range(rounds):
        for side in rates:
            said = sides.child(
                side,
                root,
                (*(("tiny",) if tiny else ()), *(changes if side == "ours" else ())),
                __file__,
            )
            rates[side].append(said["tokens"] / said["seconds"])
            memory[side] = said["memory"] / 1e9
        print(
            f"round {number + 1}: "
            + ", ".join(
                f"{side} {its[-1]:.0f} tokens/s, {memory[side]:.1f} GB"
                for side, its in rates.items()
            ),
            flush=True,
        )
    ratios = [a / b for a, b in zip(rates["ours"], rates["trl"], strict=True)]
    return {
        "ours_tokens_per_s": round(statistics.median(rates["ours"])),
        "trl_tokens_per_s": round(statistics.median(rates["trl"])),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "peak_tflops": best and round(best / 1e12, 1),
        "share_of_peak": (
            best and round(statistics.median(rates["ours"]) * 4 * weights(tiny) / best, 3)
        ),
        "ours_gb": round(memory["ours"], 2),
        "trl_gb": round(memory["trl"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pool", type=int, default=1, help="1: 576 tokens a picture; 2: 144")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on a CPU")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--root", type=Path, help="keep what is made here")
    parser.add_argument("--side", choices=("ours", "trl", "start"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="change a key of our recipe, such as train.gradient_checkpointing=false",
    )
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side == "start":
        sides.start(asked.root, "cpu" if asked.tiny else "cuda")
        return
    if asked.side:
        asked.out.write_text(
            json.dumps(
                one_side(
                    asked.side,
                    asked.root,
                    tuple(c for c in asked.set if c != "tiny"),
                    tiny="tiny" in asked.set,
                )
            )
        )
        return
    import torch

    if not asked.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here; --tiny shows on a CPU that the benchmark runs")
    with tempfile.TemporaryDirectory() as spare:
        root = (asked.root or Path(spare)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        make(root, tiny=asked.tiny, pool=asked.pool, pictures=asked.pictures)
        result = compare(root, asked.rounds, asked.tiny, tuple(asked.set))
    if not asked.tiny:
        print(torch.cuda.get_device_name())
    for key, value in result.items():
        print(f"{key}: {value}")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
