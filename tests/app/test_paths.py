"""Every way in × every place of a request × every kind of path that its sender never uploaded:
nothing of it is opened, measured or shown.

The page runs in this process, so that what it opens and asks the file system for is seen here.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from phisense.app import build, launch
from phisense.app.uploads import Uploads

from ..chat.test_session import Echo

pytestmark = pytest.mark.slow

META = {"_type": "gradio.FileData"}
SIDE = 37  # of the secret pictures, and of no other


class Looker(Echo):
    """Tells where it looks, so that the page hands pictures back."""

    def attention_map(self, messages: Any, seen: Any) -> Any:
        return [np.ones((2, 2))]


class Ears:
    """Opens whatever it is given."""

    multilingual = True

    def transcribe(self, sound: Path, name: str = "", language: str | None = None) -> Any:
        raise ValueError(f"{len(sound.read_bytes())} bytes are no sound")


class Watch:
    """What the file system was asked for while it watched: paths that hold one of `words`."""

    def __init__(self) -> None:
        self.words: tuple[str, ...] = ()
        self.opened: list[str] = []
        self.measured: list[str] = []
        self.on = False

    def hook(self, event: str, given: tuple[Any, ...]) -> None:
        if (
            self.on
            and event
            in (
                "open",
                "os.listdir",
                "os.scandir",
                "shutil.copyfile",
                "os.rename",
                "os.link",
            )
            and self._ours(given[0])
        ):
            self.opened.append(str(given[0]))

    def asking(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(path: Any, *args: Any, **more: Any) -> Any:
            if self.on and self._ours(path):
                self.measured.append(str(path))
            return real(path, *args, **more)

        return ask

    def _ours(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        told = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
        return any(word in told for word in self.words)


WATCH = Watch()
sys.addaudithook(WATCH.hook)  # it cannot be taken away again; it sleeps


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[str, Any]]:
    made = build(Looker(), Ears())  # type: ignore[arg-type]
    _, url, _ = launch(made, port=0, block=False)
    yield url.rstrip("/"), made
    made.close()


@pytest.mark.parametrize(("engine", "shown"), [(Looker, True), (Echo, False)])
def test_the_attention_button_is_there_only_if_the_engine_has_the_map(
    engine: type[Echo], shown: bool
) -> None:
    made = build(engine())  # type: ignore[arg-type]
    (button,) = [block for block in made.blocks.values() if block.elem_id == "where"]
    assert button.visible is shown
    made.close()


def test_another_worker_uploads_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A page that is closed deletes its uploads, whose paths follow from their contents: in a
    folder for all it would delete those of the page in another worker.
    """
    assert Path(get_upload_folder()).is_relative_to(tmp_path_factory.getbasetemp())


