"""Whether llama.cpp computes on this machine, found out in a child process before this one depends on it.

llama.cpp as compiled here              with repacked weights    with weights as stored    a file of such tensors is
answers                                 ok                       -                         opened as llama.cpp would
dies of a kernel for repacked weights   SIGILL, SIGSEGV, ...     ok                        opened without repacking, which is said once
dies of any kernel                      a signal                 a signal                  refused with a sentence

Repacking (`use_extra_bufts`) lays weights out anew for the processor's widest instructions. What was found is kept in phisense's cache
folder for this processor, this system and these very library files.
"""

from __future__ import annotations

import functools
import hashlib
import json
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

from .. import artefact, console
from ..errors import ArtefactError, PartError
from ..parts import cache_folder

#: Tensor types that are tried: those that llama.cpp quantises to without an importance matrix.
TYPES = (
    "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
#: The rows of the model that is tried. Narrower ones stay as stored: with rows of 32 numbers the kernels for AMX of 0.3.36 gave NaN.
TRIED_WIDTH = 256
OK = "ok"
ALIKE = 0.3  # cosine with the float32 model's logits: Q2_K reaches 0.49 with these weights, other logits stay under 0.2
MOST_WAIT = 60.0  # seconds for one child; it needs one or two
#: With which GCC 12.2 compiles llama.cpp's kernels for AMX rightly: docs/llama.md says why. The Makefile has them, too.
FLAGS = "-fno-tree-dse -fno-dse"
#: What a kernel that does not suit the processor dies of; whatever else ended a child may not end the next one, and is not kept.
_FAULTS = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT")
WRONG = "wrong answers"
_TRIAL = Path(__file__).with_name("llama_trial.py")
_told: set[str] = set()

#: For each tensor type, how the trial with repacked weights went and how that with weights as stored: `OK`, or what went wrong.
Found = dict[str, tuple[str, str]]


def require_llama_cpp() -> None:
    """Raises PartError, saying how to get it, where llama.cpp is not installed, or cannot even be loaded here."""
    try:
        if find_spec("gguf") is None or find_spec("llama_cpp") is None:
            raise ImportError("not found")
        _refuse({kind: ways[1] for kind, ways in found().items() if kind == "F16"})
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except ImportError as error:
        do = "pip install 'phisense[cpu]'"
        raise PartError("llama.cpp is not installed", wanted="the packages llama-cpp-python and gguf", do=do) from error


def repacks(types: Iterable[str]) -> bool:
    """Whether llama.cpp may repack weights of these types here. A type that was not tried is treated like the worst that was.

    Raises PartError, naming the signal and the type, if llama.cpp computes with one of them in neither way. Prints a line, once, where
    repacking has to be left out.
    """
    tried = found()
    asked = {kind: tried[kind] for kind in types if kind in tried}
    _refuse({kind: ways[1] for kind, ways in asked.items()})
    if set(types) - {*tried, "F32"}:
        asked = tried
    bad = {kind: ways[0] for kind, ways in asked.items() if ways[0] != OK}
    if bad and not _told & bad.keys():
        first = next(iter(bad))
        console.err.print(
            f"[dim]llama.cpp as compiled here fails on repacked weights ({first}: {bad[first]}), so they stay as stored, which is slower; "
            "docs/llama.md says how to compile it better[/dim]",
            soft_wrap=True,
        )
    _told.update(bad)
    return not bad


def repacks_file(path: Path) -> bool:
    """`repacks` of a GGUF file's tensors. The file is read only where anything went wrong."""
    if all(ways[0] == OK for ways in found().values()):
        return True
    return repacks(tensor_types(path))


def tensor_types(path: Path) -> set[str]:
    """The types of a GGUF file's tensors; empty if it is no such file, which llama.cpp itself will say."""
    import gguf

    try:
        return {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, LookupError, TypeError, OSError):
        return set()


def found() -> Found:
    """How the trial went on this machine; it is made if it was not yet. Raises PartError if llama.cpp is not installed."""
    return _found(_key(), cache_folder())


@functools.cache
def _found(key: str, cache: Path) -> Found:
    kept = cache / f"llama.cpp-{key}.json"
    with suppress(ArtefactError, OSError, ValueError, LookupError, TypeError, AttributeError):
        read = {kind: (str(ways[0]), str(ways[1])) for kind, ways in artefact.read_json(kept).items()}
        if read.keys() == set(TYPES):
            return read
    repacked = _try(TYPES, repack=True)
    plain = _try([kind for kind in TYPES if repacked[kind] != OK], repack=False)
    made = {kind: (repacked[kind], plain.get(kind, OK)) for kind in TYPES}
    if all(said == OK or said in _FAULTS or said.startswith(WRONG) for ways in made.values() for said in ways):
        with suppress(ArtefactError, OSError):  # a cache that cannot be written costs two seconds the next time
            artefact.write_json(kept, made)
    return made


def _try(types: Sequence[str], *, repack: bool) -> dict[str, str]:
    """How each type went. A child that dies is succeeded by another that begins behind the type it died of."""
    made: dict[str, str] = {}
    while left := [kind for kind in types if kind not in made]:
        lines, ended = _child(left, repack)
        verdicts = dict(_verdict(line) for line in lines if line.startswith(("done ", "skip ")))
        made |= verdicts
        behind = [kind for kind in left if kind not in verdicts]
        if not behind:
            break
        if "ready" in lines and ended.startswith("SIG"):
            made[behind[0]] = ended
        else:  # nothing would be learned from trying on: the library cannot be loaded, hangs, or does not compute in float32
            made |= dict.fromkeys(behind, ended)
    return made


def _verdict(line: str) -> tuple[str, str]:
    word, kind, said = line.split(" ", 2)
    if word == "skip":  # it cannot be in use either
        return kind, OK
    return kind, OK if float(said) >= ALIKE else f"{WRONG} (cosine {said} with float32)"


def _child(types: Sequence[str], repack: bool) -> tuple[list[str], str]:
    """The lines a child wrote, and how it ended: a signal's name, what it said last, or that it did not end."""
    command = [sys.executable, "-P", str(_TRIAL), json.dumps({"types": types, "repack": repack})]
    # Threads that wait for each other should sleep: where other programs compute, too, a second becomes ten otherwise.
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=MOST_WAIT, env=env, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as late:
        return _lines(late.stdout), f"no answer in {MOST_WAIT:g} s"
    if done.returncode < 0:
        return _lines(done.stdout), _signal(-done.returncode)
    return _lines(done.stdout), (_lines(done.stderr) or [f"exit code {done.returncode}"])[-1]


def _lines(said: bytes | None) -> list[str]:
    return [line.strip() for line in (said or b"").decode(errors="replace").splitlines() if line.strip()]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _refuse(ways: Mapping[str, str]) -> None:
    for kind, said in ways.items():
        if said in _FAULTS or said.startswith(WRONG):
            raise PartError("llama.cpp does not compute on this machine", got=f"{said} with {kind} tensors", do=how_to_compile())
        if said != OK:
            raise PartError(f"llama.cpp could not be tried on this machine with {kind} tensors", got=said)


def how_to_compile() -> str:
    """What a user types to compile llama-cpp-python again, for this machine."""
    flags = f"CXXFLAGS='{FLAGS}' " if platform.machine() in ("x86_64", "AMD64") else ""
    again = f"pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python=={_version()}"
    return f"Compile it on this machine: {flags}{again} (docs/llama.md)"


def _version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "0"


def _key() -> str:
    """Names this processor, system, llama.cpp and trial."""
    told: list[object] = [_version(), sys.version, platform.machine(), platform.release(), *_processor()]
    told += [hashlib.sha256(_TRIAL.read_bytes()).hexdigest()]
    told += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(_libraries().glob("*")) if path.is_file()]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """Its model and its instructions."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return [platform.processor()]
    first = path.read_text().split("\n\n")[0]
    return [line for line in first.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]


def _libraries() -> Path:
    """Where llama-cpp-python loads its libraries from. Nothing of it is imported: that alone may be what kills."""
    if chosen := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Path(chosen)
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("llama_cpp")
    return Path(spec.submodule_search_locations[0]) / "lib"
