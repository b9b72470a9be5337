"""Thin wrapper of llama.cpp's C API: one model file, and independent KV caches (sequences).

    decode(sequence, start, token ids (T,) or embeddings (T, H))
        --> logits (V,) of the last position, or (T, V)
    decode_runs([(sequence, start, inputs), ...])
        --> logits (N, V) of the last position of each, computed together

llama.cpp computes in a thread of its own. Its AMX kernels configure the CPU's tile registers once
per thread and rely on that, while PyTorch's bfloat16 matrix products release the configuration: in
a shared thread the next tile instruction would kill the process (SIGILL).

Each sequence has its own cells (`kv_unified` off), so sequences can neither read nor slow each
other. This also keeps LongRoPE correct: llama.cpp switches to the long factors as soon as a
sequence has more cells than the original context length.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import ArtifactError, ChatError
from ..opening.gguf import validate_foreign_gguf, validate_gguf
from ..opening.sandbox import check_llama_opens
from .batching import GenerationStopped
from .llama_probe import PROBED_WIDTH, can_repack_file

Embeddings = np.ndarray[Any, np.dtype[np.float32]]
Logits = np.ndarray[Any, np.dtype[np.float32]]

BATCH_SIZE = 512  # positions per batch
_LOG_LEVEL_ERROR = 4  # llama.cpp's level
_CODE_ABORTED = 2  # returned by llama_decode when the abort callback stopped it


@dataclass
class _ErrorLog:
    lines: list[str] = field(default_factory=list)

    @property
    def last(self) -> str | None:
        return self.lines[-1].strip() if self.lines else None


@contextmanager
def capture_errors() -> Iterator[_ErrorLog]:
    """Silence llama.cpp's log inside the block, and collect its error messages."""
    import llama_cpp

    heard = _ErrorLog()

    def hear(level: int, text: bytes, _: Any) -> None:
        if level == _LOG_LEVEL_ERROR and text.strip():
            heard.lines.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(hear)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield heard
    finally:
        llama_cpp.llama_log_set(_get_silent_callback(), ctypes.c_void_p(0))


