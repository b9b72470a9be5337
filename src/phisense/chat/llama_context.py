"""llama.cpp's low-level interface, as far as we need it: one model file, and key-value caches that do not see each other.

    decode(sequence, at, ids (T,) or vectors (T, H)) --> logits (V,) of the last position, or (T, V)

llama.cpp computes in a thread of its own. Its kernels for AMX configure the processor's tiles once for each thread and rely on that, while
PyTorch's products in bfloat16 take the configuration away behind them: in one thread the next tile instruction ends the process (SIGILL).

Each sequence has cells of its own (`kv_unified` off), so what one holds can neither be read nor slowed by another. It also keeps
long-rope right: llama.cpp takes its long factors as soon as all cells of a sequence are more than the original context.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtefactError, ChatError
from .llama_probe import TRIED_WIDTH, repacks_file

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Logits = np.ndarray[Any, np.dtype[np.float32]]

BATCH = 512  # positions computed at once
_ERROR = 4  # llama.cpp's level
_ABORTED = 2  # what llama_decode then returns


class Stopped(Exception):  # noqa: N818, no error: it was asked for
    """The computation was stopped before its end; the sequence holds what it held before."""


@dataclass
class _Heard:
    lines: list[str] = field(default_factory=list)

    @property
    def last(self) -> str | None:
        return self.lines[-1].strip() if self.lines else None


@contextmanager
def listening() -> Iterator[_Heard]:
    """Inside, llama.cpp prints nothing; its errors are kept to be told."""
    import llama_cpp

    heard = _Heard()

    def hear(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR and text.strip():
            heard.lines.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(hear)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield heard
    finally:
        llama_cpp.llama_log_set(_silence(), ctypes.c_void_p(0))


class LlamaContext:
    """`sequences` caches of `window` positions each, in float16. Not thread-safe: one computation at a time."""

    def __init__(self, path: Path, *, window: int, sequences: int, threads: int) -> None:
        """Raises ArtefactError if llama.cpp cannot load the file, with what it said, and PartError where it would die of it."""
        repack = repacks_file(path)
        import llama_cpp

        self._llama: Any = llama_cpp
        llama_cpp.llama_backend_init()
        with listening() as heard:
            model_how = llama_cpp.llama_model_default_params()
            model_how.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
            model_how.use_extra_bufts = repack
            model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_how)
            if model is not None and repack and llama_cpp.llama_model_n_embd(model) < TRIED_WIDTH:
                llama_cpp.llama_model_free(model)
                model_how.use_extra_bufts = False
                model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_how)
            if model is None:
                raise ArtefactError(f"llama.cpp cannot load {path}", got=heard.last or "no reason", do="Run phisense export again")
            how = llama_cpp.llama_context_default_params()
            how.n_ctx, how.n_seq_max, how.kv_unified = window * sequences, sequences, False
            how.n_batch = how.n_ubatch = min(BATCH, window)
            how.n_threads = how.n_threads_batch = threads
            # llama.cpp's fused attention rounds what a single row adds up to float16 on a CPU: a token computed alone and the same one
            # computed among others then differ by 0.01 of logits whose deviation is 1.7. Without it: by 0.000002 in float32.
            how.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self._context = llama_cpp.llama_init_from_model(model, how)
            if self._context is None:
                llama_cpp.llama_model_free(model)
                raise ArtefactError(
                    f"llama.cpp has no room for {path.name}", got=heard.last or f"{sequences} x {window} positions", do="Free some memory"
                )
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="llama.cpp")
        self.batch = int(how.n_batch)
        self.rows = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self.width = int(llama_cpp.llama_model_n_embd(model))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._tokens = llama_cpp.llama_batch_init(self.batch, 0, 1)
        self._vectors = llama_cpp.llama_batch_init(self.batch, self.width, 1)
        #: Gives the memory back; also done when nobody has the context any more.
        self.close = weakref.finalize(self, _free, llama_cpp, model, self._context, (self._tokens, self._vectors), self._computing)
        # llama.cpp asks between any two operations whether to go on, from its own threads: a Python function there would wait for the
        # interpreter's lock each time. The C library's strlen of a text that is empty until somebody wants an end does not.
        self._ending = ctypes.create_string_buffer(2)
        self._ask = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)
        llama_cpp.llama_set_abort_callback(self._context, self._ask, ctypes.cast(self._ending, ctypes.c_void_p))

    def decode(
        self, sequence: int, at: int, new: Sequence[int] | Vectors, *, every: bool = False, stop: threading.Event | None = None
    ) -> Logits:
        """Computes positions `at`, `at + 1`, ... of a sequence that holds exactly the `at` before; ids `(T,)` or vectors `(T, H)`.

        Returns the logits `(V,)` after the last, or `(T, V)` with `every`. Raises Stopped, some milliseconds after `stop` is set.
        """
        found = []
        with self._stoppable(stop):
            for begin in range(0, len(new), self.batch):
                part = new[begin : begin + self.batch]
                last = begin + len(part) == len(new)
                batch = self._filled(sequence, at + begin, part, every, last)
                code = self._compute(batch)
                if code != 0:
                    self.forget(sequence, at)
                    if code == _ABORTED:
                        raise Stopped
                    raise ChatError("llama.cpp could not go on", got=f"code {code}", do="Start a new conversation")
                if every or last:
                    found.append(self._logits(len(part) if every else 1))
        return np.concatenate(found) if every else found[-1][0]

    def _compute(self, batch: Any) -> int:
        """llama.cpp's own code: 0, or why it stopped. Whatever interrupts the waiting, Ctrl-C above all, ends the computation first."""
        running = self._computing.submit(self._llama.llama_decode, self._context, batch)
        try:
            return int(running.result())
        except BaseException:
            self._ending[0] = b"x"
            wait([running])
            raise

    def forget(self, sequence: int, begin: int = 0) -> None:
        """Frees the sequence's cells from position `begin` on."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, begin, -1)

    def held(self, sequence: int) -> int:
        """Positions that the sequence holds."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def _filled(self, sequence: int, at: int, part: Sequence[int] | Vectors, every: bool, last: bool) -> Any:
        count = len(part)
        if isinstance(part, np.ndarray):
            batch = self._vectors
            values = np.ascontiguousarray(part, np.float32)
            assert values.shape == (count, self.width), "vectors of another width"
            ctypes.memmove(batch.embd, values.ctypes.data, values.nbytes)
        else:
            batch = self._tokens
            for i, token in enumerate(part):
                batch.token[i] = token
        for i in range(count):
            batch.pos[i] = at + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = every or (last and i == count - 1)
        batch.n_tokens = count
        return batch

    def _logits(self, count: int) -> Logits:
        """Of the last batch, copied: the next one overwrites them."""
        pointer = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self.rows)).copy()

    @contextmanager
    def _stoppable(self, stop: threading.Event | None) -> Iterator[None]:
        self._ending[0] = b"\0"
        if stop is None:
            yield
            return
        if stop.is_set():
            raise Stopped
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                if stop.is_set():
                    self._ending[0] = b"x"
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._ending[0] = b"\0"


def _free(llama_cpp: Any, model: Any, context: Any, batches: tuple[Any, ...], computing: ThreadPoolExecutor) -> None:
    computing.shutdown(wait=False)  # nobody computes any more, and this may run in that very thread
    for batch in batches:
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


_quiet: Any = None


def _silence() -> Any:
    """A callback that llama.cpp may keep for good."""
    global _quiet
    if _quiet is None:
        import llama_cpp

        _quiet = llama_cpp.llama_log_callback(lambda *_: None)
    return _quiet
