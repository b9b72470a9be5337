"""What a browser may keep of a conversation, and what of that is taken back."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from PIL import Image

from phisense.app.kept import KeptConversation, dump_conversation, parse_conversation
from phisense.app.limits import Limits
from phisense.app.state import AppState, UserSession
from phisense.chat import ChatSession
from phisense.chat.session import Turn
from phisense.errors import ChatError

from ..chat.test_session import Echo

LIMITS = Limits()
LETTERS = ("word ", "\\", '"', "\n", "ß", "語", "🙂", "\x01", "<|end|>", "{}[],:")


def spoken(random: random.Random, most: int) -> str:
    return "x" + "".join(random.choices(LETTERS, k=random.randrange(most)))


def session_of(turns: list[Turn], picture: bool = False) -> ChatSession:
    session = ChatSession(Echo())
    if picture:
        session.set_image(Image.new("RGB", (4, 4)))
    session.turns = list(turns)
    return session


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_comes_back_as_far_as_it_fits_a_request(seed: int) -> None:
    chance = random.Random(seed)
    most = chance.choice((3, 300, 20_000))
    turns = [Turn(spoken(chance, most), spoken(chance, most)) for _ in range(chance.randrange(30))]
    text = dump_conversation(session_of(turns, bool(seed % 2)), LIMITS)
    # as the page's script writes it into a request, with what else is in there
    assert len(orjson.dumps({"data": [text, None, None]})) < LIMITS.max_body_bytes - 8_000
    if not text:
        assert not turns or len(orjson.dumps(turns[-1].answer)) > LIMITS.max_kept_bytes / 4
        return
    kept = parse_conversation(text, LIMITS)
    assert kept.picture is bool(seed % 2)
    assert list(kept.turns) == turns[-len(kept.turns) :]
    if most < 300:
        assert len(kept.turns) == len(turns)


def test_an_empty_conversation_is_nothing_to_keep() -> None:
    assert dump_conversation(session_of([]), LIMITS) == ""


TURN = ["One?", "1."]
REFUSED: dict[str, Any] = {
    "nothing": "",
    "no JSON": "{",
    "a number": "1",
    "a list": [TURN],
    "no picture": {"turns": [TURN]},
    "another field": {"turns": [TURN], "picture": False, "path": "/etc/passwd"},
    "a picture of its own": {"turns": [TURN], "picture": "data:image/png;base64,AA"},
    "a file": {"turns": [TURN], "picture": {"path": "/etc/passwd"}},
    "no turns": {"turns": [], "picture": False},
    "turns as a text": {"turns": "One?", "picture": False},
    "a turn as a text": {"turns": ["ab"], "picture": False},
    "half a turn": {"turns": [["One?"]], "picture": False},
    "a role": {"turns": [["system", "One?", "1."]], "picture": False},
    "an empty answer": {"turns": [["One?", " "]], "picture": False},
    "a number for an answer": {"turns": [["One?", 1]], "picture": False},
    "half a character": '{"turns": [["One?", "\\ud800"]], "picture": false}',
    "a null character": '{"turns": [["One?", "\\u0000"]], "picture": false}',
    "deep": {"turns": [["One?", "1."]], "picture": False, "x": json.loads("[" * 50 + "]" * 50)},
    "endless depth": "[" * 40_000,
    "too much": {"turns": [["One?", "x" * LIMITS.max_kept_bytes]], "picture": False},
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_in_a_sentence(case: str) -> None:
    given = REFUSED[case]
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(ChatError, match=r"what this browser kept cannot be read; got .+ Delete it"):
        parse_conversation(text, LIMITS)


def visitor_with(picture: bool) -> UserSession:
    visitor = AppState(Echo()).create_session(None)
    if picture:
        visitor.session.set_image(Image.new("RGB", (4, 4)))
    return visitor


@pytest.mark.parametrize(("kept", "shown"), [(False, False), (True, True), (True, False)])
def test_a_kept_conversation_goes_on_and_says_if_its_picture_is_lost(
    kept: bool, shown: bool
) -> None:
    visitor = visitor_with(shown)
    lines = visitor.restore(KeptConversation((Turn("One?", "1."), Turn("Two?", "2.")), kept))
    assert [line.role for line in lines] == ["user", "assistant", "user", "assistant", "notice"]
    assert ("its picture is not here any more" in lines[-1].text) == (kept and not shown)
    last = list(visitor.ask("Three?", None))[-1]
    assert [line.text for line in last if line.role == "user"] == ["One?", "Two?", "Three?"]
    assert last[-1].text == "I was given 5 messages"
    # where it was before the reload, at the first question
    assert [len(turn.images) for turn in visitor.session.turns] == [int(shown), 0, 0]


def test_markers_in_what_comes_back_are_text() -> None:
    visitor = visitor_with(False)
    visitor.restore(KeptConversation((Turn("What is <image>?", "An <image>."),), False))
    assert visitor.session.turns == [Turn("What is < image>?", "An < image>.")]


def test_what_has_begun_is_not_replaced() -> None:
    visitor = visitor_with(False)
    list(visitor.ask("Zero?", None))
    with pytest.raises(ChatError, match="a conversation has begun already"):
        visitor.restore(KeptConversation((Turn("One?", "1."),), False))
    assert [turn.question for turn in visitor.session.turns] == ["Zero?"]
