"""What every request passes before Gradio sees it: bounded bodies, no addresses in the place of files, no routes of no use here."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from .limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD = "/gradio_api/upload"
MOST_UPLOAD = 33 * 2**20  # bytes of a request: one file of 32 MB and what wraps it
UPLOADED = 2 * 2**30  # bytes that all visitors together may upload in an hour
_UNUSED = re.compile(
    r"/(proxy=|deep_link|component_server|vibe|undo-vibe|run-history|custom_component|process_recording|dev/|stream/|file=[a-zA-Z][a-zA-Z0-9+.-]+:)"
)
_ADDRESS = re.compile(r"^\s*[a-zA-Z][a-zA-Z0-9+.-]+:|^\s*//")

#: Scripts and styles are Gradio's own, and inline; nothing is ever fetched from elsewhere, whatever an answer holds.
POLICY = "; ".join(
    (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
_HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class Door:
    def __init__(self, app: Application, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self._uploads: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _UNUSED.search(scope["path"]) or b"deep_link" in scope.get("query_string", b""):
            await _refuse(send, 404, "There is nothing here.")
            return
        if scope["method"] == "POST":
            if scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") == UPLOAD:
                size = _length(scope)
                if size is None:
                    await _refuse(send, 411, "An upload must say how long it is.")
                    return
                if size > MOST_UPLOAD:
                    await _refuse(send, 413, f"The upload is too large; at most {MOST_UPLOAD // 2**20} MB.")
                    return
                if not self._takes(size):
                    await _refuse(send, 503, "Too much was uploaded in the last hour. Try again later.")
                    return
            else:
                body = await _read(receive, self.limits.body)
                if body is None:
                    await _refuse(send, 413, f"The request is too large; at most {self.limits.body:,} bytes.")
                    return
                fault = _fault(body)
                if fault is not None:
                    await _refuse(send, 400, fault)
                    return
                receive = _replayed(body, receive)
        await self.app(scope, receive, _with_headers(send, self._busy if scope["path"].rstrip("/").endswith("/queue/join") else None))

    @property
    def _busy(self) -> str:
        return f"Busy: {self.limits.waiting} people are waiting already. Try again in a minute."

    def _takes(self, size: int) -> bool:
        now = time.monotonic()
        while self._uploads and self._uploads[0][0] < now - self.limits.hour:
            self._uploads.popleft()
        if sum(taken for _, taken in self._uploads) + size > UPLOADED:
            return False
        self._uploads.append((now, size))
        return True


def _length(scope: Scope) -> int | None:
    told = dict(scope["headers"]).get(b"content-length", b"")
    return int(told) if told.isdigit() else None


async def _read(receive: Receive, most: int) -> bytes | None:
    """The whole body, or None if it is longer than `most` bytes."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _fault(body: bytes) -> str | None:
    """What is wrong with a request: it is no JSON, or names a file by an address, which Gradio would fetch.

    Parsed as Gradio does, or what one of the two takes for JSON and the other does not would slip through.
    """
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return "The request is not JSON."
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(path := one.get("path"), str) and _ADDRESS.match(path):
                return "Addresses are not fetched here. Upload the file itself."
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send, busy: str | None) -> Send:
    """`busy` takes the place of Gradio's own words for a full queue."""
    full = False

    async def sending(message: MutableMapping[str, Any]) -> None:
        nonlocal full
        if message["type"] == "http.response.start":
            full = busy is not None and message["status"] == 503
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        if full and busy is not None:
            if message["type"] == "http.response.start":
                await _refuse(send, 503, busy)
            return
        await send(message)

    return sending


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = orjson.dumps({"detail": sentence})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
