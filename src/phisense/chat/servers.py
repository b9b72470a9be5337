"""Third-party inference servers: selection by folder kind and installed packages, command lines,
process supervision.

engine        serves                     install with
------------  -------------------------  ---------------------------------------------------
vllm          LLaVA model folders, GPU   pip install vllm
llama         GGUF folders               llama.cpp's llama-server, or
                                         pip install 'llama-cpp-python[server]'
transformers  model folders              pip install 'transformers[serving]'

All implement OpenAI's API, and each is started so that the folder's name is the model's name, both
in /v1/models and in requests. Before a server is reported as ready, this is checked with a request
that contains an image. They listen on loopback only: use an authenticating reverse proxy to give
others access.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from PIL import Image

from ..artifacts import check_is_model
from ..conversations import IMAGE, Message
from ..errors import ArtifactError, ChatError, PhisenseError, UsageError
from ..families import DEFAULT_WINDOW, context_window
from ..opening import check_servable, validate_folder
from ..opening.gguf import validate_gguf
from ..prompt import chat_template
from ..safe_parsing import quote
from .engine import Sampling
from .llama_engine import VISION_FOLDER
from .llama_probe import can_repack_file
from .remote_engine import RemoteEngine, list_models
from .sse_client import ServerAddress

HOST = "127.0.0.1"
SHUTDOWN_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL
# Seconds until it must list its models: loading a large model from a slow disk takes minutes.
STARTUP_TIMEOUT = 3600.0
# Seconds for the first answer: without a GPU, prefilling an image of 576 tokens takes a minute.
FIRST_TOKEN_TIMEOUT = 600.0
INSTALL_HINTS = {
    "vllm": "pip install vllm (it needs a GPU)",
    "llama": "Install llama.cpp for its llama-server, or pip install 'llama-cpp-python[server]'",
    "transformers": "pip install 'transformers[serving]'",
}
_REQUIRED_PACKAGES = {
    "vllm": ("vllm",),
    "llama": (
        "llama_cpp",
        "fastapi",
        "uvicorn",
        "sse_starlette",
        "starlette_context",
        "pydantic_settings",
    ),
    "transformers": ("openai", "fastapi", "uvicorn"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """How to run a server: `engine` is the option's value, `label` its display name, `command` the
    command line, `model_name` the model's name in the API.
    """

    engine: str
    label: str
    command: tuple[str, ...]
    port: int
    model_name: str
    has_vision: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None  # working directory

    @property
    def url(self) -> str:
        """Base URL of the server on this machine."""
        return f"http://{HOST}:{self.port}"


def choose_server(folder: Path, engine: str = "auto", port: int = 8000) -> Server:
    """Choose the best installed server for a model folder or a GGUF folder. `port` 0 takes a free
    port.

    Raises UsageError for an engine that cannot serve such a folder or a port in use, PhisenseError
    if no server is installed.
    """
    if engine not in ("auto", *INSTALL_HINTS):
        raise UsageError(
            "there is no such engine", got=engine, wanted=f"auto, {', '.join(INSTALL_HINTS)}"
        )
    suited = _suitable_servers(folder)
    if engine not in ("auto", *suited):
        kind = "a GGUF folder" if suited == ["llama"] else "a model folder"
        do = "Write one with phisense export" if engine == "llama" else None
        raise UsageError(
            f"{engine} does not serve {folder}", got=kind, wanted=" or ".join(suited), do=do
        )
    port = free_port(port)
    for name in suited if engine == "auto" else [engine]:
        if name == "vllm" and engine == "auto" and not _has_gpu():
            continue
        if name == "llama" and (found := shutil.which("llama-server")):
            return _llama_server(folder, port, found)
        if all(find_spec(module) is not None for module in _REQUIRED_PACKAGES[name]):
            return {
                "vllm": _vllm_server,
                "llama": _llama_server,
                "transformers": _transformers_server,
            }[name](folder, port)
    wanted = [name for name in suited if name != "vllm"] if engine == "auto" else [engine]
    raise PhisenseError(
        f"no server for {folder} is installed",
        do="; or ".join(INSTALL_HINTS[name] for name in wanted),
    )


def text_and_mmproj(folder: Path) -> tuple[Path, Path | None]:
    """Return the GGUF files of a folder: the smallest language model, and the vision part (mmproj)
    if there is one. Raises ArtifactError if there is no language model.
    """
    seeing = sorted(folder.glob("mmproj*.gguf"))
    texts = sorted(
        (path for path in folder.glob("*.gguf") if path not in seeing),
        key=lambda path: path.stat().st_size,
    )
    if not texts:
        raise ArtifactError(
            f"{folder} has no text model",
            got="no *.gguf but mmproj",
            do="Run phisense export again",
        )
    return texts[0], seeing[0] if seeing else None


def run_server(
    server: Server, on_ready: Callable[[], None], on_waiting: Callable[[int], None]
) -> int:
    """Start the server, call `on_ready` once it has answered a test request, and wait until it
    exits. Its output goes to stderr.

    Ctrl-C and SIGTERM are forwarded to it; the return value is then 130 or 143. `on_waiting` is
    called with the seconds elapsed while it loads. Raises PhisenseError, after stopping the server,
    if it exits by itself, does not become ready, or does not answer under the folder's name.
    """
    asked: list[int] = []
    stop = threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        stop.set()
        if child is not None:  # otherwise it is about to start, and is terminated right after
            # the second signal kills
            _signal_group(child, signal.SIGKILL if len(asked) > 1 else signal.SIGTERM)

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        for number in before:
            signal.signal(number, forward)
        child = _spawn(server)
        if _wait_until_listed(server, child, stop, on_waiting):
            fault = _find_fault_in_thread(server, child, stop)
            # The test request may have failed because the server exited.
            goes_on = not _has_ended(child, 1.0 if fault else 0.0) and not asked
            if goes_on and fault is not None:
                raise fault
            if goes_on:
                on_ready()
        while child.poll() is None and not asked:
            time.sleep(0.1)
    finally:
        stop.set()
        if child is not None:
            _terminate(child)
        for number, handler in before.items():
            signal.signal(number, handler)
    if not asked:
        raise PhisenseError(
            f"{server.label} ended by itself",
            got=_describe_exit(child.returncode),
            do="See what it said above",
        )
    return 128 + asked[0]


def _spawn(server: Server) -> subprocess.Popen[bytes]:
    """Start the server in its own session, so that a terminal's Ctrl-C reaches it once, through
    `forward`. Raises PhisenseError if the program is missing.
    """
    try:
        return subprocess.Popen(  # noqa: S603, the words are ours and the user's own
            server.command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={**os.environ, **server.environment},
            cwd=server.folder,
            start_new_session=True,
        )
    except OSError as error:
        raise PhisenseError(
            f"{server.label} does not start",
            got=f"{error.strerror}: {quote(str(error.filename))}",
        ) from error


def _wait_until_listed(
    server: Server,
    child: subprocess.Popen[bytes],
    stop: threading.Event,
    on_waiting: Callable[[int], None],
) -> bool:
    """Wait until the server lists its models; False if it exited or is to stop. Raises
    PhisenseError after `STARTUP_TIMEOUT`.
    """
    began = time.monotonic()
    while child.poll() is None and not stop.is_set():
        try:
            list_models(ServerAddress.parse(server.url), 10.0, stop)
        except ChatError:
            if time.monotonic() - began > STARTUP_TIMEOUT:
                raise PhisenseError(
                    f"{server.label} does not become ready",
                    got=f"no list of models in {STARTUP_TIMEOUT:,.0f} s",
                    do="See what it said above",
                ) from None
            on_waiting(int(time.monotonic() - began))
            stop.wait(0.25)
        else:
            return not stop.is_set()
    return False


def _find_fault_in_thread(
    server: Server, child: subprocess.Popen[bytes], stop: threading.Event
) -> PhisenseError | None:
    """Run `_find_fault` in a thread, so that neither a signal nor the server's exit waits for an
    answer.

    Returns None if either came first, and a fault if the complete answer takes longer than
    `FIRST_TOKEN_TIMEOUT`, even if the server keeps the connection alive.
    """
    found: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put(_find_fault(server, stop))
        except Exception as error:  # noqa: BLE001, carried to the thread that waits
            found.put(error)

    threading.Thread(target=ask, daemon=True, name="first question").start()
    until = time.monotonic() + FIRST_TOKEN_TIMEOUT + SHUTDOWN_TIMEOUT
    while not stop.is_set() and child.poll() is None:
        try:
            fault = found.get(timeout=0.1)
        except queue.Empty:
            if time.monotonic() > until:
                return _no_answer_error(server, f"no whole answer in {FIRST_TOKEN_TIMEOUT:,.0f} s")
            continue
        if fault is None or isinstance(fault, PhisenseError):
            return fault
        raise fault
    return None


def _find_fault(server: Server, stop: threading.Event) -> PhisenseError | None:
    """Return why the server is not ready: its model has another name than the folder, or a test
    request, with an image if it supports images, gets no answer.

    The answer's content is not checked, only that it is not empty: one answer cannot tell whether
    the model used the image.
    """
    try:
        listed = [entry["id"] for entry in list_models(ServerAddress.parse(server.url), 30.0, stop)]
        if server.model_name not in listed:
            return PhisenseError(
                f"{server.label} does not list the model under its folder's name",
                got=", ".join(map(quote, listed[:3])) or "no model",
                wanted=quote(server.model_name),
                do=(
                    "Another version of it, or another program on that port, may answer: try"
                    " another --port or --engine"
                ),
            )
        engine = RemoteEngine(
            ServerAddress.parse(server.url),
            server.model_name,
            name=server.model_name,
            timeout=FIRST_TOKEN_TIMEOUT,
        )
        seen = (
            [engine.encode_image(Image.new("RGB", (64, 64), (200, 30, 30)))]
            if server.has_vision
            else []
        )
        question = Message("user", f"{IMAGE}\nWhat colour is it?" if seen else "What is red?")
        said = list(engine.stream([question], seen, Sampling(4), stop, None))
    except ChatError as error:
        return _no_answer_error(server, str(error).rstrip("."))
    return None if any(said) else _no_answer_error(server, "an answer without a word")


def _no_answer_error(server: Server, got: str) -> PhisenseError:
    about = "a question about a picture" if server.has_vision else "a question"
    return PhisenseError(
        f"{server.label} does not answer {about} under the name {quote(server.model_name)}",
        got=got,
        do="See what it said above; phisense chat and phisense app need no server",
    )


def _has_ended(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether the process has exited, or does so within `timeout` seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout)
    return child.returncode is not None


def _terminate(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        _signal_group(child, signal.SIGTERM)
    try:
        child.wait(SHUTDOWN_TIMEOUT)
    except subprocess.TimeoutExpired:
        _signal_group(child, signal.SIGKILL)
        child.wait()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return (
        f"{signal.Signals(-code).name}, a crash"
        if -code in signal.valid_signals()
        else f"signal {-code}"
    )


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the server and its child processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _suitable_servers(folder: Path) -> list[str]:
    """Engines that can serve the folder, best first. vLLM supports LLaVA's model class, but not the
    one with pooled projectors.
    """
    if any(folder.glob("*.gguf")):
        validate_folder(folder)
        text, _ = text_and_mmproj(folder)
        validate_gguf(text)
        return ["llama"]
    check_is_model(folder)
    check_servable(folder, chat_template(validate_folder(folder).config))
    return (
        ["vllm", "transformers"]
        if validate_folder(folder).config["model_type"] == "llava"
        else ["transformers"]
    )


def _has_gpu() -> bool:
    if find_spec("vllm") is None:  # then the answer does not matter, and importing torch is avoided
        return False
    import torch

    return torch.cuda.is_available()


def free_port(port: int, host: str = HOST) -> int:
    """Return `port`, or a free one for 0. Raises UsageError if the port is in use."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"port {port} is taken",
                got=error.strerror,
                do="Name another with --port, or 0 for a free one",
            ) from error
        return int(held.getsockname()[1])


