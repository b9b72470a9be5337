"""Which server is chosen for a folder, how it is called, and that it lives no longer than we do."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from phisense.chat import server_process, servers
from phisense.chat.server_process import run_server
from phisense.chat.servers import Server, choose_server, text_and_mmproj
from phisense.errors import ArtifactError, PhisenseError, UsageError

pytestmark = pytest.mark.slow  # servers are started and given time

TOWER = '"vision_config": {"model_type": "clip_vision_model"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "practice").mkdir()
    text = (
        '{"model_type": "phi3", "max_position_embeddings": 131072,'
        ' "original_max_position_embeddings": 2048}'
    )
    (tmp_path / "practice" / "config.json").write_text(
        f'{{"model_type": "llava", "text_config": {text}, {TOWER}}}'
    )
    return tmp_path / "practice"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    for name, size in (("model-f16.gguf", 9), ("model-q4_k_m.gguf", 4), ("mmproj-f16.gguf", 2)):
        (tmp_path / "gguf" / name).write_bytes(b"x" * size)
    return tmp_path / "gguf"


def install(
    monkeypatch: pytest.MonkeyPatch, *modules: str, binary: str | None = None, gpu: bool = False
) -> None:
    monkeypatch.setattr(servers, "find_spec", lambda name: object() if name in modules else None)
    monkeypatch.setattr(servers.shutil, "which", lambda name: binary)
    monkeypatch.setattr(servers, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(servers, "can_repack_file", lambda path: True)
    monkeypatch.setattr(
        servers, "validate_gguf", lambda path: None
    )  # the files are made of letters


SERVING = ("openai", "fastapi", "uvicorn")


def test_the_best_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, gguf: Path
) -> None:
    install(monkeypatch, "vllm", *SERVING, gpu=True)
    vllm = choose_server(folder, port=0)
    assert (vllm.engine, vllm.has_vision) == ("vllm", True)
    assert vllm.command[-2:] == ("--max-model-len", "2048")
    install(monkeypatch, "vllm", *SERVING)
    assert choose_server(folder, port=0).engine == "transformers", "vLLM is for GPUs"
    assert choose_server(folder, "vllm", port=0).engine == "vllm", "unless it is asked for"
    install(monkeypatch, *servers._REQUIRED_PACKAGES["llama"])
    made = choose_server(gguf, port=0)
    assert made.command[made.command.index("--model") + 1].endswith("model-q4_k_m.gguf")
    assert made.command[made.command.index("--chat_format") + 1] == "mtmd"
    install(monkeypatch, *servers._REQUIRED_PACKAGES["llama"], binary="/opt/llama-server")
    assert choose_server(gguf, port=0).label == "llama-server"
    (gguf / "mmproj-f16.gguf").unlink()
    assert choose_server(gguf, port=0).has_vision is False
    for server in (vllm, made):
        assert server.command[server.command.index("--host") + 1] == "127.0.0.1"


def test_each_server_gets_the_window_of_the_model(
    monkeypatch: pytest.MonkeyPatch, folder: Path, gguf: Path
) -> None:
    """The recipe's, which merge wrote into the folder; 4,096 only if nothing says another."""
    install(monkeypatch, "vllm", gpu=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "context_window": 300}))
    assert choose_server(folder, "vllm", port=0).command[-2:] == ("--max-model-len", "300")
    for binary in (None, "/opt/llama-server"):
        install(monkeypatch, *servers._REQUIRED_PACKAGES["llama"], binary=binary)
        option = "--n_ctx" if binary is None else "--ctx-size"
        for window in ("4096", "300"):
            words = choose_server(gguf, port=0).command
            assert words[words.index(option) + 1] == window
            shutil.copytree(folder, gguf / "vision", dirs_exist_ok=True)
        shutil.rmtree(gguf / "vision")


def test_a_pooled_projector_is_not_for_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "config.json").write_text(
        f'{{"model_type": "aya_vision", "text_config": {{"model_type": "phi3"}}, {TOWER}}}'
    )
    install(monkeypatch, "vllm", *SERVING, gpu=True)
    assert choose_server(folder, port=0).engine == "transformers"
    with pytest.raises(
        UsageError, match="vllm does not serve .*; got a model folder; wanted transformers"
    ):
        choose_server(folder, "vllm")


