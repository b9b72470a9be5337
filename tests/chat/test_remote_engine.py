"""The engine that is elsewhere, against servers that answer, refuse, break off, talk nonsense, or
say nothing; then against real ones.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phisense.chat import ChatSession, Sampling
from phisense.chat.openai_protocol import API_KEY_VARIABLE
from phisense.chat.remote_engine import RemoteEngine
from phisense.chat.sse_client import ServerAddress
from phisense.conversations import IMAGE, Message
from phisense.errors import ChatError, ConversationError, PhisenseError, UsageError
from phisense.families import FAMILIES, known_special_tokens
from phisense.vision.image_io import open_image

SPECIAL_TOKENS = FAMILIES["phi3"].chat.special_tokens

Answer = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        data = json.dumps(self.server.models).encode()
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.server.headers.append(dict(self.headers))
        self.server.answer(self, asked)

    def begin(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def say(self, *words: str, end: bool = True) -> None:
        for word in words:
            self.wfile.write(
                b"data: "
                + json.dumps(
                    {"choices": [{"delta": {"content": word}, "finish_reason": None}]}
                ).encode()
                + b"\n\n"
            )
            self.wfile.flush()
        if end:
            self.wfile.write(
                b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
            )

    def log_message(self, *_: Any) -> None:
        pass


class Stub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: Any = {"data": [{"id": "practice"}]}
        self.status = 200
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()
        self.answer: Answer = lambda handler, asked: (  # type: ignore[assignment, return-value]
            handler.begin(),
            handler.say("A red", " circle."),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(
    engine: RemoteEngine, question: str = "What is it?", stop: threading.Event | None = None
) -> Iterator[str]:
    return ChatSession(engine, Sampling(max_new_tokens=16)).ask(question, stop)


def test_each_picture_is_sent_with_its_question(stub: Stub) -> None:
    """Two with the first, none with the second, one with the third, each in its place."""
    session = ChatSession(RemoteEngine.open(stub.url), Sampling(max_new_tokens=16))
    colours = iter([(250, 0, 0), (0, 250, 0), (0, 0, 250)])
    urls = []
    for count, question in ((2, "Alike?"), (0, "Why?"), (1, "And this?")):
        for _ in range(count):
            session.add_image(Image.new("RGB", (6, 4), next(colours)))
        urls.append([image.encoded for image in session.added])
        assert "".join(session.ask(question)) == "A red circle."
    questions = [one for one in stub.asked[-1]["messages"] if one["role"] == "user"]
    for sent, shown, text in zip(questions, urls, ("Alike?", "Why?", "And this?"), strict=True):
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in shown]
        said = {"type": "text", "text": text}
        assert sent["content"] == ([*parts, said] if shown else text)
    assert len({url for shown in urls for url in shown}) == 3


def test_what_is_sent_and_what_comes_back(stub: Stub) -> None:
    engine = RemoteEngine.open(stub.url)
    session = ChatSession(engine, Sampling(max_new_tokens=16))
    picture = Image.new("RGB", (6, 4), (10, 200, 30))
    session.set_image(picture)
    assert list(session.ask("What is it?")) == ["A red", " circle."]
    assert "".join(session.ask("And now?")) == "A red circle."
    sent = stub.asked[-1]
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["stream"]) == (
        "practice",
        16,
        0.0,
        True,
    )
    first, answer, second = sent["messages"]
    assert first["content"][1] == {"type": "text", "text": "What is it?"}
    url = first["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert (
        Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).tobytes() == picture.tobytes()
    )
    assert (answer, second) == (
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": "And now?"},
    )


def test_a_large_picture_travels_as_a_smaller_jpeg(stub: Stub) -> None:
    url = RemoteEngine.open(stub.url).encode_image(Image.new("RGB", (5000, 3000), (200, 30, 30)))
    assert url.startswith("data:image/jpeg;base64,")
    seen = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert max(seen.size) == 2048


def test_the_key_is_sent_and_never_shown(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "s3cret-key")
    engine = RemoteEngine.open(stub.url)
    assert "".join(ask(engine))
    assert [h["Authorization"] for h in stub.headers] == ["Bearer s3cret-key"] * 2
    stub.answer = lambda handler, asked: handler.begin(401)
    with pytest.raises(ChatError) as caught:
        list(ask(engine))
    assert "s3cret" not in f"{caught.value}{engine.address!r}{caplog.text}"


def test_the_window_and_the_count(stub: Stub, model: Path) -> None:
    stub.models = {"data": [{"id": "practice", "max_model_len": 2048}]}
    messages = [Message("user", f"{IMAGE}\nWhat is it?")]
    estimated, exact = RemoteEngine.open(stub.url), RemoteEngine.open(stub.url, folder=model)
    assert (estimated.window, estimated.picture_tokens, estimated.name) == (2048, 576, "practice")
    assert estimated.count_tokens(messages, ["x"]) == 576 + round(len(messages[0].text) / 3.5) + 4
    assert (exact.window, exact.picture_tokens) == (1024, 64)
    from phisense.chat.torch_engine import TorchEngine

    torch_engine = TorchEngine.open(model, "cpu")
    assert exact.count_tokens(messages, ["x"]) == len(
        torch_engine.built.prompt.render_for_completion(messages, [64])
    )


def test_control_tokens_stay_text(stub: Stub, model: Path) -> None:
    hostile = " ".join(("Hi", *known_special_tokens(), IMAGE, "</s>"))
    # without a folder the family is not known, so no token of any may pass
    for engine, tokens in (
        (RemoteEngine.open(stub.url), known_special_tokens()),
        (RemoteEngine.open(stub.url, folder=model), SPECIAL_TOKENS),
    ):
        list(ask(engine, hostile))
        sent = stub.asked[-1]["messages"][0]["content"]
        assert isinstance(sent, str)
        assert not [token for token in (*tokens, IMAGE) if token in sent]
    # without the breaking they would be sent as they are: the control
    engine.escape_special_tokens = lambda text: text  # type: ignore[method-assign]
    list(
        engine.stream(
            [Message("user", SPECIAL_TOKENS[0])], [], Sampling(4), threading.Event(), object()
        )
    )
    assert stub.asked[-1]["messages"][0]["content"] == SPECIAL_TOKENS[0]
    with pytest.raises(ConversationError, match="one <image> for each picture; got 1; wanted 0"):
        list(
            engine.stream(
                [Message("user", f"{IMAGE} x")], [], Sampling(4), threading.Event(), object()
            )
        )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (302, "refused the question; got status 302"),
        (400, "refused the question; got status 400"),
        (401, "wants another key"),
        (404, "does not have this model"),
        (429, "is busy"),
        (500, "server failed; got status 500"),
    ],
)
def test_each_refusal_is_a_sentence(
    stub: Stub, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handler: Handler, asked: dict[str, Any]) -> None:
        handler.begin(status)
        handler.wfile.write(b"no model at /srv/secret/place on 10.1.2.3")

    stub.answer = refuse
    with pytest.raises(ChatError, match=words) as caught:
        list(ask(RemoteEngine.open(stub.url)))
    assert not [word for word in ("127.0.0.1", "10.1.2.3", "/srv") if word in str(caught.value)]
    assert "/srv/secret/place" in caplog.text, "who runs it can read what the server said"


def say(data: bytes) -> Answer:
    def answer(handler: Handler, asked: dict[str, Any]) -> None:
        handler.begin()
        handler.wfile.write(data)

    return answer


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"data: {not json\n\n", "something that is no answer; got JSONDecodeError"),
        (b'data: {"choices": [{"delta": {"content": 7}}]}\n\n', "no answer; got int"),
        (b'data: {"nothing": 1}\n\n', "no answer; got KeyError"),
        (b"data: []\n\n", "no answer; got TypeError"),
        (b'data: {"choices": 7}\n\n', "no answer; got TypeError"),
        (b'{"choices": [{"message": {"content": "all at once"}}]}\n', "no answer; got no stream"),
        (b'data: {"error": "out of memory at /srv/x"}\n\n', "failed in the middle of the answer"),
        (b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n', "broke off in the middle"),
        (b"", "broke off in the middle"),
    ],
)
def test_each_malformed_answer_is_a_sentence(stub: Stub, data: bytes, words: str) -> None:
    stub.answer = say(data)
    with pytest.raises(ChatError, match=words) as caught:
        list(ask(RemoteEngine.open(stub.url)))
    assert "/srv" not in str(caught.value)


def test_comments_figures_and_empty_pieces_are_passed_over(stub: Stub) -> None:
    stub.answer = say(
        b': ping\n\nevent: x\ndata: {"choices": [{"delta": {"role": "assistant", "content":'
        b' null}}]}\n\ndata: {"choices": [{"delta": {"content": "Yes."}, "finish_reason":'
        b' "stop"}]}\r\n\r\ndata: {"choices": [], "usage": {}}\n\n'
    )
    assert list(ask(RemoteEngine.open(stub.url))) == ["Yes."]


def test_a_silent_server_is_given_up(stub: Stub) -> None:
    stub.answer = lambda handler, asked: (handler.begin(), time.sleep(3))  # type: ignore[assignment, return-value]
    engine = RemoteEngine.open(stub.url, timeout=0.4)
    began = time.monotonic()
    with pytest.raises(ChatError, match="does not answer; got nothing for 0 seconds"):
        list(ask(engine))
    assert 0.3 < time.monotonic() - began < 2


def test_a_slow_server_is_heard_out(stub: Stub) -> None:
    def slowly(handler: Handler, asked: dict[str, Any]) -> None:
        handler.begin()
        for word in ("One ", "two ", "three"):
            time.sleep(0.25)
            handler.say(word, end=False)
        handler.say()

    stub.answer = slowly
    times = [(piece, time.monotonic()) for piece in ask(RemoteEngine.open(stub.url, timeout=0.6))]
    assert [piece for piece, _ in times] == ["One ", "two ", "three"]
    assert times[2][1] - times[0][1] > 0.4, "each piece came when it was said"


def endless(handler: Handler, asked: dict[str, Any]) -> None:
    handler.begin()
    try:
        while True:
            handler.say("word ", end=False)
            time.sleep(0.01)
    except OSError:
        handler.server.left.set()


@pytest.mark.parametrize("how", ["stop", "close"])
def test_leaving_closes_the_connection(stub: Stub, how: str) -> None:
    stub.answer = endless
    stop = threading.Event()
    pieces = ask(RemoteEngine.open(stub.url), stop=stop)
    assert next(pieces) == "word "
    assert not stub.left.is_set()
    if how == "stop":
        stop.set()
        list(pieces)
    else:
        pieces.close()  # type: ignore[attr-defined]
    assert stub.left.wait(1), "the server goes on for nobody"
    deadline = time.monotonic() + 2
    while any(t.name == "exchange" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "exchange"]


def test_stopping_does_not_wait_for_the_first_word(stub: Stub) -> None:
    def silent(handler: Handler, asked: dict[str, Any]) -> None:
        if handler.connection.recv(1) == b"":  # not even a status line, until the other side leaves
            stub.left.set()

    stub.answer = silent
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    assert list(ask(RemoteEngine.open(stub.url), stop=stop)) == []
    assert time.monotonic() - began < 1
    assert stub.left.wait(1)


def test_a_server_that_went_away(stub: Stub) -> None:
    engine = RemoteEngine.open(stub.url)
    stub.shutdown()
    stub.server_close()
    with pytest.raises(ChatError, match="cannot be reached; got connection refused") as caught:
        list(ask(engine))
    assert "127.0.0.1" not in str(caught.value)
    with pytest.raises(ChatError, match="cannot be reached"):
        RemoteEngine.open(stub.url)


def test_which_model_is_asked(stub: Stub) -> None:
    """Of several none is named unless the user does; a server that refuses the one it listed is
    asked for whatever it has.
    """
    stub.models = {"data": [{"id": "one"}, {"id": "two"}]}
    list(ask(RemoteEngine.open(stub.url)))
    assert "model" not in stub.asked[-1]
    list(ask(RemoteEngine.open(stub.url, model="two")))
    assert stub.asked[-1]["model"] == "two"

    def pinned(handler: Handler, asked: dict[str, Any]) -> None:
        if "model" in asked:
            handler.begin(400)
        else:
            handler.begin()
            handler.say("Here.")

    stub.models, stub.answer = {"data": [{"id": "cached"}]}, pinned
    assert list(ask(RemoteEngine.open(stub.url))) == ["Here."]
    with pytest.raises(ChatError, match="refused the question"):
        list(ask(RemoteEngine.open(stub.url, model="mine")))


def test_a_server_that_trips_over_its_list_is_asked_all_the_same(stub: Stub) -> None:
    stub.status = 500
    engine = RemoteEngine.open(stub.url)
    assert list(ask(engine)) == ["A red", " circle."]
    assert "model" not in stub.asked[-1]
    assert (engine.name, engine.window) == ("the server's model", 4096)


def test_no_server_punishes_repetition(stub: Stub) -> None:
    list(ask(RemoteEngine.open(stub.url)))
    assert "repeat_penalty" not in stub.asked[-1], "others refuse what they do not know"
    stub.models = {"data": [{"id": "practice", "owned_by": "me"}]}
    list(ask(RemoteEngine.open(stub.url)))
    assert stub.asked[-1]["repeat_penalty"] == 1.0


@pytest.mark.parametrize("models", [{"object": "list"}, [1], "text", {"data": [{"name": "x"}]}])
def test_what_is_no_list_of_models(stub: Stub, models: Any) -> None:
    stub.models = models
    with pytest.raises(
        ChatError, match="no OpenAI-compatible server at that address; got no list of models"
    ):
        RemoteEngine.open(stub.url)
    stub.status = 404
    with pytest.raises(ChatError, match="got status 404 for /v1/models"):
        RemoteEngine.open(stub.url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://x",
        "localhost:8000",
        "http://",
        "",
        "http://user:pw@x",
        "http://x/?a=1",
        "http://x:99999",
        "http://a b",
    ],
)
def test_only_plain_addresses_of_servers(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        RemoteEngine.open(url)


def test_addresses() -> None:
    assert ServerAddress.parse("http://localhost:8000") == ServerAddress(
        False, "localhost", 8000, "/v1"
    )
    assert ServerAddress.parse("https://x.org/models/v1/") == ServerAddress(
        True, "x.org", None, "/models/v1"
    )
    assert ServerAddress.parse("http://[::1]:80/a").path == "/a/v1"


def free_port() -> int:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def talk(
    folder: Path, engine: str, local: Path | None, said: Path, check: Callable[[RemoteEngine], None]
) -> None:
    """`check` against `phisense serve`, which ends with 143 when it is terminated, and its server
    with it.
    """
    port = free_port()
    words = [
        sys.executable,
        "-m",
        "phisense",
        "serve",
        str(folder),
        "--engine",
        engine,
        "--port",
        str(port),
    ]
    with (
        said.open("w") as errors,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}" in server.stdout.readline(), said.read_text()
            check(RemoteEngine.open(f"http://127.0.0.1:{port}", folder=local))
        finally:
            server.terminate()
            assert server.wait(20) == 143
    with pytest.raises(PhisenseError, match="cannot be reached"):
        RemoteEngine.open(f"http://127.0.0.1:{port}")


DESCRIBE = "Describe the picture."


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "llama"])
def test_real_servers_answer_as_their_library_does(
    engine: str, model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    """Streamed, about two pictures; a stopped answer does not hold up the next. What is right of
    llama.cpp is what its own handler says of the same files: its tower reads CLIP's class row as a
    patch, so it does not see just what torch sees.
    """
    from phisense.chat.servers import _REQUIRED_PACKAGES

    for needed in _REQUIRED_PACKAGES[engine]:
        pytest.importorskip(needed, reason=f"{engine} needs {needed}")
    pictures = [world / "data" / "images" / f"heldout-0000{number}.jpg" for number in (1, 3)]
    if engine == "llama":
        pytest.importorskip("phisense.publish.export", reason="no phisense export")
        folder = tmp_path / "gguf"
        verb("export", model, "--to", "gguf", "--quant", "f16", "--out", folder)
        right = _handler_says(folder, pictures)
    else:
        folder = model
        right = [
            verb("ask", model, "--image", picture, "-q", DESCRIBE)["answer"] for picture in pictures
        ]
    assert right[0] != right[1]

    def check(remote: RemoteEngine) -> None:
        session = ChatSession(remote, Sampling(64))
        for picture, answer in zip(pictures, right, strict=True):
            session.set_image(open_image(picture))
            pieces = [piece for piece in session.ask(DESCRIBE) if piece]
            assert len(pieces) > 3, "streamed"
            assert "".join(pieces).strip() == answer
        stop = threading.Event()
        some = session.ask(DESCRIBE, stop)
        next(some)
        stop.set()
        assert list(some) == []
        session.set_image(None)
        assert (
            "".join(session.ask("Hello.")).strip() == verb("ask", model, "-q", "Hello.")["answer"]
        )

    talk(folder, engine, model, tmp_path / "said.txt", check)


def _handler_says(folder: Path, pictures: list[Path]) -> list[str]:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import MTMDChatHandler

    from phisense.chat.servers import text_and_mmproj

    text, seeing = text_and_mmproj(folder)
    read = Llama(
        str(text),
        chat_handler=MTMDChatHandler(str(seeing), verbose=False),
        n_ctx=1024,
        verbose=False,
    )
    said = []
    for picture in pictures:
        data = io.BytesIO()
        open_image(picture).save(data, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": DESCRIBE},
        ]
        made: Any = read.create_chat_completion(
            [{"role": "user", "content": content}],  # type: ignore[list-item]
            temperature=0.0,
            repeat_penalty=1.0,
            max_tokens=64,
        )
        said.append(made["choices"][0]["message"]["content"].strip())
    return said
