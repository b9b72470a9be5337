"""One user's conversation: its turns, its image, and truncation to the context window."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from ..conversations import IMAGE, Message
from ..errors import ChatError
from .engine import EncodedImage, Engine, Sampling

MAX_QUESTION_LENGTH = 8_000  # characters


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the model's answer."""

    question: str
    answer: str


@dataclass(eq=False)
class ChatSession:
    """One user's conversation with a model. `turns` is what the model receives, oldest first;
    `notice` is a message for the user about the last turn.

    A conversation is about one image, as in the training data: setting another image starts a new
    conversation.
    """

    engine: Engine
    sampling: Sampling = field(default_factory=Sampling)
    turns: list[Turn] = field(default_factory=list)
    notice: str | None = None
    _image: EncodedImage | None = None

    @property
    def has_image(self) -> bool:
        """Whether the conversation has an image."""
        return self._image is not None

    def set_image(self, picture: Image | None) -> None:
        """Set or remove the image; turns about the previous image are dropped."""
        self.set_encoded_image(None if picture is None else self.engine.encode_image(picture))

    def set_encoded_image(self, image: EncodedImage | None) -> None:
        """As `set_image`, with what the engine made of an image: sessions that are given the same
        object share what is computed of it.
        """
        self._image = image
        self.notice = (
            "A new picture: the conversation about the former one is over." if self.turns else None
        )
        self.turns = []

    def clear(self) -> None:
        """Drop all turns; the image stays."""
        self.turns = []
        self.notice = None

    def truncate_to(self, turns: int) -> None:
        """Keep only the first `turns` turns."""
        del self.turns[turns:]
        self.notice = None

    def restore(self, turns: Sequence[Turn]) -> None:
        """Go on from turns that were kept elsewhere. Special tokens in them become text."""
        escape = self.engine.escape_special_tokens
        self.turns = [Turn(escape(turn.question), escape(turn.answer)) for turn in turns]
        self.notice = None

    def ask(
        self, question: str, stop: threading.Event | None = None, temperature: float | None = None
    ) -> Iterator[str]:
        """Yield the answer in chunks. `stop`, or closing the iterator, ends generation; what was
        generated until then is recorded as the turn's answer.

        `temperature` overrides the session's for this answer.

        Raises ChatError for an empty question, or one that alone does not fit the context window.
        """
        text = self.engine.escape_special_tokens(question.strip())
        if not text:
            raise ChatError("the question is empty", do="Type or say something")
        if len(text) > MAX_QUESTION_LENGTH:
            raise ChatError(
                "the question is too long",
                got=f"{len(text):,} characters",
                wanted=f"at most {MAX_QUESTION_LENGTH:,}",
                do="Ask in fewer words",
            )
        room = self._fit_window(text)
        warmth = self.sampling.temperature if temperature is None else temperature
        sampling = Sampling(min(self.sampling.max_new_tokens, room), warmth, self.sampling.top_p)
        return self._answer(text, sampling, stop or threading.Event())

    def attention_map(self) -> Any:
        """Return the last answer's attention over the image, a grid of weights. Raises ChatError if
        there is no answer, or the engine does not support it.
        """
        tell = self.engine.attention_map
        if tell is None:
            raise ChatError("this engine does not tell where it looks", do="Use the torch engine")
        if self._image is None or not self.turns:
            raise ChatError("there is no answer about a picture yet", do="Show one and ask")
        last = self.turns[-1]
        messages = self._messages(last.question, self.turns[:-1])
        return tell([*messages, Message("assistant", last.answer)], self._images())

    def _answer(self, text: str, sampling: Sampling, stop: threading.Event) -> Iterator[str]:
        said = ""
        pieces = self.engine.stream(self._messages(text), self._images(), sampling, stop, self)
        try:
            for piece in pieces:
                said += piece
                yield piece
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            if said.strip():
                # The answer may spell a special token in plain text.
                self.turns.append(Turn(text, self.engine.escape_special_tokens(said.strip())))

    def _fit_window(self, text: str) -> int:
        """Drop the oldest turns until the question and an answer fit; return the tokens left for
        the answer.
        """
        least = min(64, self.sampling.max_new_tokens)
        gone = 0
        while (
            room := self.engine.window
            - self.engine.count_tokens(self._messages(text, self.turns[gone:]), self._images())
        ) < least:
            if gone == len(self.turns):
                raise ChatError(
                    "the question does not fit the model's window",
                    got=f"{self.engine.window - room} tokens",
                    wanted=f"at most {self.engine.window - least}",
                    do="Ask in fewer words",
                )
            gone += 1
        del self.turns[:gone]
        self.notice = (
            f"The conversation is long: the model no longer remembers the first {gone} of these"
            " turns."
            if gone
            else None
        )
        return room

    def _messages(self, text: str, turns: Sequence[Turn] | None = None) -> list[Message]:
        """Build the messages; the image belongs to the first remaining question."""
        turns = self.turns if turns is None else turns
        messages = [
            m
            for turn in turns
            for m in (Message("user", turn.question), Message("assistant", turn.answer))
        ]
        messages.append(Message("user", text))
        if self._image is not None:
            messages[0] = Message("user", f"{IMAGE}\n{messages[0].text}")
        return messages

    def _images(self) -> list[EncodedImage]:
        return [] if self._image is None else [self._image]
