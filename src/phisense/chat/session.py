"""One person's conversation: what was asked and answered, the picture it is about, and what still fits the model's window."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from ..conversations import IMAGE, Message
from ..errors import ChatError
from .engine import Engine, Sampling, Seen

LONGEST_QUESTION = 8_000  # characters


@dataclass(frozen=True, slots=True)
class Turn:
    question: str
    answer: str


@dataclass(eq=False)
class Session:
    """`turns` are what the model really receives, oldest first. `notice` is what the user should know about the last turn.

    A conversation is about one picture, as the training data's are: with another picture it begins anew.
    """

    engine: Engine
    sampling: Sampling = field(default_factory=Sampling)
    turns: list[Turn] = field(default_factory=list)
    notice: str | None = None
    _seen: Seen | None = None

    @property
    def has_picture(self) -> bool:
        return self._seen is not None

    def show(self, picture: Image | None) -> None:
        """Changes, or takes away, the picture; the turns about the former one are forgotten."""
        self._seen = None if picture is None else self.engine.see(picture)
        self.notice = "A new picture: the conversation about the former one is over." if self.turns else None
        self.turns = []

    def clear(self) -> None:
        """Forgets the turns; the picture stays."""
        self.turns = []
        self.notice = None

    def rewind(self, turns: int) -> None:
        """Remembers the first so many turns only."""
        del self.turns[turns:]
        self.notice = None

    def ask(self, question: str, stop: threading.Event | None = None, temperature: float | None = None) -> Iterator[str]:
        """The answer, piece by piece. However it ends, what was said of it is remembered; `stop` or closing the iterator ends it.

        `temperature` is for this answer alone.

        Raises ChatError for an empty question or one that does not fit the model's window even alone.
        """
        text = self.engine.defuse(question.strip())
        if not text:
            raise ChatError("the question is empty", do="Type or say something")
        if len(text) > LONGEST_QUESTION:
            raise ChatError(
                "the question is too long", got=f"{len(text):,} characters", wanted=f"at most {LONGEST_QUESTION:,}", do="Ask in fewer words"
            )
        room = self._make_room(text)
        warmth = self.sampling.temperature if temperature is None else temperature
        sampling = Sampling(min(self.sampling.max_new_tokens, room), warmth, self.sampling.top_p)
        return self._answer(text, sampling, stop or threading.Event())

    def gaze(self) -> Any:
        """Where on the picture the last answer looked, a grid of weights. Raises ChatError if there is none, or the engine cannot tell."""
        tell = getattr(self.engine, "gaze", None)
        if tell is None:
            raise ChatError("this engine does not tell where it looks", do="Use the torch engine")
        if self._seen is None or not self.turns:
            raise ChatError("there is no answer about a picture yet", do="Show one and ask")
        last = self.turns[-1]
        messages = self._messages(last.question, self.turns[:-1])
        return tell([*messages, Message("assistant", last.answer)], self._pictures())

    def _answer(self, text: str, sampling: Sampling, stop: threading.Event) -> Iterator[str]:
        said = ""
        pieces = self.engine.stream(self._messages(text), self._pictures(), sampling, stop, self)
        try:
            for piece in pieces:
                said += piece
                yield piece
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            if said.strip():
                self.turns.append(Turn(text, self.engine.defuse(said.strip())))  # it may spell a marker in letters

    def _make_room(self, text: str) -> int:
        """Lets the oldest turns go until the question and an answer fit; returns the tokens left for the answer."""
        least = min(64, self.sampling.max_new_tokens)
        gone = 0
        while (room := self.engine.window - self.engine.count(self._messages(text, self.turns[gone:]), self._pictures())) < least:
            if gone == len(self.turns):
                raise ChatError(
                    "the question does not fit the model's window",
                    got=f"{self.engine.window - room} tokens",
                    wanted=f"at most {self.engine.window - least}",
                    do="Ask in fewer words",
                )
            gone += 1
        del self.turns[:gone]
        self.notice = f"The conversation is long: the model no longer remembers the first {gone} of these turns." if gone else None
        return room

    def _messages(self, text: str, turns: Sequence[Turn] | None = None) -> list[Message]:
        """The picture stays with the first question that is left."""
        turns = self.turns if turns is None else turns
        messages = [m for turn in turns for m in (Message("user", turn.question), Message("assistant", turn.answer))]
        messages.append(Message("user", text))
        if self._seen is not None:
            messages[0] = Message("user", f"{IMAGE}\n{messages[0].text}")
        return messages

    def _pictures(self) -> list[Seen]:
        return [] if self._seen is None else [self._seen]
