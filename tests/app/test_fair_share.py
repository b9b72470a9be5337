"""What one client can take from the others: places in the queue, what is remembered,
connections.
"""

from __future__ import annotations

import resource
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from phisense.app import Limits, build, fair_share, launch
from phisense.app import middleware as door_module
from phisense.app import state_holder as sessions_module
from phisense.app.fair_share import client_address, client_of, has_share
from phisense.app.state_holder import FairStateHolder

from ..chat.test_session import Echo

pytestmark = pytest.mark.slow


class Held(Echo):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def stream(self, *given: Any) -> Iterator[str]:
        self.go.wait(60)
        yield from super().stream(*given)


@contextmanager
def served(engine: Any, **limits: Any) -> Iterator[str]:
    page = build(engine, limits=Limits(**limits))
    _, url, _ = launch(page, port=0, block=False)
    try:
        yield url
    finally:
        getattr(engine, "go", threading.Event()).set()
        page.close(verbose=False)


def browser(url: str, number: int, cookie: bool = True) -> httpx.Client:
    """One that has opened the page, of an address of its own."""
    http = httpx.Client(timeout=60, base_url=url, headers={"x-forwarded-for": f"192.0.2.{number}"})
    if cookie:
        http.get("config").raise_for_status()
    return http


def function(url: str, name: str) -> int:
    return next(
        one["id"]
        for one in httpx.get(f"{url}config", timeout=30).json()["dependencies"]
        if one["api_name"] == name
    )


def join(http: httpx.Client, ask: int, session: str | None = None) -> int:
    body = {
        "data": ["What?", None, 0, 256, None],
        "fn_index": ask,
        "session_hash": session or uuid.uuid4().hex,
    }
    return http.post("gradio_api/queue/join", json=body).status_code


def said(http: httpx.Client, ask: int, session: str) -> str:
    assert join(http, ask, session) == 200
    with http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
        return "\n".join(stream.iter_lines())


def test_one_holds_no_more_than_is_left_to_the_others() -> None:
    held: Counter[str] = Counter()
    while has_share(held, "one", 16):
        held["one"] += 1
    assert held["one"] == 8
    assert has_share(held, "another", 16)
    for number in range(100):
        while has_share(held, str(number), 16):
            held[str(number)] += 1
        assert held.total() <= 16
    assert not has_share(held, "late", 16)


@pytest.mark.parametrize("way", ["without a cookie", "one cookie", "many cookies"])
def test_one_client_does_not_fill_the_queue(way: str) -> None:
    with served(Held()) as url:
        ask = function(url, "ask")
        one = browser(url, 1, cookie=way == "one cookie")
        told = []
        for _ in range(20):
            if way == "many cookies":
                one = browser(url, 1)
            elif way == "without a cookie":
                one.cookies.clear()
            told.append(join(one, ask))
        assert set(told) == {200, 429}
        assert told.count(200) == (6 if way == "one cookie" else 9)
        assert join(browser(url, 2), ask) == 200


def test_control_it_does() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door_module.RequestGuard, "_reserve_place", lambda *_: None)
        with served(Held()) as url:
            ask = function(url, "ask")
            one = browser(url, 1, cookie=False)
            told = [join(one, ask) for _ in range(20)]
            assert set(told) == {200, 503}
            assert join(browser(url, 2), ask) == 503


def test_all_at_once_take_no_more() -> None:
    with served(Held()) as url:
        ask, told = function(url, "ask"), []
        threads = [
            threading.Thread(target=lambda: told.append(join(browser(url, 1, cookie=False), ask)))
            for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told.count(200) <= 9


def test_two_tabs_with_a_picture_each_may_ask() -> None:
    with served(Held()) as url:
        ask, one = function(url, "ask"), browser(url, 1)
        assert [join(one, ask) for _ in range(6)] == [200] * 6


def wiped(count: int, name: str) -> bool:
    """Whether the third question of a visitor is answered without the first two, after so many new
    sessions of another.
    """
    with served(Echo(), max_sessions=16) as url:
        ask, mine = function(url, "ask"), browser(url, 1)
        for _ in range(2):
            said(mine, ask, "mine")
        other = browser(url, 2, cookie=False)
        number = function(url, name)
        for one in range(count):
            body = {"data": [None], "fn_index": number, "session_hash": f"s{one}"}
            other.post(f"gradio_api/run/{name}", json=body).raise_for_status()
        return "I was given 5 messages" not in said(mine, ask, "mine")


def test_new_sessions_of_one_do_not_wipe_anothers() -> None:
    assert not wiped(60, "clear")


def test_control_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sessions_module.FairStateHolder,
        "_choose_evicted",
        lambda self, newest: next(iter(self.session_data)),
    )
    assert wiped(60, "clear")


def holder(talks: Callable[[str], bool] = lambda _: False) -> FairStateHolder:
    made = FairStateHolder(talks)
    made.capacity = 8
    return made


def put(kept: FairStateHolder, name: str, *whose: str) -> None:
    if whose:
        kept.register(name, *whose)
    kept.session_data[name] = None
    kept.update(name)


def test_whoever_has_the_most_gives_way() -> None:
    kept = holder(lambda name: name.startswith("talk"))
    for number in range(3):
        put(kept, f"a{number}", f"address {number}", "")
    for number in range(2):
        put(kept, f"talk{number}", "school", f"pupil {number}")
    for number in range(50):
        put(kept, f"new{number}", "school", f"forged {number}")
    assert [*kept.session_data] == ["a0", "a1", "a2", "talk0", "talk1", "new47", "new48", "new49"]
    for number in range(50):  # names that were never told, as Gradio makes for calls without one
        put(kept, f"none{number}")
    assert {"a0", "a1", "a2", "talk0", "talk1"} <= kept.session_data.keys()
    assert len(kept.session_data) == 8


