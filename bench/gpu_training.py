"""QLoRA at Phi-3.5-mini's shape on one GPU, beside TRL with PEFT: tokens a second, share of the card's peak, memory.

Needs a CUDA GPU of 24 GB, 20 GB of disk, `pip install -e . trl`. Random weights: 32 layers of width 3,072 in NF4, LoRA of rank 64,
CLIP-L/14-336's shape, conversations as in bench/training.py; 576 tokens a picture, and 144 (`--pool 2`). Both sides train the same
conversations for one epoch in processes of their own, alternating. The peak is that of a bfloat16 product of 8,192-square matrices here; a
token of training costs 4 N operations, N the weights of the language part's matrices (docs/memory.md). `--tiny` runs all of it at a tiny
shape on a CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import gc
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

REAL = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "projection_dim": 768}
CLIP_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def make(root: Path, *, tiny: bool, pool: int, pictures: int) -> None:
    """Parts of random weights, data, the recipe, stored features, and the folder that both sides begin with."""
    import shutil

    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

    import phisense

    torch.manual_seed(0)
    side, patch = (64, 16) if tiny else (336, 14)
    shape = TINY if tiny else REAL
    if not (root / "language").is_dir():
        config = Phi3Config(
            vocab_size=32064, num_key_value_heads=shape["num_attention_heads"], max_position_embeddings=4096, bos_token_id=1,
            original_max_position_embeddings=4096, sliding_window=None, eos_token_id=None, pad_token_id=None,
            tie_word_embeddings=False, **shape,
        )  # fmt: skip
        torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
        with torch.device("cpu" if tiny else "cuda"):
            Phi3ForCausalLM(config).save_pretrained(root / "language")
            CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=patch, **(CLIP_TINY if tiny else CLIP_L))).save_pretrained(
                root / "vision"
            )
        torch.set_default_dtype(torch.float32)
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(root / "vision")
        for path in (Path(phisense.__file__).parent / "practice" / "parts" / "language").glob("tokenizer*.json"):
            shutil.copy(path, root / "language")
        sides.make_data(root, pictures)
    stage = {"epochs": 1, "batch": 16, "micro_batch": 8, "learning_rate": 2e-4, "length": 2048, "warm_up": 0.03}
    raw = {
        "name": "bench", "root": str(root), "language": {"part": str(root / "language")}, "vision": {"part": str(root / "vision")},
        "projector": {"pool": pool}, "data": {"images": "images", "instruct": ["train.json"]}, "features": {"dtype": "float16"},
        "train": {"quantise": not tiny, "checkpointing": not tiny, "lora": {"rank": 64, "alpha": 128}, "instruct": stage, "log_every": 1},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(raw))
    words = [sys.executable, "-m", "phisense", "features", str(root / "recipe.yaml"), "--set", "features.folder=features/bench"]
    subprocess.run(words, check=True)
    sides.recipe_file = lambda at: at / "recipe.yaml"
    sides.start(root, "cpu" if tiny else "cuda")
    gc.collect()
    torch.cuda.empty_cache()  # the sides have processes of their own


def one_side(side: str, root: Path, *, tiny: bool) -> dict[str, Any]:
    import torch

    sides.recipe_file = lambda at: at / "recipe.yaml"
    said = sides.ours(root, (), "cpu" if tiny else "cuda") if side == "ours" else sides.trl(root, gpu=not tiny)
    said["memory"] = 0 if tiny else torch.cuda.max_memory_allocated()
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
    return shape["num_hidden_layers"] * (4 * width**2 + 3 * width * mlp)


def child(side: str, root: Path, tiny: bool) -> dict[str, Any]:
    out = root / "said.json"
    words = [sys.executable, __file__, "--side", side, "--root", str(root), "--out", str(out), *(["--tiny"] if tiny else [])]
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stdout[-3000:] + ran.stderr[-3000:])
    said: dict[str, Any] = json.loads(out.read_text())
    return said


def compare(root: Path, rounds: int, tiny: bool) -> dict[str, Any]:
    best = 1.0 if tiny else peak()
    rates: dict[str, list[float]] = {"ours": [], "trl": []}
    memory = {"ours": 0.0, "trl": 0.0}
    for number in range(rounds):
        for side in rates:
            said = child(side, root, tiny)
            rates[side].append(said["tokens"] / said["seconds"])
            memory[side] = said["memory"] / 1e9
        print(
            f"round {number + 1}: " + ", ".join(f"{side} {its[-1]:.0f} tokens/s, {memory[side]:.1f} GB" for side, its in rates.items()),
            flush=True,
        )
    ratios = [a / b for a, b in zip(rates["ours"], rates["trl"], strict=True)]
    return {
        "ours_tokens_per_s": round(statistics.median(rates["ours"])), "trl_tokens_per_s": round(statistics.median(rates["trl"])),
        "ratio": round(statistics.median(ratios), 3), "ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3),
        "peak_tflops": round(best / 1e12, 1), "share_of_peak": round(statistics.median(rates["ours"]) * 4 * weights(tiny) / best, 3),
        "ours_gb": round(memory["ours"], 2), "trl_gb": round(memory["trl"], 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pool", type=int, default=1, help="1: 576 tokens a picture; 2: 144")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on a CPU")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--root", type=Path, help="keep what is made here")
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        asked.out.write_text(json.dumps(one_side(asked.side, asked.root, tiny=asked.tiny)))
        return
    import torch

    if not asked.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here; --tiny shows on a CPU that the benchmark runs")
    with tempfile.TemporaryDirectory() as spare:
        root = (asked.root or Path(spare)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        make(root, tiny=asked.tiny, pool=asked.pool, pictures=asked.pictures)
        result = compare(root, asked.rounds, asked.tiny)
    if not asked.tiny:
        print(torch.cuda.get_device_name())
    for key, value in result.items():
        print(f"{key}: {value}")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
