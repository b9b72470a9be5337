"""Who sends a request: a visitor is known by a secret in a cookie, a client by its address."""

from __future__ import annotations

import re
import secrets

from .asgi import Scope
from .fair_share import CLIENT_KEY

# ASGI scope key of the visitor's secret, for handlers
VISITOR_KEY = "phisense.visitor"
KNOWN_KEY = "phisense.known"  # ASGI scope key: True if the request carried the cookie
_COOKIE = re.compile(r"(?:^|;\s*)phisense=([A-Za-z0-9_-]{32,64})(?:;|$)")
Owner = tuple[str, str]  # client and visitor secret; the secret is "" without a cookie


def owner_of(scope: Scope) -> Owner:
    """The client and the visitor that a request counts for."""
    return scope[CLIENT_KEY], scope[VISITOR_KEY] if scope[KNOWN_KEY] else ""


def read_visitor(headers: list[tuple[bytes, bytes]]) -> tuple[str, bool]:
    """Return the visitor's secret from the cookie, or a new one, and whether the cookie was
    present.
    """
    for name, value in headers:
        if name == b"cookie" and (found := _COOKIE.search(value.decode("latin-1"))) is not None:
            return found[1], True
    return secrets.token_urlsafe(32), False


def make_cookie(visitor: str, scope: Scope) -> bytes:
    """Build the Set-Cookie value.

    In an iframe of another site, as Spaces are embedded, browsers keep only partitioned cookies
    sent over TLS.
    """
    told = dict(scope["headers"]).get(b"x-forwarded-proto", scope.get("scheme", "http").encode())
    site = (
        "SameSite=None; Secure; Partitioned"
        if told.split(b",")[0].strip() == b"https"
        else "SameSite=Lax"
    )
    return f"phisense={visitor}; Path=/; HttpOnly; {site}".encode()
