"""The page among strangers: what one gets of another, what is left when they go, what they can
break. `python bench/strangers.py`

Each row is a count that must be zero, or a bound, beside a control: the same with the protection
taken away, which must show it.

    crossed       50 visitors, 20 turns each, with words of their own in every question; the control
                  shares one state among them
    model         the same over the real engine: every answer as if its visitor were alone; the
                  control mixes up what is kept of whom
    dropped       100 visitors hang up in the middle of an answer; the control's answers do not hear
                  of it
    bombs         8 pictures and 8 sounds made to burst, at once; the control decodes the pictures
                  as they come
    hostile       200 texts with control tokens, tags, pictures, scripts: forged ids, and a real
                  browser; the control renders them raw
    probes        100 files of the server and addresses asked for; the control has no door
    sessions      short visits of always new visitors (--sessions 10000): memory over the second
                  half, files left; the control keeps them
    overload      five times as many at once as may wait; in the control as many as like may
    rebinding     a site whose name points here, and one that asks across; the control answers to
                  every name
    promises      96 uploads that are promised and not sent: who is shut out; the control counts
                  promises
    memory        joins as large as may be, and larger, of always new sessions that nobody reads:
                  growth; the control takes a megabyte
    deadlines     200 connections that say nothing, or a letter now and then: open in the end, and
                  who is shut out; the control waits
    broken        numbers, texts and nests that are none, one a session: sessions that answer no
                  more; the control hands on what comes
    wiped         300 new sessions of one address: visitors whose conversation is forgotten; the
                  control forgets the one silent longest
    crowded       one address fills the queue: visitors of 8 told that it is full; the control lets
                  it
    held          400 open requests of one address, where there may be 256 files: visits that fail;
                  the control lets it
    typed         questions full of signs, in a real browser: not shown as typed; seconds for 40 KB;
                  the control does not escape

`--only NAME` runs one. Needs the extras app, speech and dev; the browser is Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import httpx
import rude
from crowd import (
    Echo,
    Guest,
    browser,
    family,
    instead,
    named,
    other_process,
    resident,
    served,
    words,
)
from hostile import probes, texts

from phisense.app import Limits, build, launch
from phisense.app import handlers as steps_module
from phisense.app import middleware as door_module
from phisense.app import page as page_module
from phisense.app import state as talk_module
from phisense.app import streaming as pump_module

# crossed ------------------------------------------------------------------------------------------


def visits(
    url: str,
    users: int,
    turns: int,
    questions: Callable[[int, int], str],
    pictures: dict[int, str] | None = None,
) -> list[list[Any]]:
    """What each of `users` got, turn by turn, twelve of them at once and in an order of chance."""
    guests = [Guest(url) for _ in range(users)]
    got: list[list[Any]] = [[] for _ in guests]
    paths = {user: guests[user].upload(Path(file)) for user, file in (pictures or {}).items()}
    for turn in range(turns):
        order = random.Random(turn).sample(range(users), users)
        with ThreadPoolExecutor(12) as pool:
            asked = [
                pool.submit(guests[user].ask, questions(user, turn), paths.get(user))
                for user in order
            ]
            for user, told in zip(order, asked, strict=True):
                got[user].append(told.result())
    return got


def canary(user: int) -> str:
    return f"canary{user:03}x"


def crossings(url: str, users: int, turns: int) -> int:
    """Turns whose answer, or anything else received with it, holds another's word, or lacks one's
    own.
    """
    got = visits(url, users, turns, lambda user, turn: f"{canary(user)} asks {turn}")
    bad = 0
    for user, mine in enumerate(got):
        for turn, told in enumerate(mine):
            others = any(canary(other) in told["text"] for other in range(users) if other != user)
            own = (
                told["output"] is not None
                and words(told["output"])[-1].count(canary(user)) == turn + 1
            )
            bad += others or not own
    return bad


def crossed(users: int = 50, turns: int = 20) -> dict[str, Any]:
    with served(Echo()) as (url, _):
        count = crossings(url, users, turns)
    with served(Echo()) as (url, room):
        one = room.create_session(None)
        with instead(steps_module.EventHandlers, "_user_session", lambda self, *_: one):
            control = crossings(url, 6, 3)
    return {"turns": users * turns, "crossed": count, "control": control}


def model(folder: Path, users: int = 50, turns: int = 20) -> dict[str, Any]:
    """Answers over the real engine, each beside what its visitor gets alone in a session of its
    own.
    """
    from phisense.chat import ChatSession, Sampling
    from phisense.chat.kv_cache import SessionCache
    from phisense.chat.torch_engine import TorchEngine
    from phisense.vision.image_io import open_image

    engine = TorchEngine.open(folder, "cpu")
    images = sorted((folder.parents[1] / "data" / "images").glob("heldout-*.jpg"))[:users]
    ask = (
        "Describe the picture.",
        "How many things are there?",
        "Which colour does it have?",
        "What is in the top left corner?",
    )

    def question(user: int, turn: int) -> str:
        return (
            f"{ask[(user + turn) % len(ask)]} {canary(user)}"
            if turn % 5 == 0
            else ask[(user + turn) % len(ask)]
        )

    alone: list[list[str]] = []
    for user in range(users):
        session = ChatSession(engine, Sampling(256))
        session.set_image(open_image(images[user]))
        alone.append(["".join(session.ask(question(user, turn))).strip() for turn in range(turns)])
    pictures = {user: str(image) for user, image in enumerate(images)}

    def different(some: int, most: int) -> int:
        with served(engine) as (url, _):
            got = visits(url, some, most, question, {u: pictures[u] for u in range(some)})
        told = [
            [words(one["output"])[-1].replace("\\", "") if one["output"] else None for one in mine]
            for mine in got
        ]
        return sum(
            a != talk_module.sanitize_markdown(b).replace("\\", "")
            for mine, own in zip(told, alone, strict=False)
            for a, b in zip(mine, own, strict=False)
        )

    count = different(users, turns)
    take = SessionCache.pop

    def anyones(self: Any, owner: object) -> Any:
        """What somebody's last turn left."""
        with self._lock:
            key = next(reversed(self._states), None)
            return None if key is None else self._states.pop(key)[1]

    from phisense.chat import torch_engine

    with (
        instead(SessionCache, "pop", anyones),
        instead(torch_engine, "common_prefix_length", lambda new, kept: min(len(kept), len(new))),
    ):
        control = different(6, 4)
    assert SessionCache.pop is take
    return {"turns": users * turns, "different": count, "control": control}


