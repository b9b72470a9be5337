"""What bitsandbytes' layout for inference brings: one layer of Phi-3.5-mini in NF4, as it was
quantised and laid out anew, taking turns.

    python bench/four_bit_layout.py --rounds 7 --json

Needs a CPU with AVX512-BF16; elsewhere there is no such layout. Products in bfloat16 of 1, 16 and
256 tokens; medians, lowest and highest of the rounds, and how far the answers are apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import nn

from phisense.model import quantized
from phisense.model.device import describe_machine

SHAPES = {
    "qkv_proj": (3072, 9216),
    "o_proj": (3072, 3072),
    "gate_up_proj": (3072, 16384),
    "down_proj": (8192, 3072),
}
TOKENS = (1, 16, 256)


def layer() -> nn.ModuleDict:
    torch.manual_seed(0)
    made = nn.ModuleDict()
    for name, (wide, out) in SHAPES.items():
        one = Linear4bit(
            wide,
            out,
            bias=False,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            compress_statistics=True,
        )
        made[name] = one.to("cpu")
    quantized.set_compute_dtype(made, torch.bfloat16)
    quantized.forbid_repacking(made)
    return made.eval()


@torch.inference_mode()
def products(model: nn.ModuleDict, given: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    return [model[name](given[wide]) for name, (wide, _) in SHAPES.items()]


def timed(model: nn.ModuleDict, given: dict[int, torch.Tensor], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        products(model, given)
    return (time.perf_counter() - started) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not has_avx512bf16():
        raise SystemExit("this processor has no AVX512-BF16, so there is nothing to compare")
    stored, repacked = layer(), layer()
    quantized.allow_repacking(repacked)
    rows = []
    for tokens in TOKENS:
        given = {
            wide: torch.randn(tokens, wide, dtype=torch.bfloat16) for wide, _ in SHAPES.values()
        }
        cosine = min(
            float(nn.functional.cosine_similarity(a.float().flatten(), b.float().flatten(), 0))
            for a, b in zip(products(stored, given), products(repacked, given), strict=True)
        )
        times = max(2, 64 // tokens)
        pairs = [
            (timed(stored, given, times), timed(repacked, given, times))
            for _ in range(asked.rounds)
        ]
        ratios = [slow / fast for slow, fast in pairs]
        rows.append(
            {
                "tokens": tokens,
                "stored_ms": 1e3 * statistics.median(slow for slow, _ in pairs),
                "repacked_ms": 1e3 * statistics.median(fast for _, fast in pairs),
                "times_as_fast": [statistics.median(ratios), min(ratios), max(ratios)],
                "cosine": cosine,
            }
        )
    found = {"machine": describe_machine(torch.device("cpu")).to_dict(), "rows": rows}
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for row in rows:
        middle, low, high = row["times_as_fast"]
        print(
            f"{row['tokens']:>4} tokens: {row['stored_ms']:.2f} ms as stored,"
            f" {row['repacked_ms']:.2f} ms repacked, {middle:.2f} times as fast ({low:.2f} to"
            f" {high:.2f}), cosine {row['cosine']:.5f}"
        )


if __name__ == "__main__":
    main()
