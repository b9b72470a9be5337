"""Runs what cannot be validated by reading in a subprocess with memory and time limits: third-party
chat templates, the loaders of llama.cpp and CTranslate2.

`sandbox_worker.py`, `gguf_worker.py` and `whisper_worker.py` beside this module run as scripts;
the limits are their first argument and are set before anything else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PartError

TEMPLATE_SECONDS, TEMPLATE_BYTES = 10, 2_000_000_000
MAX_RENDERED_LENGTH = 200_000  # characters of one rendered prompt
LOADING_SECONDS, LOADING_BYTES = 60, 3_000_000_000  # besides what the file's size takes
#: Each tensor is checked in a thread with a stack of its own (gguf_worker.py), up to so many.
_TENSOR_BYTES, _MAX_THREADS = 2 << 20, 2_000
_HERE = Path(__file__).parent


class TemplateError(Exception):
    """A chat template that raises, or exceeds its limits."""


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """Result of a subprocess.

    `failure` is empty on success, else the signal's name, the last line of stderr, or a timeout.
    """

    failure: str
    stdout: bytes


def run_worker(
    script: str, arguments: Sequence[str], stdin: bytes, *, memory: int, seconds: float
) -> WorkerResult:
    """Run a script of this package in a subprocess, limited in memory (bytes) and time (seconds).

    `stdin` is its standard input.
    """
    limits = json.dumps({"memory": memory, "seconds": int(seconds)})
    command = [sys.executable, "-P", str(_HERE / script), limits, *arguments]
    # A library must not download anything at import.
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=stdin,
            capture_output=True,
            timeout=3 * seconds + 30,
            env=env,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return WorkerResult(f"no end in {seconds:g} s", b"")
    if done.returncode == -signal.SIGXCPU or done.returncode == -signal.SIGKILL:
        return WorkerResult(
            f"no end in {seconds:g} s, or more memory than {memory / 1e9:g} GB", done.stdout
        )
    if done.returncode < 0:
        return WorkerResult(_signal_name(-done.returncode), done.stdout)
    if done.returncode > 0:
        lines = done.stderr.decode(errors="replace").split("\n")
        return WorkerResult(
            (
                next((line.strip() for line in reversed(lines) if line.strip()), "")
                or f"exit code {done.returncode}"
            )[:300],
            b"",
        )
    return WorkerResult("", done.stdout)


def render_chat_template(
    template: str, messages: list[dict[str, Any]], special_tokens: dict[str, Any]
) -> str:
    """Render `messages` and a generation prompt with a third-party chat template.

    The result is that of transformers. Raises TemplateError with the template's own error, or if it
    exceeds the limit of time, memory or output length.
    """
    asked = json.dumps(
        {
            "template": template,
            "messages": messages,
            "special": special_tokens,
            "most": MAX_RENDERED_LENGTH,
        }
    ).encode()
    ended = run_worker(
        "sandbox_worker.py", [], asked, memory=TEMPLATE_BYTES, seconds=TEMPLATE_SECONDS
    )
    if ended.failure:
        raise TemplateError(ended.failure)
    try:
        return str(json.loads(ended.stdout)["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise TemplateError("a text that is none") from error


def check_patterns(patterns: list[str], names: list[str]) -> str | None:
    """Match regular expressions against these names in the sandbox; the error message, or None.

    An invalid pattern, or one that exceeds the time limit (catastrophic backtracking), is an error.
    """
    asked = json.dumps({"patterns": patterns, "names": names}).encode()
    return (
        run_worker(
            "sandbox_worker.py", [], asked, memory=TEMPLATE_BYTES, seconds=TEMPLATE_SECONDS
        ).failure
        or None
    )


_loadable: set[tuple[int, ...]] = set()


def check_llama_opens(path: Path) -> None:
    """Raise PartError if llama.cpp cannot load a GGUF file or crashes on it.

    Done in a subprocess, since a crash would end a server with all its sessions. The file is
    memory-mapped, so its weights are read once: they are in the page cache when this process loads
    it.
    """
    from .files import file_states
    from .gguf_header import read_gguf_header

    now = file_states([path])[0]
    if now in _loadable:
        return
    size = path.stat().st_size
    threads = min(len(read_gguf_header(path).tensors), _MAX_THREADS)
    ended = run_worker(
        "gguf_worker.py",
        [str(path)],
        b"",
        memory=LOADING_BYTES + 2 * size + threads * _TENSOR_BYTES,
        seconds=LOADING_SECONDS + size / 1e8,
    )
    if ended.failure:
        raise PartError(
            f"llama.cpp cannot load {path}", got=ended.failure, do="Run phisense export again"
        )
    _loadable.add(now)


def check_whisper_opens(path: Path, *, bins: int, frames: int, prompt: int) -> None:
    """Raise PartError if CTranslate2 cannot transcribe with the model.bin at `path` or crashes."""
    from .files import file_states

    now = file_states([path, *(path.parent / name for name in ("config.json", "tokenizer.json"))])
    if now[0] in _loadable and now[1] in _loadable:
        return
    size = path.stat().st_size
    asked = json.dumps({"bins": bins, "frames": frames, "prompt": prompt})
    # One window of large-v3 takes half a minute on one core.
    memory, seconds = LOADING_BYTES + 4 * size, LOADING_SECONDS + size / 1e7
    ended = run_worker(
        "whisper_worker.py", [str(path.parent), asked], b"", memory=memory, seconds=seconds
    )
    if ended.failure:
        raise PartError(
            f"the converted Whisper {path.parent} cannot be loaded",
            got=ended.failure,
            do="Convert it again",
        )
    _loadable.update(now)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
