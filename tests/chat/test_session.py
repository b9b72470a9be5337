"""A session: what the model receives, what it forgets, and how an answer is stopped."""

from __future__ import annotations

import io
import random
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


def shown(session: ChatSession) -> list[str]:
    """The names of the pictures that the model was shown, and by which question."""
    given = session.engine.given[-1]  # type: ignore[attr-defined]
    marks = [message.text.count(IMAGE) for message in given if message.role == "user"]
    names = iter(image.name for image in session.images)
    return [f"{at}:{next(names)}" for at, count in enumerate(marks) for _ in range(count)]


def picture() -> Image.Image:
    return Image.new("RGB", (4, 4))


def test_a_picture_comes_with_the_question_that_it_was_added_to() -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    ask(session, "Hello?")
    assert session.add_image(picture(), "a") == 1
    assert session.add_image(picture(), "b") == 2
    ask(session, "Alike?")
    ask(session, "Why?")
    assert session.add_image(picture(), "c") == 3
    ask(session, "And this?")
    assert [image.name for image in session.images] == ["a", "b", "c"]
    assert shown(session) == ["1:a", "1:b", "3:c"]
    given = session.engine.given[-1]  # type: ignore[attr-defined]
    assert given[2].text == f"{IMAGE}\n{IMAGE}\nAlike?"
    session.remove_image(2)
    ask(session, "Now?")
    assert shown(session) == ["1:a", "3:c"]
    session.truncate_to(3)  # the question about c goes, c stays for the next one
    ask(session, "And that?")
    assert shown(session) == ["1:a", "3:c"]
    session.truncate_to(1)  # c came with a later question than the first that goes
    assert [image.name for image in session.images] == ["a"]
    session.clear()
    ask(session, "What?")
    assert shown(session) == ["0:a"]


@pytest.mark.parametrize("number", [0, -1, 3])
def test_a_picture_that_is_not_there_cannot_be_taken_out(number: int) -> None:
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    session.add_image(picture())
    ask(session, "One?")
    session.add_image(picture())
    with pytest.raises(ChatError, match=f"got picture {number}; wanted 1 to 2"):
        session.remove_image(number)
    assert len(session.images) == 2
    with pytest.raises(ChatError, match="wanted none"):
        ChatSession(Echo()).remove_image(1)


@pytest.mark.parametrize("seed", range(20))
def test_what_no_longer_fits_leaves_whole_and_the_oldest_first(seed: int) -> None:
    """Random conversations: what is left is an end of what there was, with the picture that came
    last in any case, fits, and would not fit with the turn before; the notice counts what left.
    """
    rng = random.Random(seed)
    session = ChatSession(Echo(), Sampling(max_new_tokens=8))
    names = iter("abcdefghijklmnopqrstuvwxyz")
    left_pictures = left_turns = 0
    for _ in range(12):
        for _ in range(rng.choice((0, 0, 1, 2))):
            session.add_image(picture(), next(names))
        turns, added, images = list(session.turns), session.added, session.images
        question = "word " * rng.randint(1, 25)
        try:
            ask(session, question)
        except ChatError as error:  # two pictures and their question alone may be too much
            assert "does not fit" in str(error)
            assert (session.turns, session.images) == (turns, images)
            session.added = []
            continue
        gone, kept = len(turns) + 1 - len(session.turns), session.images
        assert [t.question for t in session.turns[:-1]] == [t.question for t in turns[gone:]]
        assert kept == images[len(images) - len(kept) :]
        assert bool(kept) == bool(images), "the last picture stays"
        given = session.engine.given[-1]  # type: ignore[attr-defined]
        assert session.engine.count_tokens(given, kept) <= 100 - 8
        lost = len(images) - len(kept)
        assert ("no longer remembers" in str(session.notice)) == bool(gone)
        if gone:
            assert f"the first {gone} of these turns" in str(session.notice)
            staying = turns[gone - 1 :]
            with_one_more = sum(len(image) for image in (t.images for t in staying)) + len(added)
            if not with_one_more:  # then it had got those that came last
                with_one_more = (
                    len(next(t.images for t in reversed(turns) if t.images)) if images else 0
                )
            words = [question, *(f"{t.question} {t.answer}" for t in staying)]
            tokens = sum(len(text.split()) for text in words) + 11 * with_one_more
            assert tokens > 100 - 8, "it would have fitted with the turn before"
        if lost:
            numbers = "picture 1" if lost == 1 else f"pictures 1 to {lost}"
            dropped = ", ".join(image.name for image in images[:lost])
            assert f"{numbers} ({dropped})" in str(session.notice)
            assert f"what was picture {lost + 1} is picture 1 now" in str(session.notice)
        else:
            assert "sees" not in str(session.notice)
        left_pictures += lost
        left_turns += gone
    assert left_turns > 2


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
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    lines = iter(
        [
            "Hello?",
            "/image nope.png",
            f"/image {tmp_path / 'a.png'}",
            "Again?",
            f"/image {tmp_path / 'b.png'}",
            "Alike?",
            "/images",
            "/drop 5",
            "/drop 1",
            "/images",
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
    assert "I was given 5 messages" in text, "another picture does not begin anew"
    assert text.count("Picture 1: a.png") == 2
    assert text.count("Picture 2: b.png") == 2
    assert "there is no such picture; got picture 5; wanted 1 to 2" in text
    assert "Taken out; 1 picture left." in text
    assert text.count("Picture 1: b.png") == 1
    assert session.turns == []
    assert [image.name for image in session.images] == ["b.png"]
