"""Loads a GGUF file with llama.cpp in a subprocess: run as a script by `sandbox`, never imported.

    argv    one JSON object: memory (bytes), seconds (CPU time); the file
    stderr  the last line says why the file cannot be loaded

llama.cpp aborts the process on inconsistencies that it does not check for, some of them only in the
forward pass. So all weights are checked for non-finite values, and two tokens are decoded.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from contextlib import suppress

THREAD_STACK = 1 << 20  # bytes


def main() -> None:
    """Load the GGUF file within the limits; the exit status says whether llama.cpp succeeded."""
    _narrow_stacks()
    limits = json.loads(sys.argv[1])
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"] + 2))
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    import llama_cpp

    heard: list[str] = []

    def hear(level: int, text: bytes, _: object) -> None:
        if level == 4 and text.strip():  # errors
            heard.append(text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(hear)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    how = llama_cpp.llama_model_default_params()
    how.check_tensors, how.use_extra_bufts = True, False
    model = llama_cpp.llama_model_load_from_file(sys.argv[2].encode(), how)
    if model is None:
        sys.exit(heard[0] if heard else "no reason")
    room = llama_cpp.llama_context_default_params()
    room.n_ctx, room.n_batch, room.n_ubatch = 64, 32, 32
    room.n_threads = room.n_threads_batch = 1
    room.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, room)
    if context is None:
        sys.exit(heard[0] if heard else "no context")
    tokens = (llama_cpp.llama_token * 2)(0, 1)
    if code := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 2)):
        sys.exit(f"llama_decode returned {code}")
    rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    if not all(map(math.isfinite, llama_cpp.llama_get_logits(context)[:rows])):
        sys.exit("logits that are no numbers")
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def _narrow_stacks() -> None:
    """Start again with small stacks for threads: llama.cpp checks each tensor in a thread of its
    own, and what all of them reserve would count as memory. The C library reads it at its start.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_STACK)
        if now == resource.RLIM_INFINITY or now > THREAD_STACK:
            resource.setrlimit(resource.RLIMIT_STACK, (THREAD_STACK, most))
            env = {**os.environ, "MALLOC_ARENA_MAX": "2"}
            os.execve(sys.executable, [sys.executable, "-P", *sys.argv], env)  # noqa: S606


if __name__ == "__main__":
    main()
