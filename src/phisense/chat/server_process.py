"""Supervise the process of an inference server (`servers.py`): start it, ask it a first question,
forward signals, and stop it with everything that it started.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import FrameType

from PIL import Image

from ..conversations import IMAGE, Message
from ..errors import ChatError, PhisenseError
from ..safe_parsing import quote
from .engine import Sampling
from .openai_protocol import list_models
from .remote_engine import RemoteEngine
from .servers import Server
from .sse_client import ServerAddress

SHUTDOWN_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL
# Seconds until it must list its models: loading a large model from a slow disk takes minutes.
STARTUP_TIMEOUT = 3600.0
# Seconds for the first answer: without a GPU, prefilling an image of 576 tokens takes a minute.
FIRST_TOKEN_TIMEOUT = 600.0


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
