"""The servers that others wrote: which of those installed suits a folder, how it is called, and how long it lives.

engine         serves                              comes with
vllm           a model folder of LLaVA's, on GPUs  pip install vllm
llama          a GGUF folder                       llama.cpp's llama-server, or pip install 'llama-cpp-python[server]'
transformers   a model folder                      pip install 'transformers[serving]'

All speak OpenAI's protocol. They listen on loopback only: who lets others in does so by a proxy that knows whom.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from ..artefact import check_is_model, read_json
from ..errors import ArtefactError, ChatError, PhisenseError, UsageError
from .exchange import Address
from .llama_probe import repacks_file
from .remote_engine import list_models

HOST = "127.0.0.1"
WINDOW = 4096  # tokens: past it Phi-3.5's rope changes its factors and kept keys are wrong
FAREWELL = 10.0  # seconds to finish in, once asked to end
INSTALL = {
    "vllm": "pip install vllm (it needs a GPU)",
    "llama": "Install llama.cpp for its llama-server, or pip install 'llama-cpp-python[server]'",
    "transformers": "pip install 'transformers[serving]'",
}
_NEEDS = {
    "vllm": ("vllm",),
    "llama": ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"),
    "transformers": ("openai", "fastapi", "uvicorn"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """`engine` as it is asked for, `called` as people call it, the command line, and whether it reads pictures."""

    engine: str
    called: str
    words: tuple[str, ...]
    port: int
    sees: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def choose_server(folder: Path, engine: str = "auto", port: int = 8000) -> Server:
    """The best server installed for a model folder or a GGUF folder. `port` 0 takes a free one.

    Raises UsageError for an engine that cannot serve such a folder or a port that is taken, PhisenseError if none is installed.
    """
    if engine not in ("auto", *INSTALL):
        raise UsageError("there is no such engine", got=engine, wanted=f"auto, {', '.join(INSTALL)}")
    suited = _suited(folder)
    if engine not in ("auto", *suited):
        kind = "a GGUF folder" if suited == ["llama"] else "a model folder"
        do = "Write one with phisense export" if engine == "llama" else None
        raise UsageError(f"{engine} does not serve {folder}", got=kind, wanted=" or ".join(suited), do=do)
    port = free_port(port)
    for name in suited if engine == "auto" else [engine]:
        if name == "vllm" and engine == "auto" and not _has_gpu():
            continue
        if name == "llama" and (found := shutil.which("llama-server")):
            return _llama(folder, port, found)
        if all(find_spec(module) is not None for module in _NEEDS[name]):
            return {"vllm": _vllm, "llama": _llama, "transformers": _transformers}[name](folder, port)
    wanted = [name for name in suited if name != "vllm"] if engine == "auto" else [engine]
    raise PhisenseError(f"no server for {folder} is installed", do="; or ".join(INSTALL[name] for name in wanted))


def text_and_mmproj(folder: Path) -> tuple[Path, Path | None]:
    """The GGUF files of a folder: the smallest text model, and the part that sees if there is one. Raises ArtefactError if none is."""
    seeing = sorted(folder.glob("mmproj*.gguf"))
    texts = sorted((path for path in folder.glob("*.gguf") if path not in seeing), key=lambda path: path.stat().st_size)
    if not texts:
        raise ArtefactError(f"{folder} has no text model", got="no *.gguf but mmproj", do="Run phisense export again")
    return texts[0], seeing[0] if seeing else None


def run(server: Server, ready: Callable[[], None], waiting: Callable[[int], None]) -> int:
    """Starts the server, calls `ready` once it answers, and stays until it ends; what it says goes to the standard error.

    Ctrl-C and SIGTERM are passed on to it; returns 130 or 143 then. `waiting` hears the seconds so far while it loads.
    Raises PhisenseError if it ends by itself.
    """
    asked: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        _signal(child, signal.SIGKILL if asked else signal.SIGTERM)  # who asks twice means it
        asked.append(number)

    # A session of its own: a terminal's Ctrl-C reaches it through us, once.
    child = subprocess.Popen(  # noqa: S603, the words are ours and the user's own
        server.words, stdin=subprocess.DEVNULL, stdout=2, env={**os.environ, **server.environment}, start_new_session=True
    )
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        if _answers(server, child, asked, waiting):
            ready()
        while child.poll() is None and not asked:
            time.sleep(0.1)
    finally:
        _end(child)
        for number, handler in before.items():
            signal.signal(number, handler)
    if not asked:
        raise PhisenseError(f"{server.called} ended by itself", got=_ended(child.returncode), do="See what it said above")
    return 128 + asked[0]


def _answers(server: Server, child: subprocess.Popen[bytes], asked: list[int], waiting: Callable[[int], None]) -> bool:
    """Waits until the server names its models; False if it ended or was asked to."""
    began = time.monotonic()
    while child.poll() is None and not asked:
        try:
            list_models(Address.parse(server.url), 10.0)
        except ChatError:
            waiting(int(time.monotonic() - began))
            time.sleep(0.25)
        else:
            return True
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        _signal(child, signal.SIGTERM)
    try:
        child.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        _signal(child, signal.SIGKILL)
        child.wait()


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"{signal.Signals(-code).name}, a crash" if -code in signal.valid_signals() else f"signal {-code}"


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    """To the server and to what it started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _suited(folder: Path) -> list[str]:
    """Best first. vLLM knows LLaVA's class, and not the one that pooled projectors need."""
    if any(folder.glob("*.gguf")):
        return ["llama"]
    check_is_model(folder)
    return ["vllm", "transformers"] if read_json(folder / "config.json").get("model_type") == "llava" else ["transformers"]


