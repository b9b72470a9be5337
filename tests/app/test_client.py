"""The page's functions through gradio_client: what a script, or a stranger, can do with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file

from phisense.app import build, launch
from phisense.conversations import read_questions
from phisense.practice.spoken import spoken_questions

from ..chat.test_session import Echo


@pytest.fixture
def client(url: str) -> Client:
    return Client(url, verbose=False)


def ask(client: Client, question: str, picture: Path | None = None) -> list[dict[str, Any]]:
    file = handle_file(str(picture)) if picture else None
    messages: list[dict[str, Any]] = client.predict(question, file, 0, 256, api_name="/ask")[0]
    return messages


def words(message: dict[str, Any]) -> str:
    content = message["content"]
    return (
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    )


def test_a_picture_and_a_text(client: Client, model: Path, world: Path, verb: Any) -> None:
    question = next(
        q for q in read_questions(world / "data" / "heldout.jsonl") if q.kind == "colour"
    )
    picture = world / "data" / "images" / str(question.image)
    answer = words(ask(client, question.text, picture)[-1])
    assert answer == verb("ask", model, "--image", picture, "-q", question.text)["answer"]


def test_text_alone_and_a_second_turn(client: Client) -> None:
    first = ask(client, "Hello.")
    assert [m["role"] for m in first] == ["user", "assistant"]
    second = ask(client, "What comes after 3?")
    assert [words(m) for m in second][::2] == ["Hello.", "What comes after 3?"]
    assert len(second) == 4


def test_a_changed_picture_begins_anew(client: Client, world: Path) -> None:
    images = world / "data" / "images"
    ask(client, "Describe the picture.", images / "heldout-00001.jpg")
    messages = ask(client, "Describe the picture.", images / "heldout-00002.jpg")
    assert any("new picture" in words(m) for m in messages)
    assert sum(m["role"] == "user" for m in messages) == 1


def test_two_visitors_do_not_meet(url: str) -> None:
    one, other = Client(url, verbose=False), Client(url, verbose=False)
    ask(one, "Hello.")
    assert len(ask(other, "Thank you.")) == 2
    assert len(ask(one, "Goodbye.")) == 4


def test_clear_forgets(client: Client) -> None:
    ask(client, "Hello.")
    assert client.predict(api_name="/clear")[0] == []
    assert len(ask(client, "Hello.")) == 2


def test_a_recording_is_heard(client: Client) -> None:
    recording = next(r for r in spoken_questions() if r.heldout)
    heard, told = client.predict(handle_file(str(recording.path)), api_name="/listen")
    assert told.startswith("Heard English")
    assert heard.lower().rstrip("?.") == recording.text.lower().rstrip("?.")


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_picture_is_no_turn(client: Client, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert ask(client, "What is it?", tmp_path / "x.png") == []


@pytest.mark.parametrize("content", [b"hello", b""])
def test_an_unreadable_sound_is_no_question(client: Client, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    try:
        assert client.predict(handle_file(str(tmp_path / "x.wav")), api_name="/listen")[0] == ""
    except ValueError as error:  # gradio itself refuses an empty upload
        assert content == b"", error


def test_an_empty_question_is_no_turn(client: Client) -> None:
    assert ask(client, "  ") == []


def test_a_file_of_the_server_cannot_be_asked_about(url: str, world: Path) -> None:
    secret = {
        "path": str(world / "data" / "images" / "train-00000.jpg"),
        "meta": {"_type": "gradio.FileData"},
    }
    told = httpx.post(
        f"{url}gradio_api/call/ask",
        json={"data": ["Describe the picture.", secret, 0, 256]},
        timeout=30,
    )
    assert told.status_code == 403
    assert "no upload is known to be yours" in told.json()["detail"]


def test_a_taken_port_is_said_before_anything_is_loaded(
    verb: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from phisense.chat import open_engine
    from phisense.errors import UsageError

    monkeypatch.setattr(
        open_engine, "open_engine", lambda *args, **more: pytest.fail("it was opened")
    )
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(UsageError, match=f"port {held.getsockname()[1]} is taken"):
            verb("app", model, "--port", held.getsockname()[1])


class Together(Echo):
    """Answers only those who are answered at once with two others."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places, self.meeting = places, threading.Barrier(3)

    def stream(self, *given: Any) -> Iterator[str]:  # type: ignore[override]
        try:
            self.meeting.wait(8)
        except threading.BrokenBarrierError:
            yield "alone"
        yield from super().stream(*given)


@pytest.mark.parametrize("places", [3, 1])
def test_as_many_are_answered_at_once_as_the_engine_has_places(places: int) -> None:
    """The control has one place, and nobody meets anybody."""
    page = build(Together(places))
    _, address, _ = launch(page, port=0, block=False)
    try:
        with ThreadPoolExecutor(3) as visitors:
            clients = list(visitors.map(lambda _: Client(address, verbose=False), range(3)))
            said = list(visitors.map(lambda one: words(ask(one, "One?")[-1]), clients))
    finally:
        page.close(verbose=False)
    assert ["alone" in one for one in said] == [places == 1] * 3