class LlamaContext:
    """`sequences` float16 KV caches of `window` positions each. Not thread-safe: one call at a
    time.
    """

    def __init__(
        self, path: Path, *, window: int, sequences: int, threads: int, foreign: bool = False
    ) -> None:
        """`foreign` admits a file that another converter wrote.

        Raises ArtifactError, with llama.cpp's message, if it cannot load the file, and PartError if
        it is not to be opened, or loading would crash the process.
        """
        (validate_foreign_gguf if foreign else validate_gguf)(path)
        repack = can_repack_file(path)
        check_llama_opens(path)
        import llama_cpp

        self._llama: Any = llama_cpp
        llama_cpp.llama_backend_init()
        with capture_errors() as heard:
            model_how = llama_cpp.llama_model_default_params()
            model_how.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
            model_how.use_extra_bufts = repack
            model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_how)
            if model is not None and repack and llama_cpp.llama_model_n_embd(model) < PROBED_WIDTH:
                llama_cpp.llama_model_free(model)
                model_how.use_extra_bufts = False
                model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_how)
            if model is None:
                raise ArtifactError(
                    f"llama.cpp cannot load {path}",
                    got=heard.last or "no reason",
                    do="Run phisense export again",
                )
            how = llama_cpp.llama_context_default_params()
            how.n_ctx, how.n_seq_max, how.kv_unified = window * sequences, sequences, False
            how.n_batch = how.n_ubatch = min(BATCH_SIZE, window)
            how.n_threads = how.n_threads_batch = threads
            # On a CPU, llama.cpp's flash attention accumulates single rows in float16: a token
            # computed alone and in a batch then differ by 0.01, with logits of standard deviation
            # 1.7. Without it they differ by 0.000002 (float32).
            how.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self._context = llama_cpp.llama_init_from_model(model, how)
            if self._context is None:
                llama_cpp.llama_model_free(model)
                raise ArtifactError(
                    f"llama.cpp has no room for {path.name}",
                    got=heard.last or f"{sequences} x {window} positions",
                    do="Free some memory",
                )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="llama.cpp")
        self.batch = int(how.n_batch)
        self.vocab_size = int(
            llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        )
        self.hidden_size = int(llama_cpp.llama_model_n_embd(model))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._token_batch = llama_cpp.llama_batch_init(self.batch, 0, 1)
        self._embedding_batch = llama_cpp.llama_batch_init(self.batch, self.hidden_size, 1)
        #: Frees the memory; also called when the context is garbage-collected.
        self.close = weakref.finalize(
            self,
            _free,
            llama_cpp,
            model,
            self._context,
            (self._token_batch, self._embedding_batch),
            self._executor,
        )
        # llama.cpp calls the abort callback between any two operations, from its own threads: a
        # Python function would wait for the GIL each time. The C library's strlen needs no GIL: on
        # this buffer it returns 0 until a byte is set to abort.
        self._abort_flag = ctypes.create_string_buffer(2)
        self._abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, llama_cpp.ggml_abort_callback)
        llama_cpp.llama_set_abort_callback(
            self._context, self._abort_callback, ctypes.cast(self._abort_flag, ctypes.c_void_p)
        )

    def decode(
        self,
        sequence: int,
        start: int,
        inputs: Sequence[int] | Embeddings,
        *,
        all_logits: bool = False,
        stop: threading.Event | None = None,
    ) -> Logits:
        """Compute positions `start`, `start + 1`, ... of a sequence that holds exactly `start`
        positions; inputs are token ids `(T,)` or embeddings `(T, H)`.

        Returns the logits `(V,)` of the last position, or `(T, V)` with `all_logits`. Raises
        GenerationStopped, within milliseconds of `stop` being set.
        """
        found = []
        with self._stoppable(stop):
            for begin in range(0, len(inputs), self.batch):
                part = inputs[begin : begin + self.batch]
                last = begin + len(part) == len(inputs)
                wanted: Literal["none", "last", "all"] = (
                    "all" if all_logits else "last" if last else "none"
                )
                batch = self._fill_batch([(sequence, start + begin, part)], wanted)
                self._compute_or_restore(batch, {sequence: start})
                if all_logits or last:
                    found.append(self._logits(len(part) if all_logits else 1))
        return np.concatenate(found) if all_logits else found[-1][0]

    def decode_runs(
        self,
        runs: Sequence[tuple[int, int, Sequence[int] | Embeddings]],
        *,
        stop: threading.Event | None = None,
    ) -> Logits:
        """As `decode` for `(sequence, start, inputs)` of N different sequences in one batch, of
        either token ids or embeddings, which it must hold. Returns the logits `(N, V)` of each
        run's last position.
        """
        with self._stoppable(stop):
            batch = self._fill_batch(runs, "last")
            self._compute_or_restore(batch, {sequence: start for sequence, start, _ in runs})
        ends = itertools.accumulate(len(inputs) for _, _, inputs in runs)
        rows = [self._llama.llama_get_logits_ith(self._context, end - 1) for end in ends]
        return np.stack([np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows])

    def _compute_or_restore(self, batch: Any, starts: dict[int, int]) -> None:
        """Compute a batch; if that fails or is stopped, its sequences go back to their `starts`."""
        code = self._compute(batch)
        if code == 0:
            return
        for sequence, start in starts.items():
            self.truncate_to(sequence, start)
        if code == _CODE_ABORTED:
            raise GenerationStopped
        raise ChatError(
            "llama.cpp could not go on", got=f"code {code}", do="Start a new conversation"
        )

    def _compute(self, batch: Any) -> int:
        """Run llama_decode and return its code. An exception while waiting, such as
        KeyboardInterrupt, aborts the computation first.
        """
        running = self._executor.submit(self._llama.llama_decode, self._context, batch)
        try:
            return int(running.result())
        except BaseException:
            self._abort_flag[0] = b"x"
            wait([running])
            raise

    def copy_from(self, source: int, sequence: int, length: int) -> None:
        """Let a sequence hold the first `length` positions of `source`, and nothing else."""
        self.truncate_to(sequence)
        self._llama.llama_memory_seq_cp(self._memory, source, sequence, -1, -1)
        self.truncate_to(sequence, length)

    def truncate_to(self, sequence: int, start: int = 0) -> None:
        """Remove the sequence's cells from position `start` on."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def length(self, sequence: int) -> int:
        """Number of positions in the sequence's cache."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def _fill_batch(
        self,
        runs: Sequence[tuple[int, int, Sequence[int] | Embeddings]],
        wanted: Literal["none", "last", "all"],
    ) -> Any:
        """The batch of some runs, with the logits of none of their positions, the last, or all."""
        is_embeddings = isinstance(runs[0][2], np.ndarray)
        batch = self._embedding_batch if is_embeddings else self._token_batch
        at = 0
        for sequence, start, inputs in runs:
            count = len(inputs)
            if is_embeddings:
                values = np.ascontiguousarray(inputs, np.float32)
                self._check_shape(values, count)
                where = ctypes.addressof(batch.embd.contents) + 4 * at * self.hidden_size
                ctypes.memmove(where, values.ctypes.data, values.nbytes)
            for i in range(count):
                if not is_embeddings:
                    batch.token[at + i] = inputs[i]
                batch.pos[at + i] = start + i
                batch.n_seq_id[at + i] = 1
                batch.seq_id[at + i][0] = sequence
                batch.logits[at + i] = wanted == "all" or (wanted == "last" and i == count - 1)
            at += count
        batch.n_tokens = at
        return batch

    def _check_shape(self, values: Embeddings, count: int) -> None:
        if values.shape != (count, self.hidden_size):
            raise ArtifactError(
                "the picture part does not belong to the text part",
                got=f"vectors of shape {values.shape}",
                wanted=f"{(count, self.hidden_size)}",
                do="Run phisense export again",
            )

    def _logits(self, count: int) -> Logits:
        """Copy the last batch's logits, which the next batch overwrites."""
        pointer = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self.vocab_size)).copy()

    @contextmanager
    def _stoppable(self, stop: threading.Event | None) -> Iterator[None]:
        self._abort_flag[0] = b"\0"
        if stop is None:
            yield
            return
        if stop.is_set():
            raise GenerationStopped
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                if stop.is_set():
                    self._abort_flag[0] = b"x"
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._abort_flag[0] = b"\0"


def _free(
    llama_cpp: Any,
    model: Any,
    context: Any,
    batches: tuple[Any, ...],
    computing: ThreadPoolExecutor,
) -> None:
    computing.shutdown(wait=False)  # no call is running, and this may run in that very thread
    for batch in batches:
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


_silent_callback: Any = None


def _get_silent_callback() -> Any:
    """A callback without effect, kept alive because llama.cpp holds a pointer to it."""
    global _silent_callback
    if _silent_callback is None:
        import llama_cpp

        _silent_callback = llama_cpp.llama_log_callback(lambda *_: None)
    return _silent_callback
