"""Under which names the page answers, and to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from phisense.app import build, launch
from phisense.app import page as page_module
from phisense.app.allowed_hosts import AllowedHosts
from phisense.app.asgi import RejectedError

from ..chat.test_session import Echo

pytestmark = pytest.mark.slow

ELSEWHERE = (
    "evil.com",
    "evil.com:7860",
    "127.0.0.1.evil.com",
    "localhost.evil.com",
    "192.168.1.7:7860",
    "",
    "a@127.0.0.1",
    "[::2]",
    "127.0.0.2",
)
HERE = ("127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "localhost.:7860")


def status(names: AllowedHosts, **headers: str) -> int:
    try:
        names.check(
            [
                (name.replace("_", "-").encode(), value.encode("latin-1"))
                for name, value in headers.items()
            ]
        )
    except RejectedError as refused:
        assert "--allow-host" in refused.detail
        assert not any(value and value in refused.detail for value in headers.values())
        return refused.status
    return 200


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.53"])
def test_on_a_loopback_address_only_its_own_names(bound: str) -> None:
    names = AllowedHosts(bound, ["page.example.org"])
    assert {status(names, host=host) for host in ELSEWHERE} == {421}
    assert {
        status(names, host=host) for host in (*HERE, "page.example.org", "page.example.org:443")
    } == {200}
    assert status(names) == 421


@pytest.mark.parametrize("bound", ["0.0.0.0", "192.0.2.1", "::", "a.example.org"])
def test_on_any_other_every_name(bound: str) -> None:
    names = AllowedHosts(bound)
    assert {status(names, host=host) for host in ("evil.com", "192.168.1.7:7860", *HERE)} == {200}


@pytest.mark.parametrize(
    ("host", "origin", "wanted"),
    [
        ("localhost:7860", "http://localhost:7860", 200),
        ("localhost:7860", "http://localhost:3000", 403),
        ("localhost:7860", "http://127.0.0.1:7860", 403),
        ("localhost:7860", "null", 403),
        ("localhost:7860", "http://evil.com", 403),
        ("localhost:7860", "file://", 403),
        ("localhost:7860", "chrome-extension://localhost", 403),
        ("localhost:7860", "http://localhost:7860.evil.com", 403),
        ("localhost:7860", "http://localhost:7860@evil.com", 403),
        ("localhost:7860", "", 403),
        ("localhost:7860", "https://page.example.org", 200),
        ("page.example.org", "https://page.example.org", 200),
        ("page.example.org", "https://page.example.org:8443", 200),
        ("page.example.org:8443", "https://page.example.org:8443", 200),
        ("localhost", "http://localhost", 200),
        ("localhost", "http://localhost:9999", 403),
        ("127.0.0.1", "http://127.0.0.1:3000", 403),
    ],
)
def test_origins(host: str, origin: str, wanted: int) -> None:
    assert (
        status(AllowedHosts("127.0.0.1", ["https://page.example.org/"]), host=host, origin=origin)
        == wanted
    )


@pytest.mark.parametrize("bound", ["127.0.0.5", "127.1.2.3"])
def test_the_loopback_address_that_it_is_bound_to_is_a_name(bound: str) -> None:
    assert status(AllowedHosts(bound), host=f"{bound}:7860", origin=f"http://{bound}:7860") == 200
    assert status(AllowedHosts(bound), host="127.0.0.6:7860") == 421


def test_a_proxy_passes_on_under_which_name_it_was_asked() -> None:
    names = AllowedHosts("127.0.0.1")
    assert status(names, host="127.0.0.1:7860", origin="https://page.example.org") == 403
    assert (
        status(
            names,
            host="127.0.0.1:7860",
            origin="https://page.example.org",
            x_forwarded_host="page.example.org",
        )
        == 200
    )
    assert (
        status(
            names,
            host="127.0.0.1:7860",
            origin="https://page.example.org:8443",
            x_forwarded_host="page.example.org",
        )
        == 200
    )
    assert (
        status(names, host="evil.com", origin="http://evil.com", x_forwarded_host="evil.com") == 421
    )


@pytest.fixture
def url() -> Iterator[str]:
    page = build(Echo())
    _, address, _ = launch(page, port=0, block=False)
    yield address
    page.close()


def asked(url: str) -> list[int]:
    """What a page of another origin gets that has its name pointed here, or asks across."""
    port = httpx.URL(url).port
    rebound = {"host": f"evil.com:{port}", "origin": f"http://evil.com:{port}"}
    across: dict[str, Any] = {"origin": "http://evil.com"}
    before = {
        **across,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    told = []
    for headers in (rebound, across):
        told += [
            httpx.get(f"{url}{path}", headers=headers)
            for path in ("", "config", "gradio_api/info", "gradio_api/queue/status")
        ]
        told += [
            httpx.post(f"{url}gradio_api/call/look", headers=headers, json={"data": [None, None]})
        ]
        told += [
            httpx.post(f"{url}gradio_api/upload", headers=headers, files={"files": ("a", b"x")})
        ]
    told += [httpx.options(f"{url}gradio_api/queue/join", headers=before)]
    return [
        one.status_code
        for one in told
        if "access-control-allow-origin" in one.headers or one.status_code < 400
    ]


def test_no_page_elsewhere_can_use_this_one(url: str) -> None:
    assert asked(url) == []


def test_control_without_the_names_they_all_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module.AllowedHosts, "check", lambda self, headers: None)
    page = build(Echo())
    _, address, _ = launch(page, port=0, block=False)
    assert len(asked(address)) == 12
    page.close()


def test_a_space_knows_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_HOST", "somebody-phisense.hf.space")
    page = build(Echo())
    _, address, _ = launch(page, port=0, block=False)
    given = {
        "host": "somebody-phisense.hf.space",
        "origin": "https://somebody-phisense.hf.space",
        "x-forwarded-proto": "https",
    }
    told = httpx.get(address, headers=given)
    assert told.status_code == 200
    assert "SameSite=None; Secure; Partitioned" in told.headers["set-cookie"]
    assert "SameSite=Lax" in httpx.get(address).headers["set-cookie"]
    page.close()