def test_refusals(
    monkeypatch: pytest.MonkeyPatch, folder: Path, gguf: Path, tmp_path: Path
) -> None:
    install(monkeypatch)
    with pytest.raises(
        PhisenseError, match=r"no server for .* is installed. pip install 'transformers\[serving\]'"
    ):
        choose_server(folder, port=0)
    with pytest.raises(PhisenseError, match="Install llama.cpp for its llama-server"):
        choose_server(gguf, port=0)
    with pytest.raises(
        UsageError,
        match=(
            "llama does not serve .*; got a model folder; wanted vllm or transformers. Write one"
            " with"
        ),
    ):
        choose_server(folder, "llama")
    with pytest.raises(
        UsageError, match="transformers does not serve .*; got a GGUF folder; wanted llama"
    ):
        choose_server(gguf, "transformers")
    with pytest.raises(
        UsageError, match="no such engine; got ollama; wanted auto, vllm, llama, transformers"
    ):
        choose_server(folder, "ollama")
    with pytest.raises(ArtifactError, match="not a model folder"):
        choose_server(tmp_path / "nope")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(
            UsageError, match=f"port {held.getsockname()[1]} is taken; got Address already in use"
        ):
            choose_server(folder, port=held.getsockname()[1])
    (gguf / "model-f16.gguf").unlink()
    (gguf / "model-q4_k_m.gguf").unlink()
    with pytest.raises(ArtifactError, match="has no text model"):
        text_and_mmproj(gguf)


CODE = """
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

def piece(text):
    choice = {"delta": {"content": text}, "finish_reason": "stop"}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n"

class Handler(BaseHTTPRequestHandler):
    def begin(self, status):
        self.send_response(status)
        self.end_headers()

    def do_GET(self):
        if "silent" in sys.argv:
            self.begin(503)
            return
        name = "elsewhere/other" if "other" in sys.argv else "mine"
        self.begin(200)
        self.wfile.write(json.dumps({"data": [{"id": name}]}).encode())

    def do_POST(self):
        told = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[2], "ab") as file:
            file.write(told + b"\\n")
        if "ends" in sys.argv:
            sys.exit(7)
        for word, status in (("refuses", 500), ("pinned", 400)):
            if word in sys.argv:
                self.begin(status)
                self.wfile.write(b"{}")
                return
        if "parent" in sys.argv:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1)
        if "hangs" in sys.argv:
            time.sleep(600)
        self.begin(200)
        while "trickles" in sys.argv:
            self.wfile.write(b": wait\\n")
            time.sleep(0.1)
        done = b"data: [DONE]\\n\\n"
        for word, said in (
            ("wordless", done),
            ("empty", piece("")),
            ("breaks", b'data: {"error": "no"}\\n\\n'),
            ("page", b"<html></html>"),
        ):
            if word in sys.argv:
                self.wfile.write(said)
                return
        self.wfile.write(piece("Red.") + done)

    def log_message(self, *_):
        pass

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def stub(*words: str, asked: Path = Path("/dev/null"), sees: bool = True) -> Server:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    return Server(
        "stub",
        "the stub",
        (sys.executable, "-c", CODE, str(port), str(asked), *words),
        port,
        "mine",
        sees,
    )


def gone(server: Server) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on(number: signal.Signals, code: int) -> None:
    server, before = stub(), signal.getsignal(number)
    assert run_server(server, lambda: signal.raise_signal(number), lambda seconds: None) == code
    assert gone(server)
    assert signal.getsignal(number) is before


def test_a_server_that_does_not_want_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "SHUTDOWN_TIMEOUT", 0.5)
    server, began = stub("stubborn"), time.monotonic()
    assert (
        run_server(server, lambda: signal.raise_signal(signal.SIGTERM), lambda seconds: None) == 143
    )
    assert gone(server)
    assert time.monotonic() - began > 0.5


def test_a_server_that_ends_by_itself() -> None:
    heard: list[int] = []
    server = Server(
        "stub",
        "the stub",
        (sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(7)"),
        stub().port,
        "mine",
    )
    with pytest.raises(
        PhisenseError, match="the stub ended by itself; got exit code 7. See what it said above"
    ):
        run_server(server, lambda: heard.append(-1), heard.append)
    assert heard
    assert -1 not in heard, "it was never ready"


@pytest.mark.parametrize("sees", [True, False])
def test_it_serves_once_it_has_answered_under_its_name(tmp_path: Path, sees: bool) -> None:
    """One that does not look at the picture cannot be told by its answer, and is not: no answer is
    judged.
    """
    asked = tmp_path / "asked"
    server = stub(asked=asked, sees=sees)
    told: list[bytes] = []

    def ready() -> None:
        told.append(asked.read_bytes())
        signal.raise_signal(signal.SIGTERM)

    assert run_server(server, ready, lambda seconds: None) == 143
    (question,) = map(json.loads, told)
    assert question["model"] == "mine"
    assert ("data:image/png;base64," in json.dumps(question)) is sees
    assert gone(server)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "other",
            "does not list the model under its folder's name; got 'elsewhere/other'; wanted 'mine'",
        ),
        (
            "refuses",
            (
                r"does not answer a question about a picture under the name 'mine'; got the model's"
                r" server failed; got status 500"
            ),
        ),
        (
            "pinned",
            r"does not answer a question about a picture under the name 'mine'; got .*status 400",
        ),
        ("breaks", "does not answer .*failed in the middle of the answer"),
        ("page", "does not answer .*broke off in the middle of the answer"),
        ("wordless", "does not answer .* under the name 'mine'; got an answer without a word"),
        ("empty", "does not answer .* under the name 'mine'; got an answer without a word"),
        ("hangs", r"does not answer .* under the name 'mine'; got .*nothing for 1 seconds"),
        ("trickles", r"does not answer .* under the name 'mine'; got no whole answer in 1 s"),
        ("ends", "ended by itself; got exit code 7"),
        ("silent", r"does not become ready; got no list of models in 1 s"),
    ],
)
def test_what_does_not_serve_is_not_said_to(
    monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.setattr(server_process, "STARTUP_TIMEOUT", 1.0)
    monkeypatch.setattr(
        server_process, "FIRST_TOKEN_TIMEOUT", 1.0 if how in ("hangs", "trickles") else 60.0
    )
    monkeypatch.setattr(server_process, "SHUTDOWN_TIMEOUT", 2.0)
    server = stub(how)
    with pytest.raises(PhisenseError, match=said):
        run_server(server, lambda: pytest.fail("ready"), lambda seconds: None)
    assert gone(server), "the child was stopped"


@pytest.mark.parametrize(
    "how",
    ["other", "refuses", "pinned", "breaks", "page", "wordless", "empty", "hangs", "trickles"],
)
def test_without_the_trial_it_would_be_said_to(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The control."""
    monkeypatch.setattr(server_process, "_find_fault", lambda server, stop: None)
    assert (
        run_server(stub(how), lambda: signal.raise_signal(signal.SIGTERM), lambda seconds: None)
        == 143
    )


