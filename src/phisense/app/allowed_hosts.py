"""Host and Origin checks, against DNS rebinding and cross-site requests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from .asgi import RejectedError

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PROXY_HINT = (
    "If it is this one, reached by a proxy, whoever runs it can tell its name: --allow-host NAME."
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
HostAndPort = tuple[str, int | None]  # host name and port; None is the scheme's default port


class AllowedHosts:
    """Allowed Host and Origin headers.

    Bound to a loopback address, only local names and `allowed` are accepted: otherwise a site whose
    name resolves to this machine would count as the page's own origin (DNS rebinding). Bound to any
    other address, every host is accepted. Cross-origin requests are rejected in both cases.
    """

    def __init__(self, host: str, allowed: Iterable[str] = ()) -> None:
        self.is_loopback = _is_loopback(host)
        self._local = {*_LOCAL_NAMES, host.strip("[]")}
        self._allowed: set[str] = set()
        for name in allowed:
            self.allow(name)

    def allow(self, name: str) -> None:
        """Allow a host name, with or without a port, or a URL as the browser shows it."""
        if (place := _parse_host(name)) is not None:
            self._allowed.add(place[0])

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises RejectedError: 421 for a host that is not allowed, 403 for a foreign origin."""
        told: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            told.setdefault(name, []).append(value)
        hosts = told.get(b"host", [])
        host = _parse_host(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if host is None or (
            self.is_loopback and host[0] not in self._local and host[0] not in self._allowed
        ):
            raise RejectedError(
                421,
                "This page does not answer to that name. Whoever runs it can let it: --allow-host"
                " NAME.",
            )
        own = [
            (host, False),
            *(
                (_parse_host(value.decode("latin-1").split(",")[0]), True)
                for value in told.get(b"x-forwarded-host", [])
            ),
        ]
        for origin in told.get(b"origin", []):
            place = _parse_host(origin.decode("latin-1"), origin=True)
            if place is None or not (
                place[0] in self._allowed
                or any(one and _same_origin(place, one, forwarded) for one, forwarded in own)
            ):
                raise RejectedError(
                    403, f"Pages of another origin may not use this one. {_PROXY_HINT}"
                )


def _same_origin(origin: HostAndPort, own: HostAndPort, forwarded: bool) -> bool:
    """Compare an origin with a host. A proxy may omit the port of the host that it forwards."""
    return origin[0] == own[0] and (own[1] == origin[1] or (forwarded and own[1] is None))


def _parse_host(text: str, origin: bool = False) -> HostAndPort | None:
    """Parse `name`, `name:port` or, for origins, `scheme://name:port`; default ports become
    None.
    """
    text = text.strip()
    if origin and not re.match(r"https?://", text):  # "null", or not a web origin
        return None
    try:
        split = urlsplit(text if "://" in text else f"//{text}")
        name, port = split.hostname, split.port
    except ValueError:
        return None
    if (
        not name
        or split.username is not None
        or (split.path not in ("", "/"))
        or split.query
        or split.fragment
    ):
        return None
    implied = (
        (_DEFAULT_PORTS[split.scheme],)
        if split.scheme in _DEFAULT_PORTS
        else tuple(_DEFAULT_PORTS.values())
    )
    return name.rstrip("."), None if port in implied else port


def _is_loopback(host: str) -> bool:
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
