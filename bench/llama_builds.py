"""Builds of llama.cpp beside each other: reading a prompt and saying tokens, at one layer shape of
Phi-3.5-mini, in each quantisation.

    python bench/llama_builds.py --build native=DIR --build unpacked=DIR:plain --build amx=DIR

DIR is a `llama_cpp/lib` folder, as a build installs it (of the llama-cpp-python that is installed
here, or its bindings do not fit); with `:plain` weights stay as stored (`use_extra_bufts` off).
Each measurement is a process of its own; the builds alternate. A build that dies is told and left
out. Ratios are of medians of the same round, to the first build that lived.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

HIDDEN, INNER, HEADS, ROWS = 3072, 8192, 32, 32064
TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
PROMPT, TOKENS = 256, 32


def make(folder: Path, layers: int) -> None:
    """The float16 model with random weights, and its quantised files."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "f16.gguf"
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(whole, "phi3", use_temp_file=True)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_sliding_window(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(ROWS)
    shapes = {"token_embd": (ROWS, HIDDEN), "output": (ROWS, HIDDEN), "output_norm": (HIDDEN,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.attn_norm": (HIDDEN,), f"blk.{i}.ffn_norm": (HIDDEN,)}
        shapes |= {
            f"blk.{i}.attn_qkv": (3 * HIDDEN, HIDDEN),
            f"blk.{i}.attn_output": (HIDDEN, HIDDEN),
        }
        shapes |= {f"blk.{i}.ffn_up": (2 * INNER, HIDDEN), f"blk.{i}.ffn_down": (HIDDEN, INNER)}
    for name, shape in shapes.items():
        values = (
            np.ones(shape, np.float32)
            if len(shape) == 1
            else random.standard_normal(shape, np.float32) * shape[-1] ** -0.5
        )
        writer.add_tensor(
            f"{name}.weight", values.astype(np.float32 if len(shape) == 1 else np.float16)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, number in TYPES.items():
        if name != "f16":
            how = llama_cpp.llama_model_quantize_default_params()
            how.ftype, how.nthread = number, len(os.sched_getaffinity(0))
            assert (
                llama_cpp.llama_model_quantize(
                    str(whole).encode(), str(folder / f"{name}.gguf").encode(), ctypes.byref(how)
                )
                == 0
            )


def child(path: str, repack: bool, threads: int) -> None:
    """Prints prompt and decode speed in tokens a second, the better of two."""
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model_how = llama_cpp.llama_model_default_params()
    model_how.use_extra_bufts = repack
    begin = time.perf_counter()
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_how)
    opened = time.perf_counter() - begin
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_batch, how.n_ubatch = 512, 512, 512
    how.n_threads = how.n_threads_batch = threads
    how.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as phisense has it
    context = llama_cpp.llama_init_from_model(model, how)
    found: list[tuple[float, float]] = []
    for _ in range(3):  # the first one warms up
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        prompt = (llama_cpp.llama_token * PROMPT)(*(7 * i % ROWS for i in range(PROMPT)))
        times = [time.perf_counter()]
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(prompt, PROMPT)) == 0
        times.append(time.perf_counter())
        token = (llama_cpp.llama_token * 1)(7)
        for _ in range(TOKENS):
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)) == 0
            token[0] = int(
                np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (ROWS,)).argmax()
            )
        times.append(time.perf_counter())
        found.append((PROMPT / (times[1] - times[0]), TOKENS / (times[2] - times[1])))
    read, say = (max(values) for values in zip(*found[1:], strict=True))
    print(json.dumps({"prompt": read, "decode": say, "opened": opened}))


def measured(path: Path, build: str, threads: int) -> dict[str, float] | str:
    """The child's figures, or how it died."""
    folder, _, plain = build.partition(":")
    env = {
        **os.environ,
        "LLAMA_CPP_LIB_PATH": str(Path(folder).resolve()),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
    }
    words = [
        sys.executable,
        __file__,
        "--child",
        str(path),
        "plain" if plain else "repack",
        str(threads),
    ]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"died: {done.returncode} {done.stderr.strip()[-200:]}"
    made: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return made


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3] == "repack", int(sys.argv[4]))
        return
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--build", action="append", required=True, metavar="NAME=DIR[:plain]")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="one, where others compute, too",
    )
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--quant", nargs="*", choices=list(TYPES), default=list(TYPES))
    options.add_argument(
        "--folder", type=Path, default=Path(__file__).parent / "made" / "llama_builds"
    )
    asked = options.parse_args()
    if not all((asked.folder / f"{name}.gguf").is_file() for name in TYPES):
        make(asked.folder, asked.layers)
    builds: dict[str, str] = dict(one.split("=", 1) for one in asked.build)
    for quant in asked.quant:
        compare(asked.folder / f"{quant}.gguf", builds, asked.rounds, asked.threads)


def compare(path: Path, builds: dict[str, str], rounds: int, threads: int) -> None:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in builds}
    for number in range(rounds):
        order = list(rows) if number % 2 == 0 else list(rows)[::-1]
        for name in order:
            made = measured(path, builds[name], threads)
            if isinstance(made, str):
                print(f"{path.stem} {name}: {made}", flush=True)
                del rows[name]
            else:
                rows[name].append(made)
    first = next(iter(rows))
    for name, found in rows.items():
        figures = []
        for kind in ("prompt", "decode", "opened"):
            ratios = [
                mine[kind] / theirs[kind] for mine, theirs in zip(found, rows[first], strict=True)
            ]
            figures.append(
                f"{kind} {told([one[kind] for one in found])}, {told(ratios)} of {first}"
            )
        print(f"{path.stem} {name}: " + "; ".join(figures), flush=True)


if __name__ == "__main__":
    main()
