"""Probes in a child process whether llama.cpp computes correctly on this machine, before this
process depends on it.

llama.cpp as compiled here      repacked weights      weights as stored  GGUF files of that type
------------------------------  --------------------  -----------------  ---------------------------
works                           ok                    not tried          opened normally
crashes in a repacking kernel   SIGILL, SIGSEGV, ...  ok                 opened without repacking
crashes in every kernel         a signal              a signal           rejected with an error

Repacking (`use_extra_bufts`) changes the layout of weights for the CPU's widest instructions.
Disabling it is logged once. Results are cached in phisense's cache folder, keyed by CPU, system and
library files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .. import artifacts
from ..errors import ArtifactError, PartError
from ..parts import cache_folder

_logger = logging.getLogger(__name__)

#: Probed tensor types: those that llama.cpp quantizes to without an importance matrix.
PROBED_TYPES = (
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
)
#: Row width of the probe model. Narrower models are not repacked: with rows of 32 numbers the AMX
#: kernels of 0.3.36 gave NaN.
PROBED_WIDTH = 256
PROBE_OK = "ok"
# Minimum cosine similarity with the float32 model's logits: Q2_K reaches 0.49 with these weights,
# unrelated logits stay under 0.2.
MIN_COSINE = 0.3
WORKER_TIMEOUT = 60.0  # seconds per child process; it needs one or two
#: GCC 12.2 compiles llama.cpp's AMX kernels correctly only with these flags (docs/llama.md). The
#: Makefile repeats them.
COMPILER_FLAGS = "-fno-tree-dse -fno-dse"
#: Signals of a kernel that the CPU cannot run. Other ways in which a child ends may be transient,
#: and are not cached.
_FATAL_SIGNALS = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT")
WRONG_ANSWERS = "wrong answers"
_WORKER = Path(__file__).with_name("llama_probe_worker.py")
_warned_types: set[str] = set()

#: By tensor type: results with repacked weights and with weights as stored, each `PROBE_OK` or the
#: failure.
LlamaProbeResults = dict[str, tuple[str, str]]


def require_llama_cpp() -> None:
    """Raises PartError with installation instructions if llama.cpp is not installed or cannot be
    loaded.
    """
    try:
        if find_spec("gguf") is None or find_spec("llama_cpp") is None:
            raise ImportError("not found")
        _check_usable({kind: ways[1] for kind, ways in probe_results().items() if kind == "F16"})
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except ImportError as error:
        do = "pip install 'phisense[cpu]'"
        raise PartError(
            "llama.cpp is not installed", wanted="the packages llama-cpp-python and gguf", do=do
        ) from error


def can_repack(types: Iterable[str]) -> bool:
    """Whether llama.cpp may repack weights of these tensor types. An unprobed type is treated like
    the worst probed one.

    Raises PartError, naming signal and type, if llama.cpp computes one of them in neither layout.
    Logs a warning if repacking is disabled, at most once per type.
    """
    tried = probe_results()
    asked = {kind: tried[kind] for kind in types if kind in tried}
    _check_usable({kind: ways[1] for kind, ways in asked.items()})
    if set(types) - {*tried, "F32"}:
        asked = tried
    bad = {kind: ways[0] for kind, ways in asked.items() if ways[0] != PROBE_OK}
    if bad and not _warned_types & bad.keys():
        first = next(iter(bad))
        _logger.warning(
            "llama.cpp as compiled here fails on repacked weights (%s: %s), so they"
            " stay as stored, which is slower; docs/llama.md says how to compile it better",
            first,
            bad[first],
        )
    _warned_types.update(bad)
    return not bad


def can_repack_file(path: Path) -> bool:
    """`can_repack` for a GGUF file's tensors. The file is read only if a probe failed."""
    if all(ways[0] == PROBE_OK for ways in probe_results().values()):
        return True
    return can_repack(tensor_types(path))


def tensor_types(path: Path) -> set[str]:
    """Tensor types of a GGUF file; empty if it is not a GGUF file, which llama.cpp reports
    itself.
    """
    import gguf

    try:
        return {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, LookupError, TypeError, OSError):
        return set()


def probe_results() -> LlamaProbeResults:
    """Return the probe results of this machine, probing now if there are none cached. Raises
    PartError if llama.cpp is not installed.
    """
    return _cached_probe_results(_cache_key(), cache_folder())