# dropped ------------------------------------------------------------------------------------------


def drops(count: int, before: float) -> tuple[int, list[float], bool]:
    """Answers still made a second after all hung up, seconds until none was, and whether the next
    visitor is served.
    """
    with served(Echo(pause=0.05, before=before, repeat=400)) as (url, room):
        late, times = 0, []
        for number in range(count):
            Guest(url).drop(f"visitor {number}", after=3 if before else 8)
            began = time.monotonic()
            while room.active_streams and time.monotonic() - began < 1.0:
                time.sleep(0.01)
            late += bool(room.active_streams)
            times.append(time.monotonic() - began)
            if room.active_streams and count > 20:
                break
        for pump in list(room.active_streams):
            pump.stop.set()
        room.engine.pause, room.engine.before, room.engine.repeat = 0.0, 0.0, 1
        told = Guest(url).ask("and now?")
    return late, times, bool(told["output"]) and "and now?" in words(told["output"])[-1]


def dropped(count: int = 100) -> dict[str, Any]:
    late, times, next_served = drops(count * 4 // 5, 0.0)
    late_reading, times_reading, also_served = drops(count // 5, 30.0)  # before the first word
    with instead(pump_module.BackgroundStream, "__iter__", _deaf):
        control, _, _ = drops(1, 0.0)
    times += times_reading
    return {
        "dropped": count,
        "live_after_1s": late + late_reading,
        "seconds_median": round(statistics.median(times), 3),
        "seconds_worst": round(max(times), 3),
        "next_served": next_served and also_served,
        "control": control,
    }


def _deaf(self: Any) -> Iterator[str]:
    while (piece := self._ready.get()) is not None:
        yield piece


# bombs --------------------------------------------------------------------------------------------


def picture_bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that unpacks to `side` squared pixels."""
    import struct

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, data = zlib.compressobj(9), io.BytesIO()
    row = b"\0" * (side // 8 + 1)
    for _ in range(side):
        data.write(packer.compress(row))
    data.write(packer.flush())
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data.getvalue())
        + chunk(b"IEND", b"")
    )


def sound_bombs(folder: Path) -> list[Path]:
    """Eight recordings of hours of silence, in four formats."""
    import av
    import numpy as np

    made = []
    for name, codec, hours in (
        ("a.flac", "flac", 3),
        ("b.ogg", "libopus", 2),
        ("c.m4a", "aac", 1),
        ("d.mp3", "libmp3lame", 1),
    ):
        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                codec, rate=48_000 if codec == "libopus" else 16_000, layout="mono"
            )
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, stream.rate * 10), np.int16), format="s16", layout="mono"
            )
            frame.sample_rate = stream.rate
            resampler = av.AudioResampler(
                stream.codec_context.format,
                "mono",
                stream.rate,
                stream.codec_context.frame_size or None,
            )
            for _ in range(hours * 360):
                for piece in resampler.resample(frame):
                    container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        copy = folder / f"copy-{name}"
        copy.write_bytes(path.read_bytes())
        made += [path, copy]
    return made


def bombs() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as spare:
        sounds = sound_bombs(Path(spare))
        # 169 million pixels: as many as Pillow by itself lets through
        picture = picture_bomb(13_000)
        found = _burst(sounds, picture, "bombs")
        control = _burst([], picture, "undefended")
    return {**found, "picture_bytes": len(picture), "control_growth_mb": control["growth_mb"]}


def _burst(sounds: list[Path], picture: bytes, kind: str) -> dict[str, Any]:
    """What eight of each at once do to a server of its own."""
    with other_process("--serve", kind) as (url, process):
        quiet = resident(process.pid)
        Guest(url).ask("warm?")
        guests = [Guest(url) for _ in range(16 if sounds else 8)]
        given = [(g, "look", g.upload((f"p{i}.png", picture))) for i, g in enumerate(guests[:8])]
        given += [
            (g, "listen", g.upload(sound)) for g, sound in zip(guests[8:], sounds, strict=True)
        ]
        quiet = resident(process.pid)
        peak, whole, over = [quiet], [family(process.pid)], threading.Event()

        def watch() -> None:
            while not over.wait(0.01):
                peak.append(resident(process.pid))
                whole.append(family(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(16) as pool:
            told = list(
                pool.map(
                    lambda one: one[0].do(
                        one[1], [named(one[2]), None] if one[1] == "look" else [named(one[2]), ""]
                    ),
                    given,
                )
            )
        over.set()
        watcher.join()
    return {
        "growth_mb": round((max(peak) - quiet) / 1e6, 1),
        "family_growth_mb": round((max(whole) - whole[0]) / 1e6, 1),
        "refused_with_a_sentence": sum(bool(one["warnings"]) for one in told),
        "of": len(told),
        "seconds_pictures_worst": round(max(one["seconds"] for one in told[:8]), 2),
        "seconds_sounds_worst": round(max((one["seconds"] for one in told[8:]), default=0.0), 2),
        "sentence": next((one["warnings"][0] for one in told if one["warnings"]), None),
    }


def serve(kind: str) -> None:
    """`bombs`: with ears; `undefended`: pictures as Gradio decodes them; `sessions`: uploads and
    visitors live for seconds; `generous`: requests of a megabyte; `files`: 256 files may be open;
    `hogged`: likewise, and one address may open as many as it likes.
    """
    from phisense.practice.spoken import RECORDINGS_FOLDER
    from phisense.speech import Transcriber

    # `hoarding`: an hour
    limits = {
        "sessions": Limits(retention_seconds=30),
        "generous": Limits(max_body_bytes=2**20),
    }.get(kind, Limits())
    if kind in ("files", "hogged"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    if kind == "hogged":
        door_module.has_share = lambda *_: True
    if kind == "undefended":
        page_module._pass_paths_only = lambda *_: None
        page_module.gr.Image = _decoding(page_module.gr.Image)
    page = build(
        Echo(),
        Transcriber(RECORDINGS_FOLDER.parent / "speech") if kind == "bombs" else None,
        limits=limits,
    )
    _, url, _ = launch(page, port=0, block=False)
    print(f"URL {url}", flush=True)
    threading.Event().wait()


def _decoding(image: Any) -> Any:
    return lambda **options: image(**{**options, "type": "pil", "image_mode": "RGB"})


# hostile ------------------------------------------------------------------------------------------


def hostile(count: int = 200) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from phisense.chat_tokenizer import prepare_tokenizer
    from phisense.practice.spoken import RECORDINGS_FOLDER
    from phisense.prompt import Prompt

    tokenizer = AutoTokenizer.from_pretrained(RECORDINGS_FOLDER.parent / "language")
    prepare_tokenizer(tokenizer, 32_064)
    prompt = Prompt(tokenizer)
    some = texts(count)

    def forged(text: str) -> int:
        from phisense.conversations import Message

        structure = len(prompt.render_for_completion([Message("user", "x")], [])) - len(
            tokenizer("x", add_special_tokens=False)["input_ids"]
        )
        special = {
            i
            for i, t in tokenizer.added_tokens_decoder.items()
            if t.special or t.content.startswith("<|")
        } | {prompt.image_id}
        ids = prompt.render_for_completion(
            [Message("user", prompt.escape_special_tokens(text))], []
        )
        return sum(i in special for i in ids) - structure

    control_ids = sum(forged(text) for text in some)
    with instead(Prompt, "escape_special_tokens", lambda self, text, **_: text):
        control = sum(_raw(prompt, text) for text in some)
    safe = browse(some)
    with (
        instead(talk_module, "sanitize_markdown", lambda text: text),
        instead(talk_module, "escape_markdown", lambda text: text),
        _raw_page(),
    ):
        raw = browse(some[: count // 2])
    return {
        "texts": count,
        "control_ids": control_ids,
        "control_ids_without": control,
        "scripts_run": safe["scripts"],
        "outbound": safe["outbound"],
        "outbound_without": raw["outbound"],
        "scripts_without": raw["scripts"],
    }


def _raw(prompt: Any, text: str) -> int:
    ids = prompt.tokenizer(text, add_special_tokens=False)["input_ids"]
    return sum(i in {*prompt.stop_ids, prompt.image_id} for i in ids)


@contextmanager
def _raw_page() -> Iterator[None]:
    """The page without its policy, and Gradio without its sanitising."""
    from phisense.app import guarded_response

    chatbot = page_module.gr.Chatbot
    with (
        instead(guarded_response, "SECURITY_HEADERS", ()),
        instead(page_module.gr, "Chatbot", lambda **o: chatbot(**{**o, "sanitize_html": False})),
    ):
        yield


def browse(some: list[str]) -> dict[str, int]:
    """The texts, ten at a time, as questions and as answers in a real browser: scripts that ran,
    requests to elsewhere.
    """
    import shutil

    from playwright.sync_api import Error, sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    outbound: list[str] = []
    scripts = 0
    with served(Echo()) as (url, _), sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for start in range(0, len(some), 10):
            page = browser.new_context().new_page()
            page.on(
                "request",
                lambda request: (
                    outbound.append(request.url) if not _ours(request.url, url) else None
                ),
            )
            page.on("dialog", lambda dialog: dialog.dismiss())
            page.goto(url)
            page.locator("#question textarea").wait_for()
            page.evaluate("window.pwned = 0")
            page.locator("#question textarea").fill("\n\n".join(some[start : start + 10])[:1990])
            page.locator("#send").click()
            try:
                page.locator("#conversation [data-testid=bot]").first.wait_for(timeout=20_000)
                page.wait_for_timeout(600)
                scripts += int(page.evaluate("window.pwned"))
            except (Error, TypeError):  # there is no page any more: it was led away
                scripts += 1
            page.context.close()
        browser.close()
    return {"scripts": scripts, "outbound": len(outbound)}


def _ours(asked: str, url: str) -> bool:
    return asked.startswith((url.rstrip("/"), "data:", "blob:"))


# probes -------------------------------------------------------------------------------------------


def probes_met(url: str, secret: Path, listener: Any) -> dict[str, int]:
    """Files of the server and addresses, asked for in every way there is."""
    before, read, answered = len(listener.hits), 0, 0
    for number, (way, what) in enumerate(probes(100, secret, listener.server_port)):
        guest = Guest(url)
        if way == "get":
            told = guest.http.get(f"{guest.url}{what}", follow_redirects=False)
            text = told.text
        else:
            told_dict = guest.do(
                way,
                [
                    {"path": what, "url": what, "meta": {"_type": "gradio.FileData"}},
                    None if way == "look" else "",
                ],
            )
            text, answered = told_dict["text"], answered + 1
        read += "TOPSECRET" in text or "root:x:0" in text
        del number
    time.sleep(0.5)
    return {"outbound": len(listener.hits) - before, "read": read, "of": 100}


def probe() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=Path.home()) as spare, listening() as listener:
        secret = Path(spare) / "secret.png"
        secret.write_bytes(b"TOPSECRET")
        with served(Echo()) as (url, _):
            found = probes_met(url, secret, listener)
        with (
            instead(page_module, "_pass_paths_only", lambda *_: None),
            instead(page_module, "RequestGuard", lambda app, *_: app),
        ):
            from gradio import processing_utils

            with (
                instead(processing_utils, "async_ssrf_protected_download", _plain_download),
                served(Echo()) as (url, _),
            ):
                control = probes_met(url, secret, listener)
    return {**found, "control_outbound": control["outbound"]}


async def _plain_download(url: str, cache_dir: str) -> str:
    """Gradio's own guard lets no private address through, where this program listens: for the
    control it is taken away, too.
    """
    path = Path(cache_dir) / "fetched"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(httpx.get(url).content)
    return str(path)


@contextmanager
def listening() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.hits.append(self.path)  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TOPSECRET")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.hits = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()


# sessions, overload -------------------------------------------------------------------------------


def sessions(count: int) -> dict[str, Any]:
    found = _visited(count, "sessions")
    return {**found, "control_files_left": _visited(100, "hoarding")["files_left"]}


def _visited(count: int, kind: str) -> dict[str, Any]:
    from PIL import Image

    held = io.BytesIO()
    Image.new("RGB", (336, 336), "red").save(held, "PNG")
    with tempfile.TemporaryDirectory() as spare:
        os.environ["GRADIO_TEMP_DIR"] = spare
        with other_process("--serve", kind) as (url, process):
            memory: list[int] = []
            local = threading.local()

            def visit(number: int) -> None:
                if not hasattr(local, "http"):
                    local.http = browser()
                    local.events = Guest(url, local.http).events
                guest = Guest.__new__(Guest)
                guest.url = url.rstrip("/")
                guest.key = f"s{number:08}"
                guest.http = local.http
                guest.events = local.events
                each = held.getvalue() + str(number).encode()  # or all would be one file
                guest.ask("hello", guest.upload(("a.png", each)) if number % 10 == 0 else None)
                if number % max(1, count // 200) == 0:
                    memory.append(resident(process.pid))

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(visit, range(count)))
            time.sleep(70)  # twice the half minute after which a server of this kind forgets
            left = [p for p in Path(spare).rglob("*") if p.is_file()]
        del os.environ["GRADIO_TEMP_DIR"]
    half = memory[len(memory) // 2 :]
    middle = statistics.median(half)
    return {
        "sessions": count,
        "rss_mb": round(middle / 1e6),
        "first_quarter_mb": round(statistics.median(memory[: len(memory) // 4]) / 1e6),
        "second_half_spread": round(max(abs(one / middle - 1) for one in half), 4),
        "files_left": len(left),
    }


def overload() -> dict[str, Any]:
    return {
        **_overloaded(Limits()),
        "control_waiting": _overloaded(Limits(queue_size=10_000))["served"],
    }


def _overloaded(limits: Limits) -> dict[str, Any]:
    crowd = 5 * (Limits().queue_size + 1)
    with served(Echo(pause=0.05), limits) as (url, _):
        guests = [Guest(url) for _ in range(crowd)]
        with ThreadPoolExecutor(crowd) as pool:
            told = list(pool.map(lambda guest: guest.ask("one two three four"), guests))
        after = Guest(url).ask("still there?")
    busy = [one for one in told if one["status"] != 200]
    served_well = [one for one in told if one["output"] and "four" in words(one["output"])[-1]]
    return {
        "at_once": crowd,
        "may_wait": limits.queue_size,
        "served": len(served_well),
        "told_busy": len(busy),
        "neither": crowd - len(served_well) - len(busy),
        "sentence": busy[0]["text"] if busy else None,
        "still_serves": bool(after["output"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="a row; may be repeated")
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument(
        "--model",
        type=Path,
        help="a practice model folder, as phisense demo makes it, for the row `model`",
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "crossed": crossed,
        "dropped": dropped,
        "bombs": bombs,
        "hostile": hostile,
        "probes": probe,
        "overload": overload,
        **rude.ROWS,
        "sessions": lambda: sessions(asked.sessions),
    }
    if asked.model:
        rows["model"] = lambda: model(asked.model)
    found = {}
    for name, row in rows.items():
        if not asked.only or name in asked.only:
            began = time.monotonic()
            found[name] = row()
            print(
                f"{name} ({time.monotonic() - began:.0f} s): "
                + ", ".join(f"{k} {v}" for k, v in found[name].items()),
                flush=True,
            )
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