def _served_name(folder: Path) -> str:
    """The model's name: the folder's name as the user gave it, symbolic links not resolved."""
    return Path(os.path.abspath(folder)).name


def _vllm_server(folder: Path, port: int) -> Server:
    name = _served_name(folder)
    words = (
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(folder),
        "--host",
        HOST,
        "--port",
        str(port),
    )
    return Server(
        "vllm",
        "vLLM",
        (
            sys.executable,
            *words,
            "--served-model-name",
            name,
            "--max-model-len",
            str(_window(folder)),
        ),
        port,
        name,
    )


def _window(folder: Path) -> int:
    """Context window of a model folder, or of an exported one by its vision folder."""
    for at in (folder, folder / VISION_FOLDER):
        if (at / "config.json").is_file():
            return context_window(validate_folder(at).config)
    return DEFAULT_WINDOW


def _transformers_server(folder: Path, port: int) -> Server:
    """`transformers serve` expects the model name in requests exactly as on its command line, so it
    is started in the parent folder with the folder's name alone.
    """
    name, place = _served_name(folder), Path(os.path.abspath(folder)).parent
    if "@" in name:
        raise UsageError(
            f"transformers serve cannot serve {folder}",
            got="an @ in its name, which it reads as a revision",
            do="Rename the folder",
        )
    words = (
        sys.executable,
        "-P",
        "-c",
        _TRANSFORMERS_LAUNCHER,
        "serve",
        name,
        "--host",
        HOST,
        "--port",
        str(port),
    )
    alone = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder.resolve())}
    return Server(
        "transformers", "transformers serve", words, port, name, environment=alone, folder=place
    )


