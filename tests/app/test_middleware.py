"""What never reaches Gradio."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio.utils import get_upload_folder

from phisense.app import Limits, build, launch

from ..chat.test_session import Echo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    page = build(Echo(), limits=Limits(queue_size=2))
    _, url, _ = launch(page, port=0, block=False)
    yield url
    page.close()


def post(url: str, data: list[Any]) -> httpx.Response:
    return httpx.post(f"{url}gradio_api/call/look", json={"data": data}, timeout=30)


def named(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:1/a",
        "HTTPS://x/a",
        " ftp://x",
        "file:///etc/passwd",
        "//x/a",
        "data:image/png;base64,AA",
    ],
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
    told = httpx.post(
        f"{door}gradio_api/call/look", content=json.dumps({"data": ["x" * 2**16]}), timeout=30
    )
    assert told.status_code == 413


def test_what_only_one_parser_takes_for_json_is_refused_or_seen(door: str) -> None:
    """Gradio's takes NaN and UTF-16."""
    address = json.dumps({"data": [named("http://127.0.0.1:1/a")], "more": float("nan")})
    for body in (
        address.encode(),
        address.encode("utf-16"),
        b"no json",
        b"[" * 60_000,
        b'{"data": [NaN]}',
    ):
        assert (
            httpx.post(f"{door}gradio_api/call/look", content=body, timeout=30).status_code == 400
        )
    nothing = json.dumps({"data": [None, None]}).encode("utf-16")
    assert httpx.post(f"{door}gradio_api/call/look", content=nothing, timeout=30).status_code == 200


def test_no_other_route_passes_for_the_upload(door: str) -> None:
    told = httpx.post(
        f"{door}gradio_api/run/upload",
        json={"fn_index": 0, "data": [named("http://127.0.0.1:1/a")]},
        timeout=30,
    )
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
    "path",
    [
        "proxy=http://x/",
        "component_server",
        "file=http://x/",
        "vibe-edit",
        "deep_link",
        "stream/a/b/c/playlist.m3u8",
    ],
)
def test_what_the_page_does_not_use_is_not_there(door: str, path: str) -> None:
    assert httpx.get(f"{door}gradio_api/{path}", timeout=30).status_code == 404


def test_a_browser_is_told_to_fetch_nothing_from_elsewhere(door: str) -> None:
    policy = httpx.get(door, timeout=30).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def join(url: str, **changed: Any) -> httpx.Response:
    """A question with some of its parts changed; `...` takes one away."""
    body = {
        "data": ["What?", None, 0, 256, None],
        "fn_index": number(url, "ask"),
        "session_hash": "one",
        **changed,
    }
    content = json.dumps({key: value for key, value in body.items() if value is not ...})
    return httpx.post(
        f"{url}gradio_api/queue/join",
        content=content,
        headers={"content-type": "application/json"},
        timeout=30,
    )


def number(url: str, name: str) -> int:
    return next(
        one["id"]
        for one in httpx.get(f"{url}config", timeout=30).json()["dependencies"]
        if one["api_name"] == name
    )


