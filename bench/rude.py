"""Rows of bench/strangers.py about requests that no page of ours would send: each gives its counts
beside those of a control.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
from crowd import Echo, Guest, instead, other_process, resident, served, words

from phisense.app import Limits, sanitize
from phisense.app import allowed_hosts as names_module
from phisense.app import middleware as door_module
from phisense.app import request_body as bodies_module
from phisense.app import request_validation as calls_module
from phisense.app import state as talk_module
from phisense.app import state_holder as sessions_module


def rebinding() -> dict[str, Any]:
    with served(Echo()) as (url, _):
        count, of = _answered(url)
        own = Guest(url).ask("still there?")
    with (
        instead(names_module.AllowedHosts, "check", lambda self, headers: None),
        served(Echo()) as (url, _),
    ):
        control, _ = _answered(url)
    return {"of": of, "answered": count, "shut_out": int(not own["output"]), "control": control}


def _answered(url: str) -> tuple[int, int]:
    """Requests of a page elsewhere that are answered, or whose answer its browser may read; and how
    many there were.
    """
    port = httpx.URL(url).port
    hosts = (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        f"192.168.1.7:{port}",
        "localhost.evil.example",
        "0",
    )
    kinds: list[dict[str, str]] = [{"host": host, "origin": f"http://{host}"} for host in hosts]
    kinds += [{"host": host} for host in hosts]
    kinds += [
        {"origin": origin}
        for origin in (
            "http://evil.example",
            "null",
            f"https://localhost:{port}",
            "http://localhost:3000",
            "file://",
        )
    ]
    told = []
    with httpx.Client(timeout=30) as http:
        for headers in kinds:
            told += [
                http.get(f"{url}{path}", headers=headers)
                for path in ("", "config", "gradio_api/info", "gradio_api/queue/status")
            ]
            told.append(
                http.post(
                    f"{url}gradio_api/call/look", headers=headers, json={"data": [None, None]}
                )
            )
            told.append(
                http.post(f"{url}gradio_api/upload", headers=headers, files={"files": ("a", b"x")})
            )
            before = {**headers, "access-control-request-method": "POST"}
            told.append(http.request("OPTIONS", f"{url}gradio_api/queue/join", headers=before))
    readable = [
        one for one in told if one.status_code < 400 or "access-control-allow-origin" in one.headers
    ]
    return len(readable), len(told)


PROMISE = (
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 33000000\r\n\r\n"
)


def promises(count: int = 96) -> dict[str, Any]:
    with served(Echo()) as (url, _):
        shut_out = _promised(url, count)

    upload = door_module.RequestGuard._admit_upload

    async def counting(self: Any, scope: Any, *rest: Any) -> Any:
        self.meter.record(
            bodies_module.normalize_address(scope["client"]),
            int(dict(scope["headers"])[b"content-length"]),
        )
        return await upload(self, scope, *rest)

    with instead(door_module.RequestGuard, "_admit_upload", counting), served(Echo()) as (url, _):
        control = _promised(url, count)
    return {"promises": count, "visitors": 20, "shut_out": shut_out, "control": control}


def _promised(url: str, count: int) -> int:
    """Visitors of 20 who cannot upload while so many are promised, half of them from the same
    address.
    """
    with ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(
                socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80))
            )
            one.sendall(PROMISE)
        time.sleep(1)
        shut_out = 0
        for number in range(20):
            headers = {"x-forwarded-for": f"192.0.2.{number}"} if number % 2 else {}
            files = {"files": ("a.png", b"x" * 100_000 + str(number).encode())}
            shut_out += (
                httpx.post(
                    f"{url}gradio_api/upload", files=files, headers=headers, timeout=30
                ).status_code
                != 200
            )
    return shut_out


def memory(count: int = 240) -> dict[str, Any]:
    found = _grown("plain", count, (900_000, 60_000, 1_500))
    control = _grown("generous", count, (900_000,))
    return {**found, "control_growth_mb": control["growth_mb"]}


def _grown(kind: str, count: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """What a server of its own grows by while `count` new sessions of each size join, and nobody
    ever reads what they get.
    """
    with other_process("--serve", kind) as (url, process):
        Guest(url).ask("warm?")
        events = Guest(url).events
        before, refused, taken = resident(process.pid), 0, 0
        with httpx.Client(timeout=60) as http:
            for size in sizes:
                for number in range(count):
                    name = f"{size}-{number}-".ljust(64, "x")
                    question = "w" * size
                    body = {
                        "data": [question, None, 0, 256, None],
                        "fn_index": events["ask"],
                        "session_hash": name,
                    }
                    while (
                        told := http.post(f"{url}gradio_api/queue/join", json=body)
                    ).status_code in (429, 503):
                        time.sleep(0.05)
                    refused += told.status_code != 200
                    taken += told.status_code == 200
            for number in range(count):
                body = {
                    "data": ["x", None, 0, 256, None],
                    "fn_index": events["ask"],
                    "session_hash": f"{number}" * 300_000,
                }
                refused += http.post(f"{url}gradio_api/queue/join", json=body).status_code != 200
        time.sleep(2)
        grown = resident(process.pid) - before
        after = Guest(url).ask("still there?")
    return {
        "joins": taken,
        "refused": refused,
        "growth_mb": round(grown / 1e6, 1),
        "shut_out": int(not after["output"]),
    }


def wiped(count: int = 300, visitors: int = 20) -> dict[str, Any]:
    found = _wiped(count, visitors)
    with instead(
        sessions_module.FairStateHolder,
        "_choose_evicted",
        lambda self, newest: next(iter(self.session_data)),
    ):
        control = _wiped(count, visitors)
    return {"new_sessions": count, "visitors": visitors, "forgotten": found, "control": control}


def _wiped(count: int, visitors: int) -> int:
    """Visitors whose third question is answered without the first two, half of them of the address
    from which so many sessions came.
    """
    with served(Echo()) as (url, _):
        other = {"x-forwarded-for": "192.0.2.1"}
        guests = [
            Guest(url, httpx.Client(timeout=120, headers=other) if number % 2 else None)
            for number in range(visitors)
        ]
        for word in ("first", "second"):
            for guest in guests:
                guest.ask(word)
        clear = guests[0].events["clear"]
        for number in range(count):
            body = {"data": [None], "fn_index": clear, "session_hash": f"s{number}"}
            httpx.post(
                f"{url}gradio_api/run/clear", json=body, headers=other, timeout=30
            ).raise_for_status()
        return sum("first" not in words(guest.ask("third")["output"])[-1] for guest in guests)


def crowded(count: int = 40, visitors: int = 8) -> dict[str, Any]:
    found = _crowded(count, visitors)
    with instead(door_module.RequestGuard, "_reserve_place", lambda *_: None):
        control = _crowded(count, visitors)
    return {**found, "control_busy": control["busy"]}


def _crowded(count: int, visitors: int) -> dict[str, Any]:
    """Visitors who are told that the queue is full while one address joins as often as it can."""
    with served(Echo(before=20)) as (url, _):
        one, guests = Guest(url), [Guest(url) for _ in range(visitors)]
        taken = 0
        for number in range(count):
            one.key = f"s{number}"
            one.http.cookies.clear()
            taken += one.join("ask", ["x", None, 0, 256, None]).status_code == 200
        busy = sum(
            guest.join("ask", ["x", None, 0, 256, None]).status_code != 200 for guest in guests
        )
    return {"joins": count, "taken": taken, "visitors": visitors, "busy": busy}


def held(count: int = 400) -> dict[str, Any]:
    return {**_held("files", count), "control_failed": _held("hogged", count)["failed"]}


def _held(kind: str, count: int) -> dict[str, Any]:
    """Visits that fail while one address holds as many requests open as it can."""
    with other_process("--serve", kind) as (url, _), ExitStack() as stack:
        for number in range(count):
            with suppress(OSError):
                one = stack.enter_context(
                    socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=5)
                )
                path, who = f"/gradio_api/heartbeat/s{number}", "192.0.2.1"
                head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {who}\r\n\r\n"
                one.sendall(head.encode())
        time.sleep(3)
        failed = 0
        for number in range(10):
            try:
                told = httpx.get(
                    f"{url}config", headers={"x-forwarded-for": f"198.18.0.{number}"}, timeout=3
                )
                failed += told.status_code != 200
            except httpx.HTTPError:
                failed += 1
    return {"requests": count, "visits": 10, "failed": failed}


def deadlines(count: int = 200) -> dict[str, Any]:
    found = _dripped(Limits(request_timeout=3), count, 10)
    control = _dripped(Limits(request_timeout=10**6), 20, 10)
    return {**found, "control_open": control["open"]}


_BEGUN = (
    b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", PROMISE,
    b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000\r\n\r\n{",
)  # fmt: skip


def _dripped(limits: Limits, count: int, seconds: float) -> dict[str, Any]:
    shut_out = asked = 0
    with served(Echo(), limits) as (url, _), ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80)))
            for _ in range(count)
        ]
        for number, one in enumerate(slow):
            one.sendall(_BEGUN[number % len(_BEGUN)])
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            for number, one in enumerate(slow):
                if _BEGUN[number % len(_BEGUN)] and not _closed(one):
                    _drip(one)
            asked += 1
            shut_out += not Guest(url).ask("and I?")["output"]
            time.sleep(0.2)
        left = sum(not _closed(one) for one in slow)
    return {"connections": count, "open": left, "asked_meanwhile": asked, "shut_out": shut_out}


def _drip(one: socket.socket) -> None:
    with suppress(OSError):
        one.sendall(b"x")


def _closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        while True:
            if not one.recv(4096):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        one.setblocking(True)


def broken() -> dict[str, Any]:
    with served(Echo()) as (url, _):
        found = _sessions_after(url)
    with _as_it_comes(), served(Echo()) as (url, _):
        control = _sessions_after(url)
    return {**found, "control": control["sessions_broken"], "control_errors": control["errors"]}


@contextmanager
def _as_it_comes() -> Iterator[None]:
    """JSON as Gradio reads it, and whatever it holds."""

    def dumps(value: Any) -> bytes:
        return json.dumps(value).encode()

    with (
        instead(door_module, "parse_json_body", json.loads),
        instead(calls_module.CallValidator, "validate", lambda self, request, *_: request),
        instead(door_module, "check_file_ownership", lambda *_: None),
        instead(door_module.RequestGuard, "_check_session_owner", lambda *_: None),
    ):
        kept = door_module.orjson
        door_module.orjson = type(
            "Json", (), {"dumps": staticmethod(dumps), "loads": staticmethod(json.loads)}
        )
        try:
            yield
        finally:
            door_module.orjson = kept


def _bodies(ask: int, session: str) -> Iterator[bytes]:
    def body(data: str, **more: str) -> bytes:
        rest = {"fn_index": str(ask), "session_hash": json.dumps(session), **more}
        others = ", ".join(f'"{key}": {value}' for key, value in rest.items())
        return f'{{"data": {data}, {others}}}'.encode()

    for text in (
        r'"\ud800"',
        r'"a\udfffb"',
        r'"\u0000"',
        "7",
        "null",
        "{}",
        "true",
        '"' + "x" * 40_000 + '"',
    ):
        yield body(f"[{text}, null, 0, 256, null]")
    for warmth in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "1e308",
        "9" * 5000,
        "9" * 400,
        '"hot"',
        "null",
        "[]",
        "-1",
    ):
        yield body(f"[{chr(34)}x{chr(34)}, null, {warmth}, 256, null]")
    for tokens in ("NaN", "Infinity", "0", "-1", "1e18", '"many"', "null", "1.5e-300"):
        yield body(f"[{chr(34)}x{chr(34)}, null, 0, {tokens}, null]")
    for data in (
        "[]",
        "{}",
        "null",
        "7",
        '["x"]',
        "[" * 5000 + "]" * 5000,
        "[" * 60 + "]" * 60,
        '["x", {"path": []}, 0, 256, null]',
    ):
        yield body(data)
    for number in ("999", "-1", '"0"', "null", "1.5", "true", "9" * 300, "{}"):
        yield body('["x", null, 0, 256, null]', fn_index=number)
    for event in ('{"index": "x"}', "[]", "7", '{"index": -1, "value": null}'):
        yield body('["x", null, 0, 256, null]', event_data=event, trigger_id='"x"')
    yield body('["x", null, 0, 256, null]').decode().encode("utf-16")
    yield body('["x", null, 0, 256, null]')[:-20]
    yield b"\xff\xfe\xfd"
    yield b""


def _sessions_after(url: str) -> dict[str, Any]:
    """Each body in a session of its own, which is then asked something, as another is."""
    ask = Guest(url).events["ask"]
    errors = tracebacks = broken_sessions = tried = shut_out = 0
    for number, _ in enumerate(_bodies(ask, "x")):
        guest = Guest(url)
        guest.http.timeout = httpx.Timeout(15)
        body = list(_bodies(ask, guest.key))[number]
        told = guest.http.post(
            f"{url}gradio_api/queue/join",
            content=body,
            headers={"content-type": "application/json"},
        )
        tried += 1
        errors += told.status_code >= 500
        tracebacks += "Traceback" in told.text
        broken_sessions += not _answers(guest)
        shut_out += not _answers(Guest(url))
    return {
        "tried": tried,
        "errors": errors,
        "tracebacks": tracebacks,
        "sessions_broken": broken_sessions,
        "shut_out": shut_out,
    }


def _answers(guest: Guest) -> bool:
    """The last answer of those that a session gets; what was asked before may be answered first."""
    guest.http.timeout = httpx.Timeout(15)
    for _ in range(3):
        with suppress(httpx.HTTPError, KeyError, IndexError, TypeError):
            told = guest.ask("and now")
            if "and now" in words(told["output"])[-1]:
                return True
    return False


TYPED = (
    "a<b and c>d",
    "1. one\n2. two\n- x\n+ y\n# no heading\n> no quote",
    "snake_case *stars* **bold** `code` ~~gone~~ _em_",
    "<script>alert(1)</script> &lt;b&gt; &amp; &copy;",
    "x:\n    four spaces\n  two",
    "x  y   z",
    "a\n\nb",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "http://a.b/c www.x.com a@b.com <http://q.r>",
    "title\n===\nother\n---",
    "```py\nx=a[1]\n```",
    "2.",
    "\\*not\\* \\\\ $x^2$ $$y$$",
    "![p](http://e.v/a.png) [l](http://x.y)",
    "a ~ b ^ c | d & e",
    "* * *",
    "***",
    "10) ten",
    "~~~\ncode\n~~~",
    "é ü 漢字 😀",
    "- [ ] task",
    "[^1]: note [^1]",
    "term\n: def",
    "<details><summary>x</summary>y</details>",
    "a:b :smile: x",
    "<!-- c -->",
    "<img src=x onerror=1>",
    "if (a < b && c > d) { e[0] = '<f>'; }",
)


def typed() -> dict[str, Any]:
    with served(Echo()) as (url, _):
        differ = _shown(url, TYPED)
    with instead(talk_module, "escape_markdown", lambda text: text), served(Echo()) as (url, _):
        control = _shown(url, TYPED[:8])
    worst = 0.0
    for piece in (
        "[",
        "![",
        "[a](",
        "[]: ",
        "<b and c>d ",
        "``a`",
        "`",
        "1.\n",
        "[\n",
        "~~~\n",
        "&a",
        "://",
        "\\",
        "a<b ",
    ):
        for way in (
            sanitize.escape_markdown,
            sanitize.sanitize_markdown,
            sanitize.unescape_markdown,
        ):
            began = time.thread_time()
            way(piece * (40_000 // len(piece)))
            worst = max(worst, time.thread_time() - began)
    return {
        "texts": len(TYPED),
        "not_as_typed": differ,
        "control": control,
        "seconds_40_kb_worst": round(worst, 3),
    }


def _shown(url: str, some: tuple[str, ...]) -> int:
    """How many of the texts a browser shows otherwise than they were typed."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.goto(url)
        differ = 0
        for number, text in enumerate(some):
            page.locator("#question textarea").fill(text)
            page.locator("#send").click()
            user = page.locator("#conversation [data-testid=user]").nth(number)
            user.wait_for(timeout=20_000, state="attached")
            page.locator("#conversation [data-testid=bot]").nth(number).wait_for(
                timeout=20_000, state="attached"
            )
            differ += user.inner_text().replace("\xa0", " ").strip() != text.strip()
            page.wait_for_timeout(300)
        browser.close()
    return differ


def _together(row: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """In a thread of its own: a browser's loop and a server's do not share one."""

    def run() -> dict[str, Any]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(row).result()

    return run


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "rebinding": rebinding,
    "promises": promises,
    "memory": memory,
    "deadlines": deadlines,
    "broken": broken,
    "typed": _together(typed),
    "wiped": wiped,
    "crowded": crowded,
    "held": held,
}
