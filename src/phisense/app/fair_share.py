"""Fair sharing of queue places and open requests, so that no client can take them all."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable

from .limits import Limits
from .request_body import normalize_address

CLIENT_KEY = "phisense.party"  # ASGI scope key of the client that limits are counted by


def has_share(taken: Counter[str], client: str, places: int) -> bool:
    """Whether `client` may take another place: it may not hold more than is left free.

    One client alone gets half of the places, two get a third each, and one that holds none gets a
    place as long as any is free.
    """
    return taken[client] < places - taken.total()


def client_of(address: str, visitor: str, known: bool) -> str:
    """Return the client that a request is counted under: its address; without one, its cookie;
    without either, one client shared by all such requests.
    """
    return address or (f"cookie {visitor}" if known else "nobody")


def client_address(
    client: object, headers: Iterable[tuple[bytes, bytes]], trust_forwarded: bool
) -> str:
    """Return the address that a request comes from, "" if unknown.

    uvicorn sets `client`, from the proxies it trusts. If it trusts all (`trust_forwarded`), it
    takes the leftmost entry of X-Forwarded-For, which the sender can forge: each proxy appends to
    the right, so the rightmost public address is taken here.
    """
    if not trust_forwarded:
        return normalize_address(client)
    told = ",".join(
        value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"
    )
    for one in reversed(told.split(",")):
        found = _public_address(one.strip())
        if found is not None:
            return normalize_address((found, 0))
    return ""


def _public_address(text: str) -> str | None:
    """Return the public IP address in `text`, which may have a port; None if it is not public."""
    for name in (text, text.removeprefix("[").split("]")[0], text.split(":")[0]):
        try:
            found = ipaddress.ip_address(name)
        except ValueError:
            continue
        return name if found.is_global else None
    return None


def open_request_capacity(limits: Limits) -> int:
    """Return the maximum number of concurrent requests. Each takes a file descriptor, so the soft
    limit is raised toward the hard one.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return limits.max_open_requests
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * limits.max_open_requests
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        limits.max_open_requests
        if soft == resource.RLIM_INFINITY
        else min(limits.max_open_requests, soft // 2)
    )