def a_picture(colour: str = "red") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def never(
    page: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Paths by kind, none of them uploaded by the visitor who names it."""
    url, _ = page
    here = tmp_path_factory.mktemp("canary")
    folder = Path(get_upload_folder())
    picture = here / "canary.png"
    picture.write_bytes(a_picture())
    (here / "canary.wav").write_bytes(b"RIFF0000WAVE")
    os.mkfifo(here / "canary.fifo")
    inside = folder / "canary-folder"
    inside.mkdir(parents=True, exist_ok=True)
    planted = {
        name: inside / f"canary-{name}"
        for name in ("planted.png", "link.png", "linked", "pipe", "huge.png", "device")
    }
    planted["planted.png"].write_bytes(a_picture())
    planted["huge.png"].write_bytes(a_picture())
    os.truncate(planted["huge.png"], 2**35)
    os.mkfifo(planted["pipe"])
    for name, target in (("link.png", picture), ("linked", here), ("device", Path("/dev/zero"))):
        planted[name].symlink_to(target)
    other = httpx.post(
        f"{url}/gradio_api/upload", files={"files": ("canary.png", a_picture("blue"))}
    ).json()[0]
    found: dict[str, Any] = {
        "picture": str(picture),
        "sound": str(here / "canary.wav"),
        "fifo": str(here / "canary.fifo"),
        "folder": str(here),
        "environ": "/proc/self/environ",
        "descriptor": "/proc/self/fd/0",
        "memory": "/proc/self/mem",
        "zero": "/dev/zero",
        "stdin": "/dev/stdin",
        "random": "/dev/urandom",
        "terminal": "/dev/tty",
        "passwords": "/etc/passwd",
        "nothing": str(here / "canary-that-is-not.png"),
        "other visitor's": other,
        "other visitor's, dotted": str(
            Path(other).parent / ".." / Path(other).parent.name / Path(other).name
        ),
        "other visitor's, doubled": other.replace("/", "//"),
        "other visitor's, relative": os.path.relpath(other),
        "upload folder": str(folder),
        **{f"planted {name}": str(path) for name, path in planted.items()},
        "through a link": str(planted["linked"] / "canary.png"),
        "relative": os.path.relpath(picture),
        "dots": f"{folder}/../..{picture}",
        "home": "~/canary.png",
        "http": "http://127.0.0.1:1/canary.png",
        "schemeless": "//127.0.0.1:1/canary.png",
        "file": f"file://{picture}",
        "data": f"data:image/png;base64,{base64.b64encode(a_picture()).decode()}",
        "percent": quote(str(picture), safe=""),
        "percent twice": quote(quote(str(picture), safe=""), safe=""),
        "null": f"{picture}\0.png",
        "null before": f"\0{picture}",
        "spaces": f" {picture} ",
        "capitals": str(picture).upper(),
        "backslashes": str(picture).replace("/", "\\"),
        "huge": "/" + "canary" * 9000,
        "empty": "",
        "slash": "/",
        "dot": ".",
        "none": None,
        "number": 0,
        "descriptor number": 3,
        "true": True,
        "list": [str(picture)],
        "object": {"path": str(picture)},
        "surrogate": "/tmp/\ud800canary.png",
    }
    yield found
    for path in planted.values():
        path.unlink()
    inside.rmdir()


# or rather not: their answers must be the same
TOLD_APART = ("picture", "nothing", "other visitor's")
SHAPES: dict[str, Callable[[Any], Any]] = {
    "as Gradio does": lambda path: {"path": path, "meta": META},
    "without meta": lambda path: {"path": path},
    "with another meta": lambda path: {"path": path, "meta": {"_type": "gradio.Other"}},
    "with an address": lambda path: {"path": path, "url": path, "meta": META},
    "as a stream": lambda path: {"path": path, "is_stream": True, "meta": META},
    "as a drawing": lambda path: {
        "path": path,
        "orig_name": "a.svg",
        "size": 1,
        "mime_type": "image/png",
        "meta": META,
    },
    "by address alone": lambda path: {"url": path, "meta": META},
    "nested": lambda path: {"image": [{"video": {"path": path, "meta": META}}]},
    "bare": lambda path: path,
    "in a list": lambda path: [{"path": path, "meta": META}],
}


def requests_of(
    page: Any, path: Any, shape: Callable[[Any], Any], whole: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A route and a body for each function of the page and each of its inputs (or those alone that
    take files), and for whatever else Gradio lets a body hold.
    """
    named = shape(path)
    once = {function.name: number for number, function in page.fns.items()}
    for number in once.values():
        function = page.fns[number]
        usual = [_usual(block) for block in function.inputs]
        for place, block in enumerate(function.inputs):
            if not whole and type(block).__name__ not in ("Image", "Audio"):
                continue
            if (
                named is None
                or isinstance(named, int)
                or (type(block).__name__ in ("Textbox", "Dropdown") and isinstance(named, str))
            ):
                continue  # a value like any other
            data = [*usual[:place], named, *usual[place + 1 :]]
            body = {"data": data, "fn_index": number, "session_hash": "stranger"}
            yield "queue/join", body
            yield "run/predict", body
            if function.api_name:
                for way in ("call", "run", "api", "call/v2"):
                    yield f"{way}/{function.api_name}", {"data": data}
                yield (
                    f"call/v2/{function.api_name}",
                    {block.elem_id or "x": named for block in function.inputs},
                )
        event = {"index": 0, "value": [named, {"path": path}], "previous_value": named}
        yield (
            "queue/join",
            {"data": usual, "fn_index": number, "session_hash": "stranger", "event_data": event},
        )
    wrapped = {
        "data": named,
        "component_id": 0,
        "session_hash": "stranger",
        "fn_name": "x",
        "event_id": "x",
        "fn_index": 0,
    }
    quiet = (
        ("cancel", "reset") if '"path"' in json.dumps(named) or '"url"' in json.dumps(named) else ()
    )  # they read nothing else
    for route in (
        *quiet,
        "component_server",
        "stream/x",
        "stream/x/close",
        "process_recording",
        "vibe-edit",
        "upload",
        "login",
    ):
        yield route, wrapped


def _usual(block: Any) -> Any:
    kind = type(block).__name__
    return {
        "Textbox": "What is it?",
        "Slider": getattr(block, "minimum", 0),
        "Checkbox": True,
        "Dataset": 0,
    }.get(kind)


def body_of(value: Any) -> bytes:
    return json.dumps(value).encode()  # lone surrogates stay what they are


def settled(made: Any) -> None:
    for _ in range(400):
        if not len(made._queue) and not made._queue.get_active_worker_count():
            return
        time.sleep(0.02)
    raise AssertionError("the model is still held")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    WATCH.words = ("canary", "/proc/self/", "/dev/", "/etc/passwd")
    WATCH.opened = []
    WATCH.measured = []
    for name in ("stat", "lstat", "readlink"):
        monkeypatch.setattr(os, name, WATCH.asking(getattr(os, name)))
    WATCH.on = True
    yield WATCH
    WATCH.on = False


def test_no_request_reaches_a_file_that_was_not_uploaded(
    page: tuple[str, Any], never: dict[str, Any], watched: Watch
) -> None:
    url, made = page
    answers: dict[tuple[str, int], set[tuple[int, bytes]]] = {}
    tried = 0
    with httpx.Client(timeout=30) as http:
        http.get(url)
        for kind, path in never.items():
            for name, shape in SHAPES.items():
                if kind not in TOLD_APART and name not in (
                    "as Gradio does",
                    "without meta",
                    "bare",
                ):
                    continue
                for number, (route, body) in enumerate(
                    requests_of(made, path, shape, kind in TOLD_APART)
                ):
                    told = http.post(
                        f"{url}/gradio_api/{route}",
                        content=body_of(body),
                        headers={"content-type": "application/json"},
                    )
                    tried += 1
                    assert 400 <= told.status_code < 500, (kind, name, route, told.text)
                    if kind in TOLD_APART:
                        answers.setdefault((name, number), set()).add(
                            (told.status_code, told.content)
                        )
    settled(made)
    assert tried > 4_000
    assert watched.opened == []
    assert watched.measured == []
    # what is there cannot be told from what is not
    assert all(len(same) == 1 for same in answers.values())


def test_no_route_shows_a_file_that_was_not_uploaded(
    page: tuple[str, Any], never: dict[str, Any], watched: Watch
) -> None:
    url, _ = page
    told: dict[str, set[tuple[int, bytes]]] = {}
    routes = (
        "gradio_api/file=",
        "file=",
        "gradio_api/file/",
        "file/",
        "gradio_api/proxy=",
        "static/",
        "assets/",
        "svelte/",
    )
    with httpx.Client(timeout=30) as http:
        http.get(url)
        for path in never.values():
            if not isinstance(path, str) or len(path) > 2000 or "\ud800" in path:
                continue
            for route in routes:
                for way in ("GET", "HEAD"):
                    for written in {
                        quote(path, safe="/"),
                        quote(path, safe=""),
                        quote(path, safe="/:~"),
                    }:
                        given = http.request(way, f"{url}/{route}{written}")
                        assert 400 <= given.status_code < 500, (path, route)
                        told.setdefault(f"{way} {route}", set()).add(
                            (given.status_code, given.content)
                        )
    assert watched.opened == []
    # its own folders, joined with the path
    assert [path for path in watched.measured if "/site-packages/gradio/" not in path] == []
    assert all(len(told[f"{way} gradio_api/file="]) == 1 for way in ("GET", "HEAD"))


def visit(
    url: str, http: httpx.Client, made: Any, session: str, path: Any, shape: str = "as Gradio does"
) -> dict[str, Any]:
    """Looks at a picture, asks, and has shown where it looked; `shown` is the side of the picture
    that came back.
    """
    calls = {function.name: number for number, function in made.fns.items()}
    named = None if path is None else SHAPES[shape](path)
    out: dict[str, Any] = {"text": "", "shown": None}
    for name, data in (
        ("ask", ["What is it?", named, 0, 64, None]),
        ("show_attention", [None]),
        ("transcribe", [named, ""]),
    ):
        number = calls[name]
        body = {"data": data, "fn_index": number, "session_hash": session}
        joined = http.post(f"{url}/gradio_api/queue/join", json=body)
        out["text"] += joined.text
        if joined.status_code != 200:
            continue
        with http.stream(
            "GET", f"{url}/gradio_api/queue/data", params={"session_hash": session}
        ) as stream:
            told = [
                json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")
            ]
        out["text"] += json.dumps(told)
        last = next(message for message in told if message["msg"] == "process_completed")
        value = last["output"].get("data", [None])[0]
        given = value.get("value") if isinstance(value, dict) else None
        if name == "show_attention" and isinstance(given, dict):
            given = http.get(f"{url}/gradio_api/file={quote(value['value']['path'])}")
            out["shown"] = (
                Image.open(io.BytesIO(given.content)).size[0] if given.status_code == 200 else None
            )
            out["given"] = value["value"]["path"]
    return out


def test_ones_own_upload_is_opened_and_shown_to_oneself_alone(page: tuple[str, Any]) -> None:
    url, made = page
    with httpx.Client(timeout=30) as mine, httpx.Client(timeout=30) as theirs:
        theirs.get(url)
        path = mine.post(
            f"{url}/gradio_api/upload", files={"files": ("a.png", a_picture("green"))}
        ).json()[0]
        found = visit(url, mine, made, "mine", path)
        assert found["shown"] == SIDE
        assert mine.get(f"{url}/gradio_api/file={path}").status_code == 200
        for one in (path, found["given"]):
            assert theirs.get(f"{url}/gradio_api/file={one}").status_code == 404
            assert visit(url, theirs, made, "theirs", one)["shown"] is None
        # Nor does another's session help, once its owner has used it.
        told = theirs.post(
            f"{url}/gradio_api/queue/join",
            json={"data": [None], "fn_index": 0, "session_hash": "mine"},
        )
        assert told.status_code in (400, 403)
        assert (
            theirs.get(f"{url}/gradio_api/queue/data", params={"session_hash": "mine"}).status_code
            == 403
        )
        again = theirs.post(
            f"{url}/gradio_api/upload", files={"files": ("a.png", a_picture("green"))}
        ).json()[0]
        # whoever has the same file has uploaded it
        assert visit(url, theirs, made, "theirs", again)["shown"] == SIDE


def test_control_without_the_guard_they_are_opened_measured_and_shown(
    page: tuple[str, Any], never: dict[str, Any], watched: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same visit with a ledger that holds everything and a Gradio that takes what it is told,
    as it does without `meta`.
    """
    from gradio import processing_utils

    url, made = page
    monkeypatch.setattr(Uploads, "owns", lambda self, owner, path: True)
    monkeypatch.setattr(Uploads, "resolve", lambda self, owner, path: Path(path))
    monkeypatch.setattr(processing_utils, "_check_allowed", lambda *_: None)
    seen = {}
    with httpx.Client(timeout=30) as http:
        http.get(url)
        for kind in (
            "picture",
            "planted link.png",
            "planted planted.png",
            "other visitor's",
            "environ",
            "sound",
        ):
            WATCH.opened, WATCH.measured = [], []
            found = visit(url, http, made, f"control-{len(seen)}", never[kind])
            seen[kind] = (found["shown"], bool(WATCH.opened), bool(WATCH.measured))
    assert [
        seen[kind][0]
        for kind in ("picture", "planted link.png", "planted planted.png", "other visitor's")
    ] == [SIDE] * 4
    assert all(opened and measured for _, opened, measured in seen.values()), seen


@pytest.mark.parametrize(
    "kind", ["link", "linked folder", "pipe", "device", "huge", "gone", "folder"]
)
def test_the_opener_alone_refuses_what_became_of_an_upload(tmp_path: Path, kind: str) -> None:
    """Should one be exchanged behind the page's back; the control is the file itself."""
    from phisense.errors import UsageError

    folder, outside = tmp_path / "uploads", tmp_path / "outside"
    (folder / "one").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.png").write_bytes(a_picture())
    path = folder / "one" / "a.png"
    uploads = Uploads(folder, 2**20, 3600)
    uploads.add("me", str(path))
    path.write_bytes(a_picture())
    assert uploads.resolve("me", str(path)) == path
    path.unlink()
    if kind == "link":
        path.symlink_to(outside / "a.png")
    elif kind == "linked folder":
        path.parent.rmdir()
        path.parent.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        path.write_bytes(b"")
        os.truncate(path, 2**30)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UsageError, match="that is no upload of yours"):
        uploads.resolve("me", str(path))


def test_what_nobody_names_for_an_hour_is_forgotten(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 2**20, 0.2)
    uploads.add("me", "/a")
    foreign = tmp_path / "tmp123"
    foreign.write_bytes(b"another program's, of long ago")
    uploads.expire()
    assert uploads.owns("me", "/a")
    os.utime(foreign, (0, 0))
    time.sleep(0.3)
    uploads.expire()
    assert not uploads.owns("me", "/a")
    assert foreign.exists()


def test_of_what_was_made_for_a_visitor_the_last_is_kept(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 2**20, 3600)
    made = [
        uploads.save_image("me", Image.new("RGB", (4, 4), (number, 0, 0))) for number in range(5)
    ]
    other = uploads.save_image("another", Image.new("RGB", (4, 4)))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [made[-1], other]
    )
    assert len(set(made)) == 5
    assert not any(uploads.owns("me", str(path)) for path in made[:-1])
    assert uploads.resolve("me", str(made[-1])) == made[-1]
    assert Image.open(made[-1]).getpixel((0, 0)) == (4, 0, 0)
    made[-1].unlink()  # Gradio's hourly deletion
    assert uploads.save_image("me", Image.new("RGB", (4, 4))).exists()