def test_the_name_is_the_folders(
    monkeypatch: pytest.MonkeyPatch, folder: Path, gguf: Path, tmp_path: Path
) -> None:
    """Of a link its own, of a folder that is named by dots the one that it is; the words to start
    with do not depend on where it lies.
    """
    (tmp_path / "an@place").mkdir()
    link = tmp_path / "an@place" / "mine"
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    for engine in ("vllm", "transformers"):
        install(monkeypatch, "vllm", *SERVING, gpu=True)
        for given, name in (
            (link, "mine"),
            (folder, "practice"),
            (Path(), "practice"),
            (folder / ".." / "practice", "practice"),
        ):
            server = choose_server(given, engine, port=0)
            assert server.model_name == name
            assert name in server.command
    assert choose_server(link, "transformers", port=0).folder == link.parent
    install(monkeypatch, *servers._REQUIRED_PACKAGES["llama"])
    assert "gguf" in choose_server(gguf, port=0).command
    install(monkeypatch, *servers._REQUIRED_PACKAGES["llama"], binary="/opt/llama-server")
    found = choose_server(gguf, port=0)
    assert found.command[found.command.index("--alias") + 1] == found.model_name == "gguf"
    install(monkeypatch, *SERVING)
    folder.rename(tmp_path / "a@b")
    with pytest.raises(
        UsageError, match="an @ in its name, which it reads as a revision. Rename the folder"
    ):
        choose_server(tmp_path / "a@b", port=0)


