"""Which server is chosen for a folder, how it is called, and that it lives no longer than we do."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from phisense.chat import servers
from phisense.chat.servers import Server, choose_server, run, text_and_mmproj
from phisense.errors import ArtefactError, PhisenseError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "practice").mkdir()
    text = '{"max_position_embeddings": 131072, "original_max_position_embeddings": 2048}'
    (tmp_path / "practice" / "config.json").write_text(f'{{"model_type": "llava", "text_config": {text}}}')
    return tmp_path / "practice"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    for name, size in (("model-f16.gguf", 9), ("model-q4_k_m.gguf", 4), ("mmproj-f16.gguf", 2)):
        (tmp_path / "gguf" / name).write_bytes(b"x" * size)
    return tmp_path / "gguf"


def install(monkeypatch: pytest.MonkeyPatch, *modules: str, binary: str | None = None, gpu: bool = False) -> None:
    monkeypatch.setattr(servers, "find_spec", lambda name: object() if name in modules else None)
    monkeypatch.setattr(servers.shutil, "which", lambda name: binary)
    monkeypatch.setattr(servers, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(servers, "repacks_file", lambda path: True)


SERVING = ("openai", "fastapi", "uvicorn")


def test_the_best_that_is_installed(monkeypatch: pytest.MonkeyPatch, folder: Path, gguf: Path) -> None:
    install(monkeypatch, "vllm", *SERVING, gpu=True)
    vllm = choose_server(folder, port=0)
    assert (vllm.engine, vllm.sees) == ("vllm", True)
    assert vllm.words[-2:] == ("--max-model-len", "2048")
    install(monkeypatch, "vllm", *SERVING)
    assert choose_server(folder, port=0).engine == "transformers", "vLLM is for GPUs"
    assert choose_server(folder, "vllm", port=0).engine == "vllm", "unless it is asked for"
    install(monkeypatch, *servers._NEEDS["llama"])
    made = choose_server(gguf, port=0)
    assert made.words[made.words.index("--model") + 1].endswith("model-q4_k_m.gguf")
    assert made.words[made.words.index("--chat_format") + 1] == "mtmd"
    install(monkeypatch, *servers._NEEDS["llama"], binary="/opt/llama-server")
    assert choose_server(gguf, port=0).called == "llama-server"
    (gguf / "mmproj-f16.gguf").unlink()
    assert choose_server(gguf, port=0).sees is False
    for server in (vllm, made):
        assert server.words[server.words.index("--host") + 1] == "127.0.0.1"


def test_a_pooled_projector_is_not_for_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "aya_vision"}')
    install(monkeypatch, "vllm", *SERVING, gpu=True)
    assert choose_server(folder, port=0).engine == "transformers"
    with pytest.raises(UsageError, match="vllm does not serve .*; got a model folder; wanted transformers"):
        choose_server(folder, "vllm")


def test_refusals(monkeypatch: pytest.MonkeyPatch, folder: Path, gguf: Path, tmp_path: Path) -> None:
    install(monkeypatch)
    with pytest.raises(PhisenseError, match=r"no server for .* is installed. pip install 'transformers\[serving\]'"):
        choose_server(folder, port=0)
    with pytest.raises(PhisenseError, match="Install llama.cpp for its llama-server"):
        choose_server(gguf, port=0)
    with pytest.raises(UsageError, match="llama does not serve .*; got a model folder; wanted vllm or transformers. Write one with"):
        choose_server(folder, "llama")
    with pytest.raises(UsageError, match="transformers does not serve .*; got a GGUF folder; wanted llama"):
        choose_server(gguf, "transformers")
    with pytest.raises(UsageError, match="no such engine; got ollama; wanted auto, vllm, llama, transformers"):
        choose_server(folder, "ollama")
    with pytest.raises(ArtefactError, match="not a model folder"):
        choose_server(tmp_path / "nope")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(UsageError, match=f"port {held.getsockname()[1]} is taken; got Address already in use"):
            choose_server(folder, port=held.getsockname()[1])
    (gguf / "model-f16.gguf").unlink()
    (gguf / "model-q4_k_m.gguf").unlink()
    with pytest.raises(ArtefactError, match="has no text model"):
        text_and_mmproj(gguf)


CODE = """
import json, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"data": [{"id": "x"}]}')
    def log_message(self, *_): pass
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def stub(*words: str) -> Server:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    return Server("stub", "the stub", (sys.executable, "-c", CODE, str(port), *words), port)


def gone(server: Server) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on(number: signal.Signals, code: int) -> None:
    server, before = stub(), signal.getsignal(number)
    assert run(server, lambda: signal.raise_signal(number), lambda seconds: None) == code
    assert gone(server)
    assert signal.getsignal(number) is before


def test_a_server_that_does_not_want_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FAREWELL", 0.5)
    server, began = stub("stubborn"), time.monotonic()
    assert run(server, lambda: signal.raise_signal(signal.SIGTERM), lambda seconds: None) == 143
    assert gone(server)
    assert time.monotonic() - began > 0.5


def test_a_server_that_ends_by_itself() -> None:
    heard: list[int] = []
    server = Server("stub", "the stub", (sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(7)"), stub().port)
    with pytest.raises(PhisenseError, match="the stub ended by itself; got exit code 7. See what it said above"):
        run(server, lambda: heard.append(-1), heard.append)
    assert heard
    assert -1 not in heard, "it was never ready"


def test_a_signal_before_it_answers() -> None:
    server = Server("stub", "the stub", (sys.executable, "-c", "import time; time.sleep(60)"), stub().port)
    threading.Timer(0.5, signal.raise_signal, (signal.SIGTERM,)).start()
    assert run(server, lambda: pytest.fail("ready"), lambda seconds: None) == 143


def test_the_verb_says_what_is_wrong_in_a_sentence(folder: Path, verb: Any) -> None:
    with pytest.raises(UsageError, match="no such engine"):
        verb("serve", folder, "--engine", "x")


def test_help_is_instant() -> None:
    code = "import sys, phisense.cli.serving, phisense.cli.deploying; print('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