def nest(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


BROKEN: list[tuple[dict[str, Any], int]] = [
    ({"fn_index": 999}, 404),
    ({"fn_index": -1}, 404),
    ({"fn_index": "0"}, 404),
    ({"fn_index": True}, 404),
    ({"fn_index": None}, 404),
    ({"fn_index": ...}, 404),
    ({"data": ...}, 400),
    ({"data": None}, 400),
    ({"data": {}}, 400),
    ({"data": []}, 400),
    ({"data": ["What?"]}, 400),
    ({"data": ["What?", None, 0, 256, None, None]}, 400),
    ({"session_hash": ...}, 400),
    ({"session_hash": ""}, 400),
    ({"session_hash": "x" * 65}, 400),
    ({"session_hash": "../x"}, 400),
    ({"session_hash": 7}, 400),
    ({"session_hash": "\ud800"}, 400),
    ({"trigger_id": 10**6}, 400),
    ({"trigger_id": "x"}, 400),
    *(
        ({"data": [text, None, 0, 256, None]}, 400)
        for text in (7, True, [], {}, "\ud800", "a\udfffb", "a\0b")
    ),
    *(
        ({"data": ["What?", None, warmth, 256, None]}, 400)
        for warmth in (
            float("nan"),
            float("inf"),
            -float("inf"),
            1e300,
            -1,
            "0",
            None,
            True,
            [],
            10**300,
        )
    ),
    *(
        ({"data": ["What?", None, 0, tokens, None]}, 400)
        for tokens in (0, -5, 10**9, float("nan"), "256", None)
    ),
    *(({"data": ["What?", picture, 0, 256, None]}, 400) for picture in ("a.png", 7, [], {}, True)),
    ({"data": ["What?", None, 0, 256, {"lines": []}]}, 400),
    ({"event_data": nest(17)}, 400),
    ({"data": [nest(500), None, 0, 256, None]}, 400),
]


@pytest.mark.parametrize(("changed", "status"), BROKEN, ids=lambda value: str(value)[:60])
def test_what_the_page_would_not_send_is_refused_with_a_sentence(
    door: str, changed: dict[str, Any], status: int
) -> None:
    told = join(door, **changed)
    assert told.status_code == status
    assert told.json()["detail"].endswith(".")
    assert "Traceback" not in told.text


def test_endless_digits_are_refused(door: str) -> None:
    for digits in ("9" * 5000, "9" * 400, "-" + "9" * 30, "1e999", "1E+4000"):
        body = (
            f'{{"data": ["What?", null, {digits}, 256, null], "fn_index": 0, "session_hash":'
            ' "one"}'
        )
        told = httpx.post(f"{door}gradio_api/queue/join", content=body, timeout=30)
        assert told.status_code == 400


@pytest.mark.parametrize(
    "event",
    [
        None,
        7,
        [],
        {},
        {"index": 0},
        {"index": "0", "value": ""},
        {"index": -1, "value": "", "previous_value": ""},
        {"index": [0, 1], "value": "", "previous_value": ""},
        {"index": [0], "value": "", "previous_value": ""},
    ],
)
def test_buttons_of_the_conversation_say_which_line_is_meant(door: str, event: Any) -> None:
    functions = httpx.get(f"{door}config", timeout=30).json()["dependencies"]
    for one in functions:
        if any(name in ("retry", "edit", "undo") for _, name in one["targets"]):
            data = [None, "", 0, 256, None] if len(one["inputs"]) == 5 else [None]
            assert join(door, fn_index=one["id"], data=data, event_data=event).status_code == 400


def test_a_session_is_whole_after_all_that_was_refused(door: str) -> None:
    with httpx.Client(timeout=30) as http:
        http.get(door)
        for changed, _ in BROKEN:
            body = {
                "data": ["What?", None, 0, 256, None],
                "fn_index": 0,
                "session_hash": "whole",
                **changed,
            }
            content = json.dumps({key: value for key, value in body.items() if value is not ...})
            http.post(f"{door}gradio_api/queue/join", content=content)
        body = {
            "data": ["What?", None, 0, 256, None],
            "fn_index": number(door, "ask"),
            "session_hash": "whole",
        }
        assert http.post(f"{door}gradio_api/queue/join", json=body).status_code == 200
        with http.stream(
            "GET", f"{door}gradio_api/queue/data", params={"session_hash": "whole"}
        ) as stream:
            told = [
                json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")
            ]
    done = next(message for message in told if message["msg"] == "process_completed")
    assert done["success"]
    assert "I was given 1 messages" in json.dumps(done["output"])


def test_uploads_are_counted_as_they_arrive() -> None:
    page = build(Echo(), limits=Limits(max_uploaded_bytes=300_000, max_uploaded_bytes_each=200_000))
    _, url, _ = launch(page, port=0, block=False)
    small = {"files": ("a.png", b"x" * 1000)}
    promised = []
    for _ in range(96):  # each promises 32 MB and sends none of it
        one = socket.create_connection(("127.0.0.1", int(url.rstrip("/").rsplit(":", 1)[1])))
        one.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type:"
            b" multipart/form-data; boundary=b\r\nContent-Length: 33000000\r\n\r\n"
        )
        promised.append(one)
    assert httpx.post(f"{url}gradio_api/upload", files=small, timeout=30).status_code == 200
    for one in promised:
        one.close()
    assert (
        httpx.post(
            f"{url}gradio_api/upload", files={"files": ("a.png", b"x" * 130_000)}, timeout=30
        ).status_code
        == 200
    )
    told = httpx.post(f"{url}gradio_api/upload", files=small, timeout=30)
    assert told.status_code == 429
    assert "your address in the last hour" in told.json()["detail"]
    elsewhere = {"x-forwarded-for": "192.0.2.7"}  # a proxy on this computer is believed
    assert (
        httpx.post(
            f"{url}gradio_api/upload", files=small, headers=elsewhere, timeout=30
        ).status_code
        == 200
    )
    told = httpx.post(
        f"{url}gradio_api/upload", files=small, headers={"x-forwarded-for": "192.0.2.8"}, timeout=30
    )
    assert told.status_code == 503
    assert "last hour" in told.json()["detail"]
    page.close()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            b"--b\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\nhalf",
            "multipart/form-data; boundary=b",
        ),
        (b"{}", "application/json"),
        (b"x", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=b"),
        (b"--b--", "multipart/form-data; boundary=" + 80 * "b"),
        (b"\r\n--b\r\n\r\nno headers\r\n--b--\r\n", "multipart/form-data; boundary=b"),
    ],
)
def test_half_an_upload_is_a_sentence_and_leaves_nothing(door: str, body: bytes, kind: str) -> None:
    before = sorted(Path(get_upload_folder()).glob("tmp*"))
    told = httpx.post(
        f"{door}gradio_api/upload", content=body, headers={"content-type": kind}, timeout=30
    )
    assert 400 <= told.status_code < 500
    assert "Traceback" not in told.text
    assert sorted(Path(get_upload_folder()).glob("tmp*")) == before


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{",
        (
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type:"
            b" multipart/form-data; boundary=b\r\nContent-Length: 9999\r\n\r\n-"
        ),
        b"GET /robots.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HT",
    ],
)
def test_whoever_sends_letter_by_letter_is_not_waited_for(begun: bytes) -> None:
    page = build(Echo(), limits=Limits(request_timeout=0.6))
    _, url, _ = launch(page, port=0, block=False)
    with socket.create_connection(("127.0.0.1", int(url.rstrip("/").rsplit(":", 1)[1]))) as slow:
        slow.settimeout(20)
        slow.sendall(begun)
        closed = threading.Event()

        def drip() -> None:
            while not closed.wait(0.1):
                try:
                    slow.sendall(b"x" if begun else b"")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            while slow.recv(4096):
                pass
        except ConnectionError:
            pass  # and not TimeoutError: it was closed
        closed.set()
        dripping.join()
        assert httpx.get(f"{url}robots.txt", timeout=30).status_code == 200
    page.close()


def test_a_browser_without_cookies_is_told_so(door: str) -> None:
    """And not to upload the file again, which would not help."""
    with httpx.Client(timeout=30) as http:
        for kept in (False, True):
            uploaded = http.post(
                f"{door}gradio_api/upload", files={"files": ("a.png", b"x")}
            ).json()[0]
            if not kept:
                http.cookies.clear()
            told = http.post(f"{door}gradio_api/call/look", json={"data": [named(uploaded), None]})
            assert told.status_code == (200 if kept else 403)
            assert ("no cookies" in told.text) is not kept
        told = http.post(f"{door}gradio_api/call/look", json={"data": [named("/a.png"), None]})
        assert "no upload of yours" in told.json()["detail"]
