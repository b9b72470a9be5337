"""One request to a server, and the lines of its answer as they come. Whoever listens may leave at any moment, and the connection ends.

The reading is a thread's work, so that a server that is silent, or slow to begin, holds up nobody who wants to stop.
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

CONNECT = 10.0  # seconds until the server must have taken the call
WAITING = 64  # lines; a server that talks faster than it is listened to has to wait
LONGEST_LINE = 2**20  # bytes
LONGEST_REFUSAL = 2**16  # bytes


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server's `/v1` is. `key` is sent with every request and shown nowhere."""

    secure: bool
    host: str
    port: int | None
    path: str
    key: str | None = None

    @classmethod
    def parse(cls, url: str, key: str | None = None) -> Address:
        """Raises UsageError for anything but http://host[:port][/path] or https."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
            raise UsageError("that is no server's address", got=url, wanted="http:// or https://, a host, perhaps a port and a path")
        if parts.username is not None or parts.query or parts.fragment:
            raise UsageError(
                "a server's address is a host, a port and a path only",
                got="a user name, a question mark or a hash in it",
                do="Put a key into the environment's PHISENSE_SERVER_KEY",
            )
        path = parts.path.rstrip("/")
        return cls(parts.scheme == "https", parts.hostname, port, path if path.endswith("/v1") else f"{path}/v1", key)

    def __repr__(self) -> str:
        return f"Address({'https' if self.secure else 'http'}://{self.host}:{self.port}{self.path})"


class Refused(Exception):  # noqa: N818, it is an answer
    """The server's answer was another status than 200. `body` is for the one who runs it, not for visitors."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"status {status}")
        self.status, self.body = status, body


class Exchange(threading.Thread):
    """GET, or POST if there is a `body`. Lines, without their ends, are read by `lines`; `close` ends the connection at once."""

    def __init__(self, address: Address, path: str, body: bytes | None, patience: float) -> None:
        super().__init__(daemon=True, name="exchange")
        self.address, self.path, self.body, self.patience = address, path, body, patience
        self._lines: queue.Queue[bytes | Exception | None] = queue.Queue(WAITING)
        self._closed = threading.Event()
        self._socket: socket.socket | None = None
        self.start()

    def lines(self, stop: threading.Event) -> Iterator[bytes]:
        """Until the answer ends or `stop` is set. Raises Refused, or ChatError if the server is away or silent for `patience` seconds."""
        waited = 0.0
        while not stop.is_set():
            try:
                got = self._lines.get(timeout=0.05)
            except queue.Empty:
                waited += 0.05
                if waited > self.patience:
                    raise ChatError(
                        "the model's server does not answer", got=f"nothing for {self.patience:.0f} seconds", do="Ask again later"
                    ) from None
                continue
            waited = 0.0
            if got is None:
                return
            if isinstance(got, Exception):
                raise _sentence(got) from got
            yield got

    def close(self) -> None:
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        connection = self._connection()
        try:
            connection.connect()
            self._socket = connection.sock
            if not self._closed.is_set():
                connection.sock.settimeout(self.patience + 5)
                self._read(connection)
            self._put(None)
        except Exception as error:  # carried to the one who listens
            self._put(error)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self.address.host, self.address.port, timeout=CONNECT, context=context)
        return http.client.HTTPConnection(self.address.host, self.address.port, timeout=CONNECT)

    def _read(self, connection: http.client.HTTPConnection) -> None:
        headers = {"Accept": "text/event-stream, application/json", "Connection": "close"}
        if self.address.key:
            headers["Authorization"] = f"Bearer {self.address.key}"
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        connection.request("GET" if self.body is None else "POST", self.address.path + self.path, self.body, headers)
        with connection.getresponse() as response:
            if response.status != 200:
                raise Refused(response.status, response.read(LONGEST_REFUSAL).decode(errors="replace"))
            while line := response.readline(LONGEST_LINE):
                if not self._put(line.rstrip(b"\r\n")):
                    return

    def _put(self, line: bytes | Exception | None) -> bool:
        """False once nobody listens any more."""
        while not self._closed.is_set():
            try:
                self._lines.put(line, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _sentence(error: Exception) -> Exception:
    """What a visitor may read: no address, no path."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, TimeoutError):
        return ChatError("the model's server does not answer", got="no connection in time", do="Ask again later")
    if isinstance(error, ssl.SSLError):
        return ChatError(
            "the model's server cannot be trusted", got="a certificate that does not hold", do="Whoever runs this must mend it"
        )
    if isinstance(error, http.client.HTTPException):
        return ChatError(
            "the model's server answers something that is no HTTP", got=type(error).__name__, do="Whoever runs this must mend it"
        )
    if isinstance(error, OSError):
        return ChatError("the model's server cannot be reached", got=(error.strerror or "no connection").lower(), do="Ask again later")
    return error