#: Launched through its CLI app object, since the console command first checks a package index for
#: updates. `get_gen_models` is patched, since it lists the Hub cache instead of the served model.
_TRANSFORMERS_LAUNCHER = """
import contextlib
import sys
import time

with contextlib.suppress(ImportError):
    from transformers.cli.serving.model_manager import ModelManager

    served = {"id": sys.argv[2], "object": "model", "created": int(time.time())}
    served["owned_by"] = "transformers"
    ModelManager.get_gen_models = staticmethod(lambda cache_dir=None: [served])

from transformers.cli.transformers import app

app()
"""


def _llama_server(folder: Path, port: int, binary: str | None = None) -> Server:
    text, seeing = text_and_mmproj(folder)
    at, name = ("--host", HOST, "--port", str(port)), _served_name(folder)
    if binary is not None:
        sees: tuple[str, ...] = ("--mmproj", str(seeing)) if seeing else ()
        words: tuple[str, ...] = (
            binary,
            "--model",
            str(text),
            "--alias",
            name,
            *sees,
            "--ctx-size",
            str(_window(folder)),
            "--jinja",
            *at,
        )
        return Server("llama", "llama-server", words, port, name, seeing is not None)
    sees = ("--clip_model_path", str(seeing), "--chat_format", "mtmd") if seeing else ()
    # otherwise a new request would interrupt the running answer
    taking_turns = ("--interrupt_requests", "false")
    called = ("-m", "llama_cpp.server") if can_repack_file(text) else ("-c", _LLAMA_LAUNCHER)
    words = (
        sys.executable,
        *called,
        "--model",
        str(text),
        "--model_alias",
        name,
        *sees,
        *taking_turns,
    )
    return Server(
        "llama",
        "llama-cpp-python's server",
        (*words, "--n_ctx", str(_window(folder)), *at),
        port,
        name,
        seeing is not None,
    )


#: llama-cpp-python's server has no option to disable repacking, but it calls this function for the
#: default parameters.
_LLAMA_LAUNCHER = """
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
