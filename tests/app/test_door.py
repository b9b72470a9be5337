"""What never reaches Gradio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from phisense.app import Limits, build, launch
from phisense.app import door as door_module

from ..chat.test_session import Echo


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    page = build(Echo(), limits=Limits(waiting=2))
    _, url, _ = launch(page, port=0, block=False)
    yield url
    page.close()


def post(url: str, data: list[Any]) -> httpx.Response:
    return httpx.post(f"{url}gradio_api/call/look", json={"data": data}, timeout=30)


def named(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:1/a", "HTTPS://x/a", " ftp://x", "file:///etc/passwd", "//x/a", "data:image/png;base64,AA"]
)
def test_addresses_are_no_files(door: str, path: str) -> None:
    told = post(door, [named(path), None])
    assert told.status_code == 400
    assert "not fetched" in told.json()["detail"]
    assert post(door, [[{"deep": [named(path)]}], None]).status_code == 400


def test_an_ordinary_request_goes_through(door: str) -> None:
    told = httpx.post(f"{door}gradio_api/call/look", json={"data": [None, None]}, timeout=30)
    assert told.status_code == 200
    assert httpx.get(door, timeout=30).status_code == 200


def test_bodies_are_bounded(door: str) -> None:
    told = httpx.post(f"{door}gradio_api/call/look", content=json.dumps({"data": ["x" * 2**20]}), timeout=30)
    assert told.status_code == 413


def test_what_only_one_parser_takes_for_json_is_refused_or_seen(door: str) -> None:
    """Gradio's takes NaN and UTF-16."""
    address = json.dumps({"data": [named("http://127.0.0.1:1/a")], "more": float("nan")})
    for body in (address.encode(), address.encode("utf-16"), b"no json", b"[" * 100_000):
        assert httpx.post(f"{door}gradio_api/call/look", content=body, timeout=30).status_code == 400


def test_no_other_route_passes_for_the_upload(door: str) -> None:
    told = httpx.post(f"{door}gradio_api/run/upload", json={"fn_index": 0, "data": [named("http://127.0.0.1:1/a")]}, timeout=30)
    assert told.status_code == 400


def test_an_upload_says_how_long_it_is(door: str) -> None:
    told = httpx.post(f"{door}gradio_api/upload", content=iter([b"x" * 100]), timeout=30)
    assert told.status_code == 411
    told = httpx.post(f"{door}gradio_api/upload", content=b"x" * (34 * 2**20), timeout=60)
    assert told.status_code == 413


def test_nothing_goes_past_the_queue(door: str) -> None:
    told = httpx.post(f"{door}gradio_api/run/look", json={"data": [None, None]}, timeout=30)
    assert told.status_code == 404


@pytest.mark.parametrize(
    "path", ["proxy=http://x/", "component_server", "file=http://x/", "vibe-edit", "deep_link", "stream/a/b/c/playlist.m3u8"]
)
def test_what_the_page_does_not_use_is_not_there(door: str, path: str) -> None:
    assert httpx.get(f"{door}gradio_api/{path}", timeout=30).status_code == 404


def test_a_browser_is_told_to_fetch_nothing_from_elsewhere(door: str) -> None:
    policy = httpx.get(door, timeout=30).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_uploads_are_bounded_together(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"files": ("a.png", b"x" * 1000)}
    assert httpx.post(f"{door}gradio_api/upload", files=small, timeout=30).status_code == 200
    monkeypatch.setattr(door_module, "UPLOADED", 2000)
    told = httpx.post(f"{door}gradio_api/upload", files=small, timeout=30)
    assert told.status_code == 503
    assert "last hour" in told.json()["detail"]