def test_names_that_nothing_comes_of_are_no_memory() -> None:
    kept = holder()
    put(kept, "mine", "address", "me")
    for number in range(10_000):
        kept.register(str(number), "other", "")
    assert len(kept._owners) < 5000
    assert kept._owners["mine"] == ("address", "me")


HEARTBEAT = (
    "GET /gradio_api/heartbeat/{} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
)


def held_open(url: str, count: int) -> tuple[int, int]:
    """Statuses of another visitor while so many heartbeats of one address are open, and of a
    request when they are gone.
    """
    with ExitStack() as stack:
        for number in range(count):
            one = stack.enter_context(
                socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80))
            )
            one.sendall(HEARTBEAT.format(number).encode())
        time.sleep(1)
        status = httpx.get(f"{url}config", timeout=30).status_code
        own = httpx.get(
            f"{url}config", headers={"x-forwarded-for": "192.0.2.1"}, timeout=30
        ).status_code
        assert own == 429
    for _ in range(100):
        if (
            httpx.get(
                f"{url}config", headers={"x-forwarded-for": "192.0.2.1"}, timeout=30
            ).status_code
            == 200
        ):
            return status, 200
        time.sleep(0.1)
    return status, own


def test_one_address_leaves_connections_to_the_others() -> None:
    with served(Echo(), max_open_requests=32) as url:
        assert held_open(url, 60) == (200, 200)


def test_control_without_shares_it_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "has_share", lambda held, _, places: held.total() < places)
    with served(Echo(), max_open_requests=32) as url:
        assert held_open(url, 60)[0] == 503


def test_files_are_raised_and_half_of_them_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: told.append(both))
    for soft, hard, wanted in (
        (1024, 1024, 512),
        (1024, 10**6, 2048),
        (256, 2000, 1000),
        (10**6, 10**6, 2048),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, both=(soft, hard): both)
        assert fair_share.open_request_capacity(Limits()) == wanted
    assert told == [(1024, 1024), (4096, 10**6), (2000, 2000)]


@pytest.mark.parametrize(
    ("forwarded", "wanted"),
    [
        (["198.18.0.1", "8.8.8.8"], "8.8.8.8"),
        (["1.2.3.4, 8.8.8.8"], "8.8.8.8"),
        (["1.2.3.4, 8.8.8.8, 10.0.0.7"], "8.8.8.8"),
        (["1.2.3.4, 8.8.8.8:443, 192.168.1.1"], "8.8.8.8"),
        (["junk, 2a00:1450::8, ::1"], "2a00:1450::/64"),
        (["[2a00:1450::8]:80"], "2a00:1450::/64"),
        (["10.0.0.7"], ""),
        (["x" * 5000], ""),
        ([""], ""),
        ([], ""),
    ],
)
def test_who_writes_its_own_address_is_not_believed(forwarded: list[str], wanted: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert client_address(("203.0.113.9", 1), headers, trust_forwarded=True) == wanted
    # as uvicorn found it
    assert client_address(("203.0.113.9", 1), headers, trust_forwarded=False) == "203.0.113.9"


def test_where_no_address_is_told_visitors_share_by_cookie() -> None:
    assert (
        client_of("8.8.8.8", "a", known=True) == client_of("8.8.8.8", "b", known=False) == "8.8.8.8"
    )
    assert (
        len(
            {
                client_of("", "a", known=True),
                client_of("", "b", known=True),
                client_of("", "c", known=False),
            }
        )
        == 3
    )
    assert client_of("", "c", known=False) == client_of("", "d", known=False)


@pytest.mark.parametrize(("places", "left"), [(32, 16), (2048, 60)])
def test_of_many_silent_connections_the_oldest_give_way(places: int, left: int) -> None:
    """More than half as many as there are places; where there are enough, they may wait their
    time.
    """
    with served(Echo(), max_open_requests=places, request_timeout=60) as url, ExitStack() as stack:
        port = httpx.URL(url).port or 80
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(60)
        ]
        for one in silent:
            one.settimeout(0.01)
        closed: set[socket.socket] = set()
        for _ in range(40):
            closed |= {one for one in silent if one not in closed and is_closed(one)}
            if len(silent) - len(closed) <= left and places == 32:
                break
        assert len(silent) - len(closed) == left
        assert httpx.get(f"{url}config", timeout=30).status_code == 200


def is_closed(one: socket.socket) -> bool:
    try:
        return not one.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(("believed", "taken"), [(True, 9), (False, 17)])
def test_on_a_space_one_client_is_one_whatever_it_writes(
    believed: bool, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's proxy puts the address to the right of what the sender wrote; the control takes
    what uvicorn takes.
    """
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    if not believed:
        monkeypatch.setattr(
            door_module,
            "client_address",
            lambda client, headers, everyone: fair_share.normalize_address(client),
        )
    with served(Held()) as url:
        ask, told = function(url, "ask"), []
        for number in range(24):
            http = httpx.Client(
                timeout=60, base_url=url, headers={"x-forwarded-for": f"1.2.3.{number}, 8.8.8.8"}
            )
            told.append(join(http, ask))
        assert told.count(200) == taken
        mine = httpx.Client(timeout=60, base_url=url, headers={"x-forwarded-for": "8.8.4.4"})
        assert join(mine, ask) == (200 if believed else 503)


def test_where_no_address_is_told_each_browser_has_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a Space whose proxy tells none: fourteen visitors at once, and each asks."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with served(Held()) as url:
        ask, told = function(url, "ask"), []
        for _ in range(14):
            http = httpx.Client(timeout=60, base_url=url)
            http.get("config").raise_for_status()
            told.append(join(http, ask))
        assert told == [200] * 14
