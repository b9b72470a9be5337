"""The response to an admitted request, as it is passed back to the client."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from .asgi import SECURITY_HEADERS, ASGIMessage, Send, send_error


class GuardedResponse:
    """Wraps `send`: adds headers and cookie, replaces error bodies, records uploaded paths."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.cookie: bytes | None = None
        self.busy_message: str | None = None  # replaces Gradio's body when its queue is full
        #: Called with the paths of a successful upload.
        self.on_uploaded: Callable[[list[str]], None] | None = None
        self._replaced = False
        self._body = bytearray()

    async def __call__(self, message: ASGIMessage) -> None:
        """Send a message of the app, or what replaces it."""
        if message["type"] == "http.response.start":
            self.started = True
            await self._start(message)
        elif not self._replaced:
            if self.on_uploaded is not None:
                self._body += message.get("body", b"")
                if not message.get("more_body"):
                    self.on_uploaded(
                        [path for path in orjson.loads(self._body) if isinstance(path, str)]
                    )
            await self._send(message)

    async def _start(self, message: ASGIMessage) -> None:
        status = message["status"]
        if status != 200:
            self.on_uploaded = None
        sentence = (
            self.busy_message
            if status == 503
            else "Something broke here, and was written down."
            if status == 500
            else None
        )
        if sentence is not None:
            self._replaced = True
            await send_error(self._send, status, sentence)
            return
        cookie = [] if self.cookie is None else [(b"set-cookie", self.cookie)]
        await self._send(
            {**message, "headers": [*message.get("headers", []), *SECURITY_HEADERS, *cookie]}
        )
