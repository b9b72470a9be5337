"""Client of one streaming HTTP request (server-sent events). The connection is closed when the
caller stops reading.

A thread reads the response, so that an unresponsive server does not block a caller that wants to
stop.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import ChatError, UsageError

CONNECT_TIMEOUT = 10.0  # seconds to connect
MAX_QUEUED_LINES = 64  # back-pressure: the reader thread blocks when the queue is full
MAX_LINE_BYTES = 2**20  # bytes
MAX_ERROR_BODY_BYTES = 2**16  # bytes


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Address of a server's `/v1` API. `key` is sent with every request and never shown."""

    https: bool
    host: str
    port: int | None
    path: str
    key: str | None = None

    @classmethod
    def parse(cls, url: str, key: str | None = None) -> ServerAddress:
        """Parse http[s]://host[:port][/path]. Raises UsageError for anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or any(c.isspace() for c in url)
        ):
            raise UsageError(
                "that is no server's address",
                got=url,
                wanted="http:// or https://, a host, perhaps a port and a path",
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise UsageError(
                "a server's address is a host, a port and a path only",
                got="a user name, a question mark or a hash in it",
                do="Put a key into the environment's PHISENSE_SERVER_KEY",
            )
        path = parts.path.rstrip("/")
        return cls(
            parts.scheme == "https",
            parts.hostname,
            port,
            path if path.endswith("/v1") else f"{path}/v1",
            key,
        )

    def __repr__(self) -> str:
        return f"Address({'https' if self.https else 'http'}://{self.host}:{self.port}{self.path})"


class HTTPStatusError(Exception):
    """The response status was not 200. `body` is for the operator's log, not for visitors."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"status {status}")
        self.status, self.body = status, body


class StreamingRequest(threading.Thread):
    """A GET request, or POST if there is a `body`. `lines` yields the response lines without line
    ends; `close` closes the connection immediately.
    """

    def __init__(
        self, address: ServerAddress, path: str, body: bytes | None, timeout: float
    ) -> None:
        super().__init__(daemon=True, name="exchange")
        self.address, self.path, self.body, self.timeout = address, path, body, timeout
        self._lines: queue.Queue[bytes | Exception | None] = queue.Queue(MAX_QUEUED_LINES)
        self._closed = threading.Event()
        self._socket: socket.socket | None = None
        self.start()

    def lines(self, stop: threading.Event) -> Iterator[bytes]:
        """Yield lines until the response ends or `stop` is set.

        Raises HTTPStatusError, or ChatError if the server is unreachable or sends nothing for
        `timeout` seconds.
        """
        waited = 0.0
        while not stop.is_set():
            try:
                got = self._lines.get(timeout=0.05)
            except queue.Empty:
                waited += 0.05
                if waited > self.timeout:
                    raise ChatError(
                        "the model's server does not answer",
                        got=f"nothing for {self.timeout:.0f} seconds",
                        do="Ask again later",
                    ) from None
                continue
            waited = 0.0
            if got is None:
                return
            if isinstance(got, Exception):
                raise _to_chat_error(got) from got
            yield got

    def close(self) -> None:
        """Close the connection; may be called from any thread, and more than once."""
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # already closed
                self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Send the request and queue the lines of the response; what fails is queued as an
        exception.
        """
        connection = self._connection()
        try:
            connection.connect()
            self._socket = connection.sock
            if not self._closed.is_set():
                connection.sock.settimeout(self.timeout + 5)
                self._read(connection)
            self._put(None)
        except Exception as error:  # noqa: BLE001, carried to the thread that listens
            self._put(error)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.https:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self.address.host, self.address.port, timeout=CONNECT_TIMEOUT, context=context
            )
        return http.client.HTTPConnection(
            self.address.host, self.address.port, timeout=CONNECT_TIMEOUT
        )

    def _read(self, connection: http.client.HTTPConnection) -> None:
        headers = {"Accept": "text/event-stream, application/json", "Connection": "close"}
        if self.address.key:
            headers["Authorization"] = f"Bearer {self.address.key}"
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(
            "GET" if self.body is None else "POST",
            self.address.path + self.path,
            self.body,
            headers,
        )
        with connection.getresponse() as response:
            if response.status != 200:
                raise HTTPStatusError(
                    response.status, response.read(MAX_ERROR_BODY_BYTES).decode(errors="replace")
                )
            while line := response.readline(MAX_LINE_BYTES):
                if not self._put(line.rstrip(b"\r\n")):
                    return

    def _put(self, line: bytes | Exception | None) -> bool:
        """Enqueue a line; False once the request is closed."""
        while not self._closed.is_set():
            try:
                self._lines.put(line, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _to_chat_error(error: Exception) -> Exception:
    """Convert to an error that a visitor may read: no address, no path."""
    if isinstance(error, HTTPStatusError):
        return error
    if isinstance(error, TimeoutError):
        return ChatError(
            "the model's server does not answer", got="no connection in time", do="Ask again later"
        )
    if isinstance(error, ssl.SSLError):
        return ChatError(
            "the model's server cannot be trusted",
            got="a certificate that does not hold",
            do="Whoever runs this must mend it",
        )
    if isinstance(error, http.client.HTTPException):
        return ChatError(
            "the model's server answers something that is no HTTP",
            got=type(error).__name__,
            do="Whoever runs this must mend it",
        )
    if isinstance(error, OSError):
        return ChatError(
            "the model's server cannot be reached",
            got=(error.strerror or "no connection").lower(),
            do="Ask again later",
        )
    return error
