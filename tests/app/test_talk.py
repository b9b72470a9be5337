"""One visitor's steps without a page, over an engine that answers word by word."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from phisense.app.talk import Visitor, tame, transcribe
from phisense.errors import ChatError, PictureError, SoundError

from ..chat.test_session import Echo


@pytest.fixture
def visitor() -> Visitor:
    return Visitor(Echo())


def test_stop_ends_an_answer_and_keeps_what_was_said(visitor: Visitor) -> None:
    steps = visitor.ask("One?", None)
    next(steps), next(steps)
    visitor.stop.set()
    assert list(steps) == []
    assert visitor.session.turns[0].answer == "I"


def test_leaving_in_the_middle_ends_the_answer(visitor: Visitor) -> None:
    steps = visitor.ask("One?", None)
    next(steps), next(steps)
    steps.close()
    assert visitor.session.turns[0].answer == "I"


def test_a_picture_is_read_once_and_a_new_one_begins_anew(visitor: Visitor, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    list(visitor.ask("One?", tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    assert len(list(visitor.ask("Two?", tmp_path / "a.png"))[-1]) == 4
    last = list(visitor.ask("Three?", tmp_path / "b.png"))[-1]
    assert [line.who for line in last] == ["notice", "user", "assistant"]


def test_a_refused_picture_is_never_asked_about(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(PictureError, match="The upload is not a picture"):
            next(visitor.ask("One?", tmp_path / "a.png"))
    assert visitor.refused == tmp_path / "a.png"
    assert visitor.session.turns == []


def test_clear_forgets_turns_and_keeps_the_picture(visitor: Visitor, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    list(visitor.ask("One?", tmp_path / "a.png"))
    visitor.clear()
    assert visitor.conversation() == []
    assert visitor.session.has_picture


def test_no_question_no_recording_no_ears(visitor: Visitor) -> None:
    with pytest.raises(ChatError, match="the question is empty"):
        next(visitor.ask(" ", None))
    with pytest.raises(SoundError, match="this page has no ears"):
        transcribe(None, Path("a.wav"))


def test_answers_fetch_nothing_and_numbers_stay_numbers() -> None:
    assert tame("See ![x](http://evil/a.png) and [here](http://evil) <img src=x onerror=1> now") == "See x and here  now"
    assert tame("2.") == tame("2. ") == "2\\."
    assert tame(" 2.") == " 2\\."
    assert tame("There are:\n1. a\n2. b") == "There are:\n1. a\n2. b"