def _has_gpu() -> bool:
    if find_spec("vllm") is None:  # then it does not matter, and torch need not be imported
        return False
    import torch

    return torch.cuda.is_available()


def free_port(port: int, host: str = HOST) -> int:
    """`port`, or for 0 one that is free. Raises UsageError if another program listens there."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise UsageError(f"port {port} is taken", got=error.strerror, do="Name another with --port, or 0 for a free one") from error
        return int(held.getsockname()[1])


def _vllm(folder: Path, port: int) -> Server:
    words = ("-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--host", HOST, "--port", str(port))
    return Server(
        "vllm", "vLLM", (sys.executable, *words, "--served-model-name", folder.name, "--max-model-len", str(_window(folder))), port
    )


def _window(folder: Path) -> int:
    text = read_json(folder / "config.json").get("text_config", {})
    return int(min(WINDOW, *(text[key] for key in ("max_position_embeddings", "original_max_position_embeddings") if text.get(key))))


def _transformers(folder: Path, port: int) -> Server:
    """Called through its application: its command would first ask an index whether there is a newer version. It names as its models what
    lies in the hub's cache, and trips where there is none; that is not what it serves, so it looks in the folder, where it finds nothing.
    """
    code = "from transformers.cli.transformers import app; app()"
    words = (sys.executable, "-c", code, "serve", str(folder.resolve()), "--host", HOST, "--port", str(port))
    alone = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder.resolve())}
    return Server("transformers", "transformers serve", words, port, environment=alone)


def _llama(folder: Path, port: int, binary: str | None = None) -> Server:
    text, seeing = text_and_mmproj(folder)
    at = ("--host", HOST, "--port", str(port))
    if binary is not None:
        sees: tuple[str, ...] = ("--mmproj", str(seeing)) if seeing else ()
        words: tuple[str, ...] = (binary, "--model", str(text), *sees, "--ctx-size", str(WINDOW), "--jinja", *at)
        return Server("llama", "llama-server", words, port, seeing is not None)
    sees = ("--clip_model_path", str(seeing), "--chat_format", "mtmd") if seeing else ()
    taking_turns = ("--interrupt_requests", "false")  # or each question would end the answer to the one before
    called = ("-m", "llama_cpp.server") if repacks_file(text) else ("-c", _UNPACKED)
    words = (sys.executable, *called, "--model", str(text), "--model_alias", folder.name, *sees, *taking_turns)
    return Server("llama", "llama-cpp-python's server", (*words, "--n_ctx", str(WINDOW), *at), port, seeing is not None)


#: llama-cpp-python's server has no option for leaving weights as stored; it asks for the defaults under this name.
_UNPACKED = """
from llama_cpp import llama_cpp
from llama_cpp.server.__main__ import main

usual = llama_cpp.llama_model_default_params

def unpacked():
    how = usual()
    how.use_extra_bufts = False
    return how

llama_cpp.llama_model_default_params = unpacked
main()
"""
