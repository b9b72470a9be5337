"""Request bodies: size limits, minimum transfer rate, upload quotas and spooling."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import IO

from .asgi import ASGIMessage, ClientDisconnectError, Receive, RejectedError
from .limits import Limits

_BUCKET_SECONDS = 60.0
_CHUNK_BYTES = 2**18
_MAX_ADDRESSES = 1024  # tracked addresses, before expired entries are pruned
_BOUNDARY = re.compile(
    rb'^multipart/form-data\s*;.*?\bboundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE
)


class UploadQuota:
    """Bytes received during the retention period, per address and in total. Announced lengths do
    not count, only bytes that arrived.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all = _RollingSum(limits.retention_seconds)
        self._each: dict[str, _RollingSum] = {}

    def check(self, address: str) -> None:
        """Raises RejectedError if the quota is used up: 429 for this address, 503 for all addresses
        together.
        """
        if (
            address in self._each
            and self._each[address].total() >= self.limits.max_uploaded_bytes_each
        ):
            raise RejectedError(
                429, "Too much was uploaded from your address in the last hour. Try again later."
            )
        if self._all.total() >= self.limits.max_uploaded_bytes:
            raise RejectedError(503, "Too much was uploaded in the last hour. Try again later.")

    def record(self, address: str, size: int) -> None:
        """Record `size` bytes received from `address`, as `normalize_address` returns it."""
        if len(self._each) > _MAX_ADDRESSES:
            self._each = {one: spent for one, spent in self._each.items() if spent.total()}
        self._all.add(size)
        self._each.setdefault(address, _RollingSum(self.limits.retention_seconds)).add(size)


class _RollingSum:
    """Sum over a sliding window of `seconds`, in one-minute buckets."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._buckets: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, size: int) -> None:
        now = time.monotonic()
        self._total += size
        if self._buckets and self._buckets[-1][0] > now - min(_BUCKET_SECONDS, self.seconds / 60):
            began, before = self._buckets.pop()
            self._buckets.append((began, before + size))
        else:
            self._buckets.append((now, size))

    def total(self) -> int:
        while self._buckets and self._buckets[0][0] < time.monotonic() - self.seconds:
            self._total -= self._buckets.popleft()[1]
        return self._total


def normalize_address(client: object) -> str:
    """Return the IP address of an ASGI scope's `client`; for IPv6 its /64 network, since one user
    usually has a whole /64.
    """
    told = str(client[0]) if isinstance(client, tuple | list) and client else ""
    try:
        found = ipaddress.ip_address(told)
    except ValueError:
        return told
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else told


async def iter_body(receive: Receive, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the chunks of a request body.

    Raises RejectedError (408) if it arrives too slowly, ClientDisconnectError if the client
    disconnects before its end.
    """
    loop = asyncio.get_running_loop()
    began, got = loop.time(), 0
    while True:
        try:
            async with asyncio.timeout_at(
                began + limits.request_timeout + got / limits.min_bytes_per_second
            ):
                message = await receive()
        except TimeoutError:
            raise RejectedError(408, "The request came too slowly.") from None
        if message["type"] != "http.request":
            raise ClientDisconnectError
        piece = message.get("body", b"")
        got += len(piece)
        yield piece
        if not message.get("more_body"):
            return


async def read_body(receive: Receive, limits: Limits) -> bytes:
    """Read a body of at most `limits.max_body_bytes` bytes. Raises RejectedError (408 or 413) and
    ClientDisconnectError.
    """
    body = bytearray()
    async for piece in iter_body(receive, limits):
        body += piece
        if len(body) > limits.max_body_bytes:
            raise RejectedError(
                413, f"The request is too large; at most {limits.max_body_bytes:,} bytes."
            )
    return bytes(body)


async def spool_upload(
    receive: Receive, limits: Limits, meter: UploadQuota, client: str, content_type: bytes
) -> IO[bytes]:
    """Receive a complete multipart upload into a spooled temporary file, so that Gradio never sees
    a partial one. `content_type` is the value of the Content-Type header.

    Raises RejectedError and ClientDisconnectError.
    """
    boundary = _BOUNDARY.match(content_type)
    if boundary is None:
        raise RejectedError(400, "An upload is a form with a file in it.")
    # closed by whoever reads it
    held: IO[bytes] = tempfile.SpooledTemporaryFile(2**20)  # noqa: SIM115
    size = 0
    try:
        async for piece in iter_body(receive, limits):
            meter.check(client)
            meter.record(client, len(piece))
            size += len(piece)
            if size > max_upload_request_bytes(limits):
                raise RejectedError(
                    413, f"The upload is too large; at most {limits.max_upload_bytes // 2**20} MB."
                )
            held.write(piece)
        held.seek(max(0, size - 512))
        if b"--" + (boundary[1] or boundary[2]) + b"--" not in held.read():
            raise RejectedError(400, "The upload is not whole.")
        held.seek(0)
    except BaseException:
        held.close()
        raise
    return held


def max_upload_request_bytes(limits: Limits) -> int:
    """Maximum body size of an upload request: one file and its multipart overhead."""
    return limits.max_upload_bytes + 2**20


def replay_body(body: IO[bytes], receive: Receive) -> Receive:
    """Return an ASGI `receive` that replays a received body and closes it at its end."""

    async def again() -> ASGIMessage:
        if body.closed:
            return await receive()
        piece = body.read(_CHUNK_BYTES)
        if len(piece) < _CHUNK_BYTES:
            body.close()
        return {"type": "http.request", "body": piece, "more_body": len(piece) == _CHUNK_BYTES}

    return again
