"""One visitor's steps without a page, over an engine that answers word by word."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from phisense.app.handlers import EventHandlers
from phisense.app.limits import Limits
from phisense.app.state import AppState, ChatLine, UserSession
from phisense.app.uploads import Uploads
from phisense.errors import ChatError, ImageError, SoundError
from phisense.vision.image_io import IMAGE_FORMATS

from ..chat.test_session import Echo


@pytest.fixture
def visitor() -> UserSession:
    return AppState(Echo()).create_session(None)


def settled(visitor: UserSession) -> UserSession:
    """Once the thread of the former answer has ended."""
    assert visitor._stream is not None
    assert visitor._stream.wait(5)
    return visitor


class Slow(Echo):
    """Waits between words until it is stopped."""

    def stream(self, messages, seen, sampling, stop, owner):  # type: ignore[no-untyped-def]
        for piece in super().stream(messages, seen, sampling, stop, owner):
            yield piece
            if stop.wait(0.05):
                return


def test_stop_ends_an_answer_and_keeps_what_was_said() -> None:
    visitor = AppState(Slow()).create_session(None)
    steps = visitor.ask("One?", None)
    next(steps), next(steps)
    visitor.stop.set()
    last = list(steps)[-1]
    said = settled(visitor).session.turns[0].answer
    assert "I was given 1 messages".startswith(said)
    assert last == [ChatLine("user", "One?"), ChatLine("assistant", said)]


def test_leaving_in_the_middle_ends_the_answer() -> None:
    visitor = AppState(Slow()).create_session(None)
    steps = visitor.ask("One?", None)
    next(steps), next(steps)
    assert visitor.app.active_streams
    steps.close()
    assert "I was given 1 messages".startswith(settled(visitor).session.turns[0].answer)
    assert not visitor.app.active_streams


def test_a_closed_tab_stops_its_answer_and_no_other() -> None:
    room = AppState(Slow())
    one, other = room.create_session("a"), room.create_session("b")
    steps = [one.ask("One?", None), other.ask("One?", None)]
    for each in steps:
        next(each), next(each)
    room.close_session("a")
    assert one.stop.is_set()
    assert not other.stop.is_set()
    assert "messages" in list(steps[1])[-1][-1].text
    room.close_session("nobody")


def test_an_answer_takes_no_more_than_its_seconds() -> None:
    class Endless(Echo):
        def stream(self, messages, seen, sampling, stop, owner):  # type: ignore[no-untyped-def]
            while not stop.wait(0.02):
                yield "on "

    visitor = AppState(Endless(), limits=Limits(max_answer_seconds=0.5)).create_session(None)
    last = list(visitor.ask("One?", None))[-1]
    assert last[-1].text.startswith("Cut off after 500 ms, the most")


def test_another_try_takes_the_place_of_the_answer_and_an_edit_that_of_the_question(
    visitor: UserSession,
) -> None:
    for question in ("One?", "Two?", "Three?"):
        list(visitor.ask(question, None))
    assert [line.text for line in visitor.lines if line.role == "user"] == [
        "One?",
        "Two?",
        "Three?",
    ]
    list(visitor.retry(2, None))
    assert [turn.question for turn in visitor.session.turns] == ["One?", "Two?"]
    list(visitor.retry(0, None, "Zero?"))
    assert [turn.question for turn in visitor.session.turns] == ["Zero?"]
    assert visitor.undo(0) == "Zero?"
    assert visitor.lines == visitor.session.turns == []
    with pytest.raises(ChatError, match="no such question"):
        visitor.undo(0)


def test_an_edit_that_is_refused_forgets_nothing(visitor: UserSession) -> None:
    for question in ("One?", "Two?"):
        list(visitor.ask(question, None))
    before = visitor.lines
    with pytest.raises(ChatError, match="the question is empty"):
        list(visitor.retry(0, None, " "))
    assert visitor.lines == before
    assert [turn.question for turn in visitor.session.turns] == ["One?", "Two?"]


def test_what_was_cleared_does_not_come_back() -> None:
    visitor = AppState(Slow()).create_session(None)
    steps = visitor.ask("One?", None)
    next(steps), next(steps)
    visitor.clear()
    assert list(steps) == []
    assert visitor.lines == visitor.session.turns == []


def test_settings_are_bounded(visitor: UserSession) -> None:
    visitor.set_sampling(99.0, 10**9)
    assert visitor.session.sampling.temperature == 2.0
    assert visitor.session.sampling.max_new_tokens == visitor.app.limits.max_answer_tokens
    with pytest.raises(ChatError, match=r"got 2,001 characters"):
        next(visitor.ask("x" * 2001, None))


def test_where_it_looked_needs_an_answer_and_an_engine_that_tells(visitor: UserSession) -> None:
    with pytest.raises(ChatError, match="does not tell where it looks"):
        visitor.attention_overlay()


def coloured(path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.mark.parametrize("line", [0, 2])
@pytest.mark.parametrize("other", [False, True])
def test_a_refused_edit_leaves_the_picture_where_it_was(
    visitor: UserSession, tmp_path: Path, line: int, other: bool
) -> None:
    """Also if another picture came with it, which the next question then shows."""
    first, second = coloured(tmp_path / "a.png"), coloured(tmp_path / "b.png")
    for question in ("One?", "Two?"):
        list(visitor.ask(question, first))
    turns, images, lines = list(visitor.session.turns), visitor.session.images, visitor.lines
    now = second if other else first
    with pytest.raises(ChatError, match="the question is empty"):
        list(visitor.retry(line, now, " "))
    assert (visitor.session.turns, visitor.session.images, visitor.lines) == (turns, images, lines)
    assert len(turns[0].images) == 1
    assert not visitor.session.added
    list(visitor.ask("Three?", now))
    assert len(visitor.session.images) == 1, "the page shows one at a time"
    assert (visitor.session.images == images) is not other
    assert len(visitor.session.turns) == (1 if other else 3)


def test_formats_of_pictures(visitor: UserSession, tmp_path: Path) -> None:
    for name in (
        "a.png",
        "a.jpg",
        "a.webp",
        "a.gif",
        *(["a.avif"] if "AVIF" in IMAGE_FORMATS else []),
    ):
        visitor.set_image(coloured(tmp_path / name))
    with pytest.raises(
        ImageError,
        match="is no picture that can be read; got a TIFF picture; wanted JPEG, PNG, WEBP, GIF",
    ):
        visitor.set_image(coloured(tmp_path / "a.tiff"))


def test_a_picture_is_read_once_and_a_new_one_begins_anew(
    visitor: UserSession, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        coloured(tmp_path / name)
    list(visitor.ask("One?", tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    assert len(list(visitor.ask("Two?", tmp_path / "a.png"))[-1]) == 4
    last = list(visitor.ask("Three?", tmp_path / "b.png"))[-1]
    assert [line.role for line in last] == ["notice", "user", "assistant"]


def test_a_blank_picture_is_asked_about_and_said_to_be_blank_once(
    visitor: UserSession, tmp_path: Path
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    first = list(visitor.ask("One?", tmp_path / "a.png"))[-1]
    assert [line.role for line in first] == ["notice", "user", "assistant"]
    assert (
        first[0].text == "There is nothing to see on the picture, which is of one colour (0, 0, 0)."
    )
    assert all(line.role != "notice" for line in list(visitor.ask("Two?", tmp_path / "a.png"))[-1])


def test_a_refused_picture_is_never_asked_about(visitor: UserSession, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(ImageError, match="The upload is not a picture"):
            next(visitor.ask("One?", tmp_path / "a.png"))
    assert visitor.rejected_image == tmp_path / "a.png"
    assert visitor.session.turns == []


def test_clear_forgets_turns_and_keeps_the_picture(visitor: UserSession, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    list(visitor.ask("One?", tmp_path / "a.png"))
    visitor.clear()
    assert visitor.conversation() == []
    assert visitor.session.has_image


def test_no_question_no_recording_no_ears(visitor: UserSession) -> None:
    with pytest.raises(ChatError, match="the question is empty"):
        next(visitor.ask(" ", None))
    with pytest.raises(SoundError, match="this page has no ears"):
        visitor.app.transcribe(Path("a.wav"))


class Gazing(Echo):
    def attention_map(self, messages, seen):  # type: ignore[no-untyped-def]
        return [np.eye(4)]


def test_where_it_looked_is_shown_small(tmp_path: Path) -> None:
    """Laid over in full, 40 million pixels would take gigabytes."""
    Image.new("RGB", (4000, 1000)).save(tmp_path / "a.png")
    visitor = AppState(Gazing()).create_session(None)
    for _ in visitor.ask("What is it?", tmp_path / "a.png"):
        pass
    assert visitor.attention_overlay().size == (1024, 256)


def test_events_of_one_visitor_follow_each_other_and_those_of_others_do_not_wait() -> None:
    """A new image waits for the answer about the former one, whose conversation it would end; the
    control, another visitor, does not. An answer whose listener is gone lets the next event in.
    """
    room = AppState(Slow(), limits=Limits(max_answer_seconds=5))
    events = EventHandlers(room, Uploads(Path(), 10, 10.0))
    me, other = room.create_session("me"), room.create_session("other")
    mine, theirs = SimpleNamespace(session_hash="me"), SimpleNamespace(session_hash="other")
    answer = events.ask("One?", None, 0.0, 8.0, me, mine)
    next(answer), next(answer)
    cleared = threading.Thread(target=lambda: events.set_image(None, me, mine))
    cleared.start()
    events.set_image(None, other, theirs)  # at once
    cleared.join(0.2)
    assert cleared.is_alive()
    list(answer)
    cleared.join(5)
    assert not cleared.is_alive()
    left = events.ask("Two?", None, 0.0, 8.0, me, mine)
    next(left), next(left)
    del left
    gc.collect()
    assert list(events.ask("Three?", None, 0.0, 8.0, me, mine))[-1][0][-1]["role"] == "assistant"


def test_an_event_that_hangs_does_not_hold_up_the_visitor_for_ever() -> None:
    visitor = AppState(Echo(), limits=Limits(max_answer_seconds=0.1)).create_session(None)
    with visitor.turn(), pytest.raises(ChatError, match="still being stopped"), visitor.turn():
        pass
    with visitor.turn():
        pass


def test_an_example_is_encoded_once_for_all_visitors_and_an_upload_for_each(tmp_path: Path) -> None:
    for name in ("example.png", "upload.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    encoded = []

    class Encoding(Echo):
        def encode_image(self, picture: Image.Image) -> object:
            encoded.append(object())
            return encoded[-1]

    room = AppState(Encoding(), examples={str(tmp_path / "example.png"): None})
    seen = {}
    for name in ("example.png", "upload.png"):
        for number in range(3):
            visitor = room.create_session(None)
            visitor.set_image(tmp_path / name)
            seen[name, number] = visitor.session.images[0].encoded
    assert len(encoded) == 4
    assert len({id(seen["example.png", number]) for number in range(3)}) == 1
    assert len({id(seen["upload.png", number]) for number in range(3)}) == 3
