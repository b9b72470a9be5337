"""One user's conversation: its turns, its images, and truncation to the context window."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL.Image import Image

from ..conversations import IMAGE, Message
from ..errors import ChatError
from .engine import EncodedImage, Engine, Sampling

MAX_QUESTION_LENGTH = 8_000  # characters


@dataclass(frozen=True, slots=True, eq=False)
class ChatImage:
    """An image as the engine keeps it, and the name under which the user knows it."""

    encoded: EncodedImage
    name: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, with the images that came with it, and the model's answer. Turns of the same
    words are equal.
    """

    question: str
    answer: str
    images: tuple[ChatImage, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What of a conversation fits the window: its last turns, the images of the next question,
    those that left, and the tokens left for the answer.
    """

    turns: list[Turn]
    added: list[ChatImage]
    lost: list[ChatImage]
    room: int


@dataclass(eq=False)
class ChatSession:
    """One user's conversation with a model. `turns` is what the model receives, oldest first;
    `added` are the images of the next question; `notice` is a message for the user about the last
    turn.

    Images may come with any question. They are numbered from 1, as the model sees them.
    """

    engine: Engine
    sampling: Sampling = field(default_factory=Sampling)
    turns: list[Turn] = field(default_factory=list)
    added: list[ChatImage] = field(default_factory=list)
    notice: str | None = None

    @property
    def images(self) -> list[ChatImage]:
        """The conversation's images in order: those of its turns, and of the next question."""
        return [*(image for turn in self.turns for image in turn.images), *self.added]

    @property
    def has_image(self) -> bool:
        """Whether the conversation has an image."""
        return bool(self.images)

    def add_image(self, picture: Image, name: str = "") -> int:
        """Add an image to the next question; the conversation goes on. Returns its number."""
        return self.add_encoded_image(self.engine.encode_image(picture), name)

    def add_encoded_image(self, image: EncodedImage, name: str = "") -> int:
        """As `add_image`, with what the engine made of an image: sessions that are given the same
        object share what is computed of it.
        """
        self.added = [*self.added, ChatImage(image, name)]
        return len(self.images)

    def remove_image(self, number: int) -> None:
        """Take an image out of the conversation; what was said stays. Raises ChatError if there is
        no image of that number.
        """
        images = self.images
        if not 1 <= number <= len(images):
            raise ChatError(
                "there is no such picture",
                got=f"picture {number}",
                wanted=f"1 to {len(images)}" if images else "none, since there is no picture",
                do="Name one of the conversation's",
            )
        place = number - 1
        for i, turn in enumerate(self.turns):
            if place < len(turn.images):
                left = (*turn.images[:place], *turn.images[place + 1 :])
                self.turns[i] = replace(turn, images=left)
                return
            place -= len(turn.images)
        self.added = [*self.added[:place], *self.added[place + 1 :]]

    def set_image(self, picture: Image | None) -> None:
        """Begin a new conversation about an image, or about none."""
        self.set_encoded_image(None if picture is None else self.engine.encode_image(picture))

    def set_encoded_image(self, image: EncodedImage | None) -> None:
        """As `set_image`, with what the engine made of an image, as in `add_encoded_image`."""
        self.added = [] if image is None else [ChatImage(image)]
        self.notice = (
            "A new picture: the conversation about the former one is over." if self.turns else None
        )
        self.turns = []

    def clear(self) -> None:
        """Drop all turns; the images stay, for the next question."""
        self.added, self.turns = self.images, []
        self.notice = None

    def truncate_to(self, turns: int) -> None:
        """Keep only the first `turns` turns. The images of the first dropped question stay, for it
        may be asked again; those of later ones go.
        """
        if turns < len(self.turns):
            self.added = [*self.turns[turns].images, *self.added]
        del self.turns[turns:]
        self.notice = None

    def restore(self, turns: Sequence[Turn]) -> None:
        """Go on from turns that were kept elsewhere, of which the first was asked about the images
        of the next question. Special tokens in them become text.
        """
        escape = self.engine.escape_special_tokens
        self.turns = [Turn(escape(turn.question), escape(turn.answer)) for turn in turns]
        if self.turns:
            self.turns[0] = replace(self.turns[0], images=tuple(self.added))
            self.added = []
        self.notice = None

    def ask(
        self, question: str, stop: threading.Event | None = None, temperature: float | None = None
    ) -> Iterator[str]:
        """Yield the answer in chunks. `stop`, or closing the iterator, ends generation; what was
        generated until then is recorded as the turn's answer.

        What no longer fits the context window leaves first, and `notice` says what: whole turns
        with their images, the oldest first. The last images of a conversation stay.

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
        fitted = self._fit_window(text)
        self.notice = _notice(len(self.turns) - len(fitted.turns), fitted.lost, self.images)
        self.turns, self.added = fitted.turns, fitted.added
        warmth = self.sampling.temperature if temperature is None else temperature
        most = min(self.sampling.max_new_tokens, fitted.room)
        sampling = Sampling(most, warmth, self.sampling.top_p)
        return self._answer(text, sampling, stop or threading.Event())

    def attention_maps(self) -> list[Any]:
        """Where the last answer looked: for each image of the conversation's turns a grid of
        weights; all weights together have the sum 1.

        Raises ChatError if there is no answer about an image, or the engine does not support it.
        """
        tell = self.engine.attention_map
        if tell is None:
            raise ChatError("this engine does not tell where it looks", do="Use the torch engine")
        seen = [image.encoded for turn in self.turns for image in turn.images]
        if not seen:
            raise ChatError("there is no answer about a picture yet", do="Show one and ask")
        return list(tell(_messages(self.turns), seen))

    def _answer(self, text: str, sampling: Sampling, stop: threading.Event) -> Iterator[str]:
        said, added = "", list(self.added)
        pieces = self.engine.stream(*self._prompt(text), sampling, stop, self)
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
                answer = self.engine.escape_special_tokens(said.strip())
                self.turns.append(Turn(text, answer, tuple(added)))
                self.added = [image for image in self.added if image not in added]

    def _prompt(self, text: str) -> tuple[list[Message], list[EncodedImage]]:
        """The messages of the conversation and a question, and their images."""
        messages = [*_messages(self.turns), _question(text, self.added)]
        return messages, [image.encoded for image in self.images]

    def _fit_window(self, text: str) -> _Fitted:
        """Drop the oldest turns until the question and an answer fit. Their images leave with them
        if later ones came; else they stay, with the oldest question that does, and of several the
        oldest leave when all turns have left.
        """
        least = min(64, self.sampling.max_new_tokens)
        turns, added = list(self.turns), list(self.added)
        lost: list[ChatImage] = []
        while (room := self.engine.window - self._count_tokens(text, turns, added)) < least:
            if turns:
                gone = turns.pop(0)
                if added or any(turn.images for turn in turns):
                    lost += gone.images
                elif turns:
                    turns[0] = replace(turns[0], images=gone.images)
                else:
                    added = list(gone.images)
            elif not self.added and len(added) > 1:
                lost.append(added.pop(0))
            else:
                raise ChatError(
                    "the question does not fit the model's window",
                    got=f"{self.engine.window - room} tokens",
                    wanted=f"at most {self.engine.window - least}",
                    do="Ask in fewer words" + (", or about fewer pictures" if added else ""),
                )
        return _Fitted(turns, added, lost, room)

    def _count_tokens(self, text: str, turns: Sequence[Turn], added: Sequence[ChatImage]) -> int:
        """The tokens of the prompt for a question behind some turns."""
        images = [*(image for turn in turns for image in turn.images), *added]
        messages = [*_messages(turns), _question(text, added)]
        return self.engine.count_tokens(messages, [image.encoded for image in images])


def _messages(turns: Sequence[Turn]) -> list[Message]:
    return [
        message
        for turn in turns
        for message in (_question(turn.question, turn.images), Message("assistant", turn.answer))
    ]


def _question(text: str, images: Sequence[ChatImage]) -> Message:
    """A question behind its images, as in the training data."""
    return Message("user", "\n".join([*[IMAGE] * len(images), text]))


def _notice(gone: int, lost: Sequence[ChatImage], images: Sequence[ChatImage]) -> str | None:
    """What the model no longer has of a conversation with these `images`: its first `gone` turns,
    and the images `lost`, which are the first.
    """
    said = (
        f"The conversation is long: the model no longer remembers the first {gone} of these turns."
    )
    if not lost:
        return said if gone else None
    numbers = "picture 1" if len(lost) == 1 else f"pictures 1 to {len(lost)}"
    names = ", ".join(image.name for image in lost if image.name)
    left = f"It no longer sees {numbers}{f' ({names})' if names else ''}"
    if len(lost) < len(images):
        left += f": what was picture {len(lost) + 1} is picture 1 now"
    return f"{said} {left}."