@functools.cache
def _cached_probe_results(key: str, cache: Path) -> LlamaProbeResults:
    kept = cache / f"llama.cpp-{key}.json"
    with suppress(ArtifactError, OSError, ValueError, LookupError, TypeError, AttributeError):
        read = {
            kind: (str(ways[0]), str(ways[1])) for kind, ways in artifacts.read_json(kept).items()
        }
        if read.keys() == set(PROBED_TYPES):
            return read
    repacked = _probe(PROBED_TYPES, repack=True)
    plain = _probe([kind for kind in PROBED_TYPES if repacked[kind] != PROBE_OK], repack=False)
    made = {kind: (repacked[kind], plain.get(kind, PROBE_OK)) for kind in PROBED_TYPES}
    if all(
        said == PROBE_OK or said in _FATAL_SIGNALS or said.startswith(WRONG_ANSWERS)
        for ways in made.values()
        for said in ways
    ):
        # without a writable cache, the probe repeats next time: two seconds
        with suppress(ArtifactError, OSError):
            artifacts.write_json(kept, made)
    return made


def _probe(types: Sequence[str], *, repack: bool) -> dict[str, str]:
    """Probe each type. When a child process crashes, a new one continues after the type that
    crashed it.
    """
    made: dict[str, str] = {}
    while left := [kind for kind in types if kind not in made]:
        lines, ended = _run_worker(left, repack)
        verdicts = dict(
            _parse_verdict(line) for line in lines if line.startswith(("done ", "skip "))
        )
        made |= verdicts
        behind = [kind for kind in left if kind not in verdicts]
        if not behind:
            break
        if "ready" in lines and ended.startswith("SIG"):
            made[behind[0]] = ended
        # Further attempts are pointless: the library cannot be loaded, hangs, or fails in float32.
        else:
            made |= dict.fromkeys(behind, ended)
    return made


def _parse_verdict(line: str) -> tuple[str, str]:
    word, kind, said = line.split(" ", 2)
    if word == "skip":  # llama.cpp cannot quantize to it, so no file uses it
        return kind, PROBE_OK
    return kind, PROBE_OK if float(
        said
    ) >= MIN_COSINE else f"{WRONG_ANSWERS} (cosine {said} with float32)"


def _run_worker(types: Sequence[str], repack: bool) -> tuple[list[str], str]:
    """Return the lines a child process wrote, and how it ended: a signal's name, its last error
    line, or a timeout.
    """
    command = [sys.executable, "-P", str(_WORKER), json.dumps({"types": types, "repack": repack})]
    # Waiting threads should sleep: on a busy machine spinning turns one second into ten.
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            timeout=WORKER_TIMEOUT,
            env=env,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return _split_lines(late.stdout), f"no answer in {WORKER_TIMEOUT:g} s"
    if done.returncode < 0:
        return _split_lines(done.stdout), _signal_name(-done.returncode)
    return _split_lines(done.stdout), (
        _split_lines(done.stderr) or [f"exit code {done.returncode}"]
    )[-1]


def _split_lines(said: bytes | None) -> list[str]:
    return [
        line.strip() for line in (said or b"").decode(errors="replace").splitlines() if line.strip()
    ]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _check_usable(ways: Mapping[str, str]) -> None:
    for kind, said in ways.items():
        if said in _FATAL_SIGNALS or said.startswith(WRONG_ANSWERS):
            raise PartError(
                "llama.cpp does not compute on this machine",
                got=f"{said} with {kind} tensors",
                do=compile_command(),
            )
        if said != PROBE_OK:
            raise PartError(
                f"llama.cpp could not be tried on this machine with {kind} tensors", got=said
            )


def compile_command() -> str:
    """The shell command that recompiles llama-cpp-python for this machine."""
    flags = f"CXXFLAGS='{COMPILER_FLAGS}' " if platform.machine() in ("x86_64", "AMD64") else ""
    again = (
        "pip install --force-reinstall --no-deps --no-cache-dir"
        f" llama-cpp-python=={_llama_cpp_version()}"
    )
    return f"Compile it on this machine: {flags}{again} (docs/llama.md)"


def _llama_cpp_version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "0"


def _cache_key() -> str:
    """Key of this CPU, system, llama.cpp build and probe script."""
    told: list[object] = [
        _llama_cpp_version(),
        sys.version,
        platform.machine(),
        platform.release(),
        *_cpu_model(),
    ]
    told += [hashlib.sha256(_WORKER.read_bytes()).hexdigest()]
    told += [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(_library_folder().glob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _cpu_model() -> list[str]:
    """The CPU's model name and instruction set flags."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return [platform.processor()]
    first = path.read_text().split("\n\n")[0]
    return [
        line
        for line in first.splitlines()
        if line.startswith(("model name", "flags", "Features", "CPU part"))
    ]


def _library_folder() -> Path:
    """Folder from which llama-cpp-python loads its libraries. The package is not imported: that
    alone may crash the process.
    """
    if chosen := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Path(chosen)
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("llama_cpp")
    return Path(spec.submodule_search_locations[0]) / "lib"
