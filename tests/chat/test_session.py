"""A session: what the model receives, what it forgets, and how an answer is stopped."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from phisense.chat import ChatSession, Sampling
from phisense.chat.terminal import run_terminal_chat
from phisense.chat.torch_engine import TorchEngine
from phisense.conversations import IMAGE, Message
from phisense.errors import ChatError
from phisense.vision.image_io import open_image

from ..tiny import generated


class Echo:
    """An engine that says how many messages it was given; a token is a word."""

    name, window, picture_tokens = "echo", 100, 10
    kind, where, endpoint, attention_map, places = "echo", "nowhere", None, None, 1

    def __init__(self) -> None:
        self.given: list[list[Message]] = []

    def encode_image(self, picture: Image.Image) -> Any:
        return picture.size

    def count_tokens(self, messages: Sequence[Message], seen: Sequence[Any]) -> int:
        return sum(len(m.text.split()) for m in messages) + 10 * len(seen)

    def escape_special_tokens(self, text: str) -> str:
        return text.replace("<image>", "< image>")

    def stream(
        self,
        messages: Sequence[Message],
        seen: Sequence[Any],
        sampling: Sampling,
        stop: threading.Event,
        owner: object,
    ) -> Iterator[str]:
        self.given.append(list(messages))
        for word in f"I was given {len(messages)} messages".split():
            if stop.is_set():
                return
            yield f"{word} "


def ask(session: ChatSession, question: str) -> str:
    return "".join(session.ask(question)).strip()


def test_the_model_receives_the_whole_conversation() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    session.set_image(Image.new("RGB", (4, 4)))
    assert ask(session, "One?") == "I was given 1 messages"
    assert ask(session, "Two?") == "I was given 3 messages"
    given = session.engine.given[-1]  # type: ignore[attr-defined]
    assert [m.text for m in given] == [f"{IMAGE}\nOne?", "I was given 1 messages", "Two?"]


def test_another_picture_begins_anew_and_says_so() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    session.set_image(Image.new("RGB", (4, 4)))
    ask(session, "One?")
    session.set_image(Image.new("RGB", (5, 5)))
    assert session.turns == []
    assert "new picture" in str(session.notice)
    ask(session, "Two?")
    assert len(session.engine.given[-1]) == 1  # type: ignore[attr-defined]


def test_the_oldest_turns_leave_and_the_picture_stays() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    session.set_image(Image.new("RGB", (4, 4)))
    for number in range(6):
        ask(session, f"{number} " + "word " * 15)
    given = session.engine.given[-1]  # type: ignore[attr-defined]
    assert given[0].text.startswith(f"{IMAGE}\n")
    assert not given[0].text.startswith(f"{IMAGE}\n0")
    assert session.engine.count_tokens(given, [1]) <= 100 - 8
    assert "no longer remembers" in str(session.notice)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("", "the question is empty"),
        (" \n", "the question is empty"),
        ("word " * 95, "does not fit the model's window; got 95 tokens"),
        ("x" * 9000, "got 9,000 characters"),
    ],
)
def test_bad_questions_are_sentences_and_no_turns(question: str, words: str) -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    with pytest.raises(ChatError, match=words):
        session.ask(question)
    assert session.turns == []


def test_a_typed_marker_is_no_picture() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    ask(session, "What is <image>?")
    assert IMAGE not in session.engine.given[-1][0].text  # type: ignore[attr-defined]


def test_an_answer_that_spells_a_marker_is_text_afterwards() -> None:
    class Speller(Echo):
        def stream(self, *given: Any) -> Iterator[str]:
            self.given.append(list(given[0]))
            yield from ("<im", "age>")

    session = ChatSession(Speller(), Sampling(max_new_tokens=8))
    session.set_image(Image.new("RGB", (4, 4)))
    assert ask(session, "One?") == IMAGE
    ask(session, "Two?")
    assert sum(m.text.count(IMAGE) for m in session.engine.given[-1]) == 1  # type: ignore[attr-defined]


def test_a_refused_question_costs_no_memory() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    ask(session, "One?")
    with pytest.raises(ChatError, match="does not fit"):
        session.ask("word " * 95)
    assert [turn.question for turn in session.turns] == ["One?"]


def test_a_stopped_answer_is_remembered_as_far_as_it_came() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    stop = threading.Event()
    pieces = session.ask("One?", stop)
    first = next(pieces)
    stop.set()
    assert list(pieces) == []
    assert session.turns[0].answer == first.strip()


@pytest.fixture(scope="module")
def engine(model: Path) -> TorchEngine:
    return TorchEngine.open(model, "cpu")


def test_the_torch_engine_streams_what_batches_answer(engine: TorchEngine, world: Path) -> None:
    picture = open_image(world / "data" / "images" / "heldout-00003.jpg")
    session = ChatSession(engine)
    session.set_image(picture)
    pieces = list(session.ask("Describe the picture."))
    assert len([piece for piece in pieces if piece]) > 3
    asked = [[Message("user", f"{IMAGE}\nDescribe the picture.")]]
    assert (
        "".join(pieces).strip()
        == generated(engine.built, asked, [[picture]], max_new_tokens=256)[0]
    )


def test_a_second_turn_equals_the_same_conversation_given_at_once(
    engine: TorchEngine, world: Path
) -> None:
    picture = open_image(world / "data" / "images" / "heldout-00003.jpg")
    session = ChatSession(engine)
    session.set_image(picture)
    first = ask(session, "How many things are there?")
    second = ask(session, "Describe the picture.")
    messages = [
        Message("user", f"{IMAGE}\nHow many things are there?"),
        Message("assistant", first),
        Message("user", "Describe the picture."),
    ]
    assert generated(engine.built, [messages], [[picture]], max_new_tokens=256)[0] == second


def test_sessions_do_not_see_each_other(engine: TorchEngine, world: Path) -> None:
    """Two at once over one engine, answers as if each were alone."""
    pictures = [open_image(world / "data" / "images" / f"heldout-0000{i}.jpg") for i in (1, 2)]

    def describe(picture: Image.Image, found: list[str]) -> None:
        session = ChatSession(engine)
        session.set_image(picture)
        found.append(ask(session, "Describe the picture."))

    alone: list[list[str]] = [[], []]
    for picture, found in zip(pictures, alone, strict=True):
        describe(picture, found)
    together: list[list[str]] = [[], []]
    threads = [
        threading.Thread(target=describe, args=pair)
        for pair in zip(pictures, together, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert alone[0] != alone[1]


def test_leaving_ends_the_generation(engine: TorchEngine) -> None:
    """The engine is free for the next at once, and what was read is kept."""
    session = ChatSession(engine)
    pieces = session.ask("Describe the picture.")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    with engine._lock.acquire(threading.Event()) as mine:
        assert mine
    assert ask(ChatSession(engine), "Hello.")


def test_a_session_that_waits_its_turn_can_be_stopped(engine: TorchEngine) -> None:
    stop = threading.Event()
    waiting = ChatSession(engine).ask("Hello.", stop)
    with engine._lock.acquire():  # as if the engine were computing
        threading.Timer(0.1, stop.set).start()
        assert list(waiting) == []
    assert engine._batcher.answering == 1  # it cannot be ended while the engine computes
    assert ask(ChatSession(engine), "Hello.")
    assert engine._batcher.answering == 0


def test_the_terminal(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = iter(
        [
            "Hello?",
            "/image nope.png",
            f"/image {tmp_path / 'a.png'}",
            "Again?",
            "/clear",
            "/help",
            "/quit",
        ]
    )
    said = Console(file=io.StringIO(), width=200)
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    run_terminal_chat(session, said, lambda prompt: next(lines))
    text = said.file.getvalue()  # type: ignore[attr-defined]
    assert "I was given 1 messages" in text
    assert "there is no picture nope.png" in text
    assert "/image FILE" in text
    assert session.turns == []
    assert session.has_image
