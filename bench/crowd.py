"""What bench/strangers.py meets a page with: visitors that speak Gradio's protocol over HTTP, an
engine that tells all it was given, and servers, in this process or in one of their own.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from phisense.app import Limits, build, launch
from phisense.chat import Sampling
from phisense.conversations import Message
from phisense.families import known_special_tokens
from phisense.prompt import escape_special_tokens


class Echo:
    """An engine that answers with all it was given, word by word, so that nothing of another can
    hide; `pause` seconds between words.
    """

    name, window, picture_tokens = "echo", 4096, 16
    kind, where, endpoint, attention_map, places = "echo", "nowhere", None, None, 1

    def __init__(self, pause: float = 0.0, before: float = 0.0, repeat: int = 1) -> None:
        self.pause, self.before, self.repeat, self.given = pause, before, repeat, 0

    def encode_image(self, picture: Any) -> tuple[int, int]:
        return picture.size

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[Any]) -> int:
        return sum(len(m.text.split()) for m in messages if m.role == "user")

    def escape_special_tokens(self, text: str) -> str:
        return escape_special_tokens(text, [*known_special_tokens(), "<image>"])

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[Any],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        self.given += 1
        if stop.wait(self.before):
            return
        for word in " ".join(m.text for m in messages if m.role == "user").split(" ") * self.repeat:
            if stop.is_set():
                return
            yield f"{word} "
            if self.pause and stop.wait(self.pause):
                return


@contextmanager
def served(
    engine: Any, limits: Limits | None = None, ears: Any = None
) -> Iterator[tuple[str, Any]]:
    page = build(engine, ears, limits=limits)
    _, url, _ = launch(page, port=0, block=False)
    try:
        yield url, page.room
    finally:
        page.close(verbose=False)


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@contextmanager
def other_process(*given: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """bench/strangers.py as a server in a process of its own."""
    program = str(Path(__file__).with_name("strangers.py"))
    process = subprocess.Popen([sys.executable, program, *given], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = next(line.split()[1] for line in process.stdout if line.startswith("URL "))
    try:
        yield url, process
    finally:
        process.kill()
        process.wait()


_ADDRESSES = itertools.count(1)


def browser() -> httpx.Client:
    """Of an address of its own, as a proxy on this computer would tell it."""
    number = next(_ADDRESSES)
    return httpx.Client(
        timeout=120,
        headers={
            "x-forwarded-for": (
                f"198.{18 + number // 65536 % 2}.{number // 256 % 256}.{number % 256}"
            )
        },
    )


class Guest:
    """One browser's session."""

    def __init__(self, url: str, client: httpx.Client | None = None) -> None:
        self.url, self.key = url.rstrip("/"), uuid.uuid4().hex[:12]
        self.http = client or browser()
        self.events = events(self.url, self.http)

    def upload(self, file: Path | tuple[str, bytes]) -> str:
        name, data = (file.name, file.read_bytes()) if isinstance(file, Path) else file
        told = self.http.post(f"{self.url}/gradio_api/upload", files={"files": (name, data)})
        told.raise_for_status()
        return str(told.json()[0])

    def join(self, event: str, data: list[Any]) -> httpx.Response:
        return self.http.post(
            f"{self.url}/gradio_api/queue/join",
            json={
                "data": data,
                "fn_index": self.events[event],
                "session_hash": self.key,
                "event_data": None,
                "trigger_id": None,
            },
        )

    def do(self, event: str, data: list[Any]) -> dict[str, Any]:
        """`output` of the last message, the `warnings`, and everything received as `text`. Raises
        BusyError if the queue is full.
        """
        began = time.monotonic()
        joined = self.join(event, data)
        if joined.status_code != 200:
            return {
                "output": None,
                "warnings": [joined.text],
                "text": joined.text,
                "status": joined.status_code,
                "seconds": 0.0,
            }
        warnings, texts, output, success = [], [], None, False
        with self.http.stream(
            "GET", f"{self.url}/gradio_api/queue/data", params={"session_hash": self.key}
        ) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                texts.append(line)
                message = json.loads(line[5:])
                if message["msg"] == "log":
                    warnings.append(message["log"])
                if message["msg"] == "process_completed":
                    output, success = message["output"].get("data"), message["success"]
                    break
        found = {"output": output, "warnings": warnings, "text": "\n".join(texts), "status": 200}
        return {**found, "success": success, "seconds": time.monotonic() - began}

    def ask(self, question: str, picture: str | None = None) -> dict[str, Any]:
        return self.do("ask", [question, named(picture), 0, 256, None])

    def drop(self, question: str, after: int) -> None:
        """Asks, and hangs up after so many messages."""
        self.join("ask", [question, None, 0, 256, None]).raise_for_status()
        with self.http.stream(
            "GET", f"{self.url}/gradio_api/queue/data", params={"session_hash": self.key}
        ) as stream:
            seen = 0
            for line in stream.iter_lines():
                seen += line.startswith("data:")
                if seen >= after:
                    return


def named(path: str | None) -> dict[str, Any] | None:
    return None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}


def events(url: str, client: httpx.Client) -> dict[str, int]:
    config = client.get(f"{url}/config").json()
    return {one["api_name"]: one["id"] for one in config["dependencies"] if one["api_name"]}


def words(output: list[Any]) -> list[str]:
    """The lines of a conversation."""
    found = []
    for message in output[0]:
        content = message["content"]
        found.append(
            content
            if isinstance(content, str)
            else "".join(part.get("text", "") for part in content)
        )
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def family(pid: int) -> int:
    """Likewise, with all its children."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            total += resident(one)
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue
    return total
