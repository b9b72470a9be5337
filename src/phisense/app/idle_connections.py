"""Closes connections that send no request, or send its headers too slowly (slowloris)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary


async def close_idle_connections(
    get_server: Callable[[], Any], timeout: float, max_waiting: int
) -> None:
    """Abort connections that have waited for request headers for more than `timeout` seconds, until
    cancelled.

    uvicorn bounds the idle time between two requests, but not the time in which a request's headers
    arrive. Its protocols create a `cycle` when the headers are complete, so a connection without a
    cycle, or with a completed one, is waiting for headers. Beyond `max_waiting` such connections,
    the oldest are aborted immediately.
    """
    waiting: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(min(1.0, timeout / 4))
        state = getattr(get_server(), "server_state", None)
        for connection in list(getattr(state, "connections", ())):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                waiting.pop(connection, None)
                continue
            last, since = waiting.setdefault(connection, (cycle, loop.time()))
            if last is not cycle:
                waiting[connection] = (cycle, loop.time())
            elif loop.time() - since > timeout and connection.transport is not None:
                connection.transport.abort()
        oldest = sorted(
            ((since, connection) for connection, (_, since) in waiting.items()),
            key=lambda one: one[0],
        )
        for _, connection in oldest[: max(0, len(oldest) - max_waiting)]:
            if connection.transport is not None:
                connection.transport.abort()