def test_a_signal_before_it_answers() -> None:
    server = Server(
        "stub",
        "the stub",
        (sys.executable, "-c", "import time; time.sleep(60)"),
        stub().port,
        "mine",
    )
    threading.Timer(0.5, signal.raise_signal, (signal.SIGTERM,)).start()
    assert run_server(server, lambda: pytest.fail("ready"), lambda seconds: None) == 143


def at_the_question(asked: Path, number: signal.Signals) -> None:
    """Raises the signal as soon as the stub has heard the question."""

    def wait() -> None:
        while not asked.exists():
            time.sleep(0.05)
        signal.raise_signal(number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize(
    "how", [("hangs",), ("hangs", "stubborn"), ("trickles", "stubborn")], ids=" ".join
)
def test_a_signal_at_the_first_question(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: tuple[str, ...],
    number: signal.Signals,
    code: int,
) -> None:
    """It waits for no answer, and the server is gone even if it takes no notice itself."""
    monkeypatch.setattr(server_process, "SHUTDOWN_TIMEOUT", 0.5)
    server, before = stub(*how, asked=tmp_path / "asked"), signal.getsignal(number)
    at_the_question(tmp_path / "asked", number)
    assert run_server(server, lambda: pytest.fail("ready"), lambda seconds: None) == code
    assert gone(server)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("mended", [True, False])
def test_a_question_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mended: bool
) -> None:
    """A question that heeds nothing is left to itself; the control asks it where the signals are
    waited for, and waits for its end.
    """
    monkeypatch.setattr(server_process, "SHUTDOWN_TIMEOUT", 0.5)
    released, waited = threading.Event(), []
    began = tmp_path / "asked"

    def deaf(server: Server, stop: threading.Event) -> None:
        began.touch()
        released.wait(60.0 if mended else 2.0)
        waited.append(1)

    monkeypatch.setattr(server_process, "_find_fault", deaf)
    if not mended:
        monkeypatch.setattr(
            server_process, "_find_fault_in_thread", lambda server, child, stop: deaf(server, stop)
        )
    at_the_question(began, signal.SIGTERM)
    assert run_server(stub(), lambda: pytest.fail("ready"), lambda seconds: None) == 143
    assert waited == ([] if mended else [1])
    released.set()


def test_an_answer_behind_a_signal_makes_nothing_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers, and well, but we were asked to end while it did."""
    monkeypatch.setattr(server_process, "SHUTDOWN_TIMEOUT", 3.0)
    fault = server_process._find_fault
    monkeypatch.setattr(
        server_process, "_find_fault", lambda server, stop: fault(server, threading.Event())
    )
    server = stub("parent", "stubborn")
    assert run_server(server, lambda: pytest.fail("ready"), lambda seconds: None) == 143
    monkeypatch.setattr(
        server_process,
        "_find_fault_in_thread",
        lambda server, child, stop: fault(server, threading.Event()),
    )
    server = stub("parent", "stubborn")
    assert run_server(server, lambda: pytest.fail("ready"), lambda seconds: None) == 143
    assert gone(server)


def test_a_signal_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the child's birth and our knowing it: it is ended, and never asked."""
    start, born = server_process._spawn, []

    def slow(server: Server) -> Any:
        signal.raise_signal(signal.SIGTERM)  # before
        born.append(start(server))
        signal.raise_signal(signal.SIGTERM)  # and behind
        return born[0]

    monkeypatch.setattr(server_process, "_spawn", slow)
    before = signal.getsignal(signal.SIGTERM)
    assert run_server(stub(), lambda: pytest.fail("ready"), lambda seconds: None) == 143
    assert born[0].returncode is not None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we do with signals ends with it."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        PhisenseError,
        match="the stub does not start; got No such file or directory: '/nowhere/stub'",
    ):
        run_server(
            Server("stub", "the stub", ("/nowhere/stub",), 1, "mine"),
            lambda: None,
            lambda seconds: None,
        )
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_verb_says_what_is_wrong_in_a_sentence(folder: Path, verb: Any) -> None:
    with pytest.raises(UsageError, match="no such engine"):
        verb("serve", folder, "--engine", "x")


def test_help_is_instant() -> None:
    code = (
        "import sys, phisense.cli.serve, phisense.cli.deploy; print('torch' in sys.modules or"
        " 'huggingface_hub' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
