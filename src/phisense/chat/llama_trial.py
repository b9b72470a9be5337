"""Tries llama.cpp on this machine, in a process of its own: run as a script by `llama_probe`, never imported by the rest of phisense.

    argv    one JSON object: types (tensor types by their GGUF names), repack (whether llama.cpp may change the layout of weights)
    stdout  `ready` once the float32 model has answered; then for each type `try NAME`, and `done NAME COSINE` or `skip NAME REASON`

A kernel that does not suit the processor, or that its compiler got wrong, ends the process by a signal: better this one than one that
holds a conversation. The model is a tiny one with random weights, quantised on the spot. COSINE is the lower of two, between its
logits and those of the float32 model: after a batch of tokens and after a single one, which llama.cpp computes by different kernels.
Torch is not imported, so that it takes a second or two.
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

#: How llama.cpp numbers a file all of whose matrices are of one type. Types that want an importance matrix are not here.
FILE_TYPES = {
    "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
WIDTH, ROWS, HEADS = 256, 256, 4  # 256 numbers are a block of the k-quants
THREADS = 2  # a kernel may need something of the system in each of its threads
TOKENS = [7 * i % ROWS for i in range(33)]  # more than one tile of any kernel, and a rest

_LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def main() -> None:
    asked = json.loads(sys.argv[1])
    with suppress(ImportError, ValueError, OSError):  # no file of the dead process's memory, where the system can be told so
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "float32.gguf", Path(folder) / "quantised.gguf"
        write_model(whole)
        right = logits(whole, repack=asked["repack"])
        say("ready")
        for name in asked["types"]:
            say(f"try {name}")
            if not quantise(whole, small, FILE_TYPES[name]):
                say(f"skip {name} llama.cpp does not quantise to it")
                continue
            found = logits(small, repack=asked["repack"])
            say(f"done {name} {min(cosine(a, b) for a, b in zip(right, found, strict=True)):.4f}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201, it is what the other process reads


def write_model(path: Path) -> None:
    """A language model of one layer in float32, without a vocabulary."""
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


def quantise(source: Path, target: Path, file_type: int) -> bool:
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread, how.pure = file_type, 1, True
    return bool(llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(how)) == 0)


def logits(path: Path, *, repack: bool) -> list[Any]:
    """Those after a batch `(V,)`, and those after one more token `(V,)`."""
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
        if (code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids)))) != 0:
            raise SystemExit(f"llama.cpp's llama_decode returned {code}")
        found.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (ROWS,)).copy())
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def cosine(a: Any, b: Any) -> float:
    """Not a number if either holds one that is none."""
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


if __name__ == "__main__":
    main()
