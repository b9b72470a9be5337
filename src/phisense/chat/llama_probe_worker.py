"""Probes llama.cpp in a process of its own: run as a script by `llama_probe`, never imported by the
rest of phisense.

    argv    one JSON object: types (GGUF names of tensor types), repack (whether llama.cpp may
            repack weights)
    stdout  `ready` once the float32 model has been computed; then for each type `try NAME`, and
            `done NAME COSINE` or `skip NAME REASON`

A kernel that the CPU does not support, or that was miscompiled, kills the process by a signal: this
one instead of one that serves a chat. The model is tiny, with random weights, and quantized here.
COSINE is the lower of two cosine similarities with the float32 model's logits: after a batch of
tokens and after a single token, which llama.cpp computes with different kernels. Torch is not
imported, so the probe takes a second or two.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

#: llama.cpp's file type ids (LLAMA_FTYPE) for a single tensor type. Types that need an importance
#: matrix are omitted.
FILE_TYPES = {
    "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
WIDTH, ROWS, HEADS = 256, 256, 4  # k-quants have blocks of 256 values
THREADS = 2  # several: a kernel may need per-thread setup by the OS
TOKENS = [7 * i % ROWS for i in range(33)]  # more than one tile of any kernel, and a remainder

_LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def main() -> None:
    """Run the probes requested in argv, and print the result of each."""
    asked = json.loads(sys.argv[1])
    # no core dump after a crash, where the OS supports that setting
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "float32.gguf", Path(folder) / "quantised.gguf"
        write_probe_model(whole)
        right = probe_logits(whole, repack=asked["repack"])
        print_line("ready")
        for name in asked["types"]:
            print_line(f"try {name}")
            if not quantize_probe(whole, small, FILE_TYPES[name]):
                print_line(f"skip {name} llama.cpp does not quantize to it")
                continue
            found = probe_logits(small, repack=asked["repack"])
            print_line(
                f"done {name}"
                f" {min(cosine_similarity(a, b) for a, b in zip(right, found, strict=True)):.4f}"
            )


def print_line(line: str) -> None:
    """Print a line for the parent process, and flush."""
    print(line, flush=True)  # noqa: T201, it is what the other process reads


def write_probe_model(path: Path) -> None:
    """Write a one-layer float32 language model without a vocabulary."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(ROWS)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("token_embd", "output", *(f"blk.0.{one}" for one in _LAYER)):
        values = random.standard_normal((ROWS if "." not in name else WIDTH, WIDTH)) * WIDTH**-0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_probe(source: Path, target: Path, file_type: int) -> bool:
    """Quantize the GGUF file `source` to `target` with one thread; False if llama.cpp fails."""
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread, how.pure = file_type, 1, True
    return bool(
        llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(how)
        )
        == 0
    )


def probe_logits(path: Path, *, repack: bool) -> list[Any]:
    """Return the logits `(V,)` after a batch, and those after one more token."""
    model_how = llama_cpp.llama_model_default_params()
    model_how.use_extra_bufts = repack
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_how)
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_threads, how.n_threads_batch = 64, THREADS, THREADS
    context = llama_cpp.llama_init_from_model(model, how) if model else None
    if context is None:
        raise SystemExit(f"llama.cpp did not open a model of its own making, {path.name}")
    found = []
    for ids in (TOKENS, [5]):
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch points to it
        if (
            code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        ) != 0:
            raise SystemExit(f"llama.cpp's llama_decode returned {code}")
        found.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (ROWS,)).copy())
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def cosine_similarity(a: Any, b: Any) -> float:
    """Cosine similarity of two vectors; NaN if either contains NaN."""
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


if __name__ == "__main__":
    main()
