"""Third-party inference servers: selection by folder kind and installed packages, command lines.
`server_process.py` runs them.

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

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..artifacts import check_is_model
from ..errors import ArtifactError, PhisenseError, UsageError
from ..families import DEFAULT_WINDOW, context_window
from ..opening import check_servable, validate_folder
from ..opening.gguf import validate_gguf
from ..prompt import chat_template
from .llama_engine import VISION_FOLDER
from .llama_probe import can_repack_file

HOST = "127.0.0.1"
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
