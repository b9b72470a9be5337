"""UI-independent logic of the app: shared state, per-visitor sessions, and the steps of one turn.

A visitor's `ChatSession` is the only conversation memory; it is held in that visitor's state only.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from ..chat import ChatSession, Engine, Sampling
from ..chat.engine import EncodedImage
from ..errors import ChatError, PhisenseError, SoundError
from ..speech import Transcriber, Transcript
from ..units import format_seconds
from ..vision.image_io import open_image, open_image_with_notes
from ..vision.overlay import overlay
from .kept import KeptConversation
from .limits import PICTURE_FORMATS, Limits
from .sanitize import escape_markdown, sanitize_markdown, unescape_markdown
from .streaming import BackgroundStream

# Longest side in pixels of an attention overlay: blending takes several hundred bytes per pixel.
_MAX_OVERLAY_SIDE = 1024
_BACK = "Kept by this browser; go on where you were."
_LOST = (
    "Kept by this browser, but its picture is not here any more. You can read it, and go on in"
    " words; show the picture to begin anew about it."
)
RETRY_TEMPERATURE = 0.7  # minimum temperature of a retry; greedy decoding would repeat the answer


@dataclass(frozen=True, slots=True)
class ChatLine:
    """One displayed line of the conversation: `role` is user, assistant or notice."""

    role: str
    text: str


@dataclass
class AppState:
    """State shared by all sessions: engine, transcriber and limits. `active_streams` holds the
    answers being generated.
    """

    engine: Engine
    transcriber: Transcriber | None = None
    limits: Limits = field(default_factory=Limits)
    #: By the path of an example's file: the image as the engine keeps it, once it was shown.
    examples: dict[str, EncodedImage | None] = field(default_factory=dict)
    _encoding: threading.Lock = field(default_factory=threading.Lock)
    active_streams: set[BackgroundStream] = field(default_factory=set)
    sessions: weakref.WeakValueDictionary[str, UserSession] = field(
        default_factory=weakref.WeakValueDictionary
    )

    def encode(self, path: Path | None, picture: Image) -> EncodedImage:
        """The image as the engine keeps it; an example once for all visitors."""
        if str(path) not in self.examples:
            return self.engine.encode_image(picture)
        with self._encoding:
            found = self.examples[str(path)]
            if found is None:
                found = self.examples[str(path)] = self.engine.encode_image(picture)
        return found

    def create_session(self, key: str | None) -> UserSession:
        """Create a session; `close_session` finds it by `key`, the Gradio session hash."""
        made = UserSession(self)
        if key is not None:
            self.sessions[key] = made
        return made

    def find_session(self, key: str | None) -> UserSession | None:
        """Return the session of this session hash: Gradio has no state to pass while its first
        answer is still being generated.
        """
        return self.sessions.get(key) if key is not None else None

    def has_conversation(self, key: str) -> bool:
        """Whether the open session of this hash has a non-empty conversation."""
        found = self.sessions.get(key)
        return found is not None and bool(found.lines)

    def close_session(self, key: str | None) -> None:
        """Stop generation for a session whose tab was closed, and drop the session."""
        gone = self.sessions.pop(key, None) if key is not None else None
        if gone is not None:
            gone.stop.set()

    def transcribe(self, sound: Path | None, language: str | None = None) -> Transcript:
        """Transcribe a recording; `language` is detected if None.

        Raises SoundError if speech input is disabled, there is no recording, or no speech is found
        in it.
        """
        if self.transcriber is None:
            raise SoundError("this page has no ears", do="Start it with --speech and a Whisper")
        if sound is None:
            raise SoundError("there is no recording yet", do="Record a question or upload one")
        return self.transcriber.transcribe(sound, name="The recording", language=language)


class UserSession:
    """One visitor's session: its conversation, current image, and a stop event for the running
    generation.
    """

    def __init__(self, app: AppState) -> None:
        self.app = app
        self.session = ChatSession(
            app.engine, Sampling(max_new_tokens=app.limits.default_answer_tokens)
        )
        self.stop = threading.Event()
        self.rejected_image: Path | None = None
        self.timing = ""
        self.lines: list[ChatLine] = []
        self.image_path: Path | None = None
        # warnings about the image, shown with the next question
        self.image_warnings: list[str] = []
        self._stream: BackgroundStream | None = None
        self._clear_count = 0
        self._turn = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One event of a visitor after another, however many visitors are answered at once: an
        image that is read while its question is answered would end the conversation. May be left
        in another thread than it was entered in, as generators require.

        Raises ChatError if the one before does not end.
        """
        if not self._turn.acquire(timeout=self.app.limits.max_answer_seconds):
            raise ChatError("the former answer is still being stopped", do="Ask again in a moment")
        try:
            yield
        finally:
            self._turn.release()

    def set_sampling(self, temperature: float, tokens: float) -> None:
        """Set the sampling parameters, clamped to the limits; non-finite values select the
        defaults.
        """
        limits = self.app.limits
        asked = tokens if math.isfinite(tokens) else limits.default_answer_tokens
        warmth = temperature if math.isfinite(temperature) else 0.0
        self.session.sampling = Sampling(
            int(max(1, min(asked, limits.max_answer_tokens))), min(max(warmth, 0.0), 2.0)
        )

    def set_image(self, image_path: Path | None) -> None:
        """Read and encode the image if it changed. Raises PictureError if it cannot be read."""
        if image_path == self.image_path:
            return
        self.rejected_image = image_path
        opened = (
            None
            if image_path is None
            else open_image_with_notes(image_path, name="The upload", formats=PICTURE_FORMATS)
        )
        self.session.set_encoded_image(
            None if opened is None else self.app.encode(image_path, opened.image)
        )
        self.rejected_image, self.image_path, self.image_warnings = (
            None,
            image_path,
            opened.notes if opened else [],
        )
        if not self.session.turns:
            self.lines = []

    def ask(
        self, question: str, image_path: Path | None, temperature: float | None = None
    ) -> Iterator[list[ChatLine]]:
        """Yield the conversation after each chunk of the answer, and periodically while none
        arrives. The first item ends with the question.

        Raises PhisenseError.
        """
        self._wait_for_answer()
        # Set before the image is read, so that reading can be stopped as well.
        self.stop = stop = threading.Event()
        self.set_image(image_path)
        if len(question) > self.app.limits.max_question_length:
            got, wanted = (
                f"{len(question):,} characters",
                f"at most {self.app.limits.max_question_length:,}",
            )
            raise ChatError(
                "the question is too long", got=got, wanted=wanted, do="Ask in fewer words"
            )
        notice = self.session.notice
        pieces = self.session.ask(question, stop, temperature)
        notices = [*self.image_warnings, *(text for text in (notice, self.session.notice) if text)]
        self.image_warnings = []
        asked = [
            *self.conversation(),
            *(ChatLine("notice", text) for text in notices),
            ChatLine("user", escape_markdown(question.strip())),
        ]
        yield self._set_lines(asked)
        yield from self._answer(asked, pieces)

    def _answer(self, asked: list[ChatLine], chunks: Iterator[str]) -> Iterator[list[ChatLine]]:
        began, first, said, cleared = time.monotonic(), 0.0, "", self._clear_count
        self._stream = pump = BackgroundStream(
            chunks, self.stop, self.app.limits.max_answer_seconds, self.app.active_streams
        )
        for piece in pump:
            if cleared != self._clear_count:
                return
            if piece and not said:
                first = time.monotonic() - began
            said += piece
            yield self._set_lines(
                [
                    *asked,
                    ChatLine(
                        "assistant",
                        sanitize_markdown(said.strip())
                        if said
                        else f"… {format_seconds(time.monotonic() - began)}",
                    ),
                ]
            )
        if cleared != self._clear_count:  # cleared meanwhile: do not restore the lines
            return
        last = (
            [*asked, ChatLine("assistant", sanitize_markdown(said.strip()))]
            if said.strip()
            else asked
        )
        if pump.timed_out:
            last.append(
                ChatLine(
                    "notice",
                    f"Cut off after {format_seconds(self.app.limits.max_answer_seconds)}, the most"
                    " that one answer may take.",
                )
            )
        elif not said.strip():
            last.append(
                ChatLine(
                    "notice",
                    (
                        "Stopped before a word."
                        if self.stop.is_set()
                        else "The model had nothing to say."
                    ),
                )
            )
        if said:
            whole = time.monotonic() - began
            self.timing = (
                f"First word after {format_seconds(first)},"
                f" the answer after {format_seconds(whole)}"
            )
        yield self._set_lines(last)

    def retry(
        self, line: int, image_path: Path | None, question: str | None = None
    ) -> Iterator[list[ChatLine]]:
        """Regenerate the answer to the question on line `line`, or answer `question` instead of it.
        Later turns are dropped.
        """
        self._wait_for_answer()
        kept, added = list(self.session.turns), self.session.added
        lines, image = self.lines, self.image_path
        text = self.undo(line)
        temperature = (
            max(RETRY_TEMPERATURE, self.session.sampling.temperature) if question is None else None
        )
        try:
            steps = self.ask(text if question is None else question, image_path, temperature)
            yield next(steps)
        except PhisenseError:  # failed before generation: restore the turns
            self.session.turns, self.session.added = kept, added
            self.lines, self.image_path = lines, image
            raise
        yield from steps

    def undo(self, line: int) -> str:
        """Remove the question on line `line` and everything after it; return its text."""
        self._wait_for_answer()
        turn = self._turn_index(line)
        turns = self.session.turns
        text = (
            turns[turn].question if turn < len(turns) else unescape_markdown(self.lines[line].text)
        )
        self.session.truncate_to(turn)
        self._set_lines(self.conversation())
        return text

    def restore(self, kept: KeptConversation) -> list[ChatLine]:
        """Go on with a conversation that the visitor's browser kept. Raises ChatError if another
        has begun.
        """
        self._wait_for_answer()
        if self.session.turns:
            raise ChatError("a conversation has begun already", do="Clear it, and reload the page")
        self.session.restore(kept.turns)
        lost = kept.picture and not self.session.has_image
        return self._set_lines([*self.conversation(), ChatLine("notice", _LOST if lost else _BACK)])

    def attention_overlay(self) -> Image:
        """Overlay the attention map of the last answer on the image. Raises ChatError if the engine
        has none or there is no answer.
        """
        self._wait_for_answer()
        grid = self.session.attention_maps()[-1]  # of the page's one image
        assert self.image_path is not None
        picture = open_image(self.image_path, name="The picture", formats=PICTURE_FORMATS)
        picture.thumbnail((_MAX_OVERLAY_SIDE, _MAX_OVERLAY_SIDE))
        return overlay(picture, grid)

    def conversation(self) -> list[ChatLine]:
        """The turns in the model's context, as display lines."""
        return [
            said
            for turn in self.session.turns
            for said in (
                ChatLine("user", escape_markdown(turn.question)),
                ChatLine("assistant", sanitize_markdown(turn.answer)),
            )
        ]

    def clear(self) -> None:
        """Stop the running generation and clear the conversation."""
        self._clear_count += 1
        self.stop.set()
        self._wait_for_answer()
        self.session.clear()
        self.lines, self.timing = [], ""

    def _turn_index(self, line: int) -> int:
        """Return the turn index of a question line. Turns that no longer fit the context window are
        not displayed, so lines and turns agree.
        """
        if not 0 <= line < len(self.lines) or self.lines[line].role != "user":
            raise ChatError("there is no such question", do="Choose one of the conversation's")
        return sum(said.role == "user" for said in self.lines[:line])

    def _set_lines(self, lines: list[ChatLine]) -> list[ChatLine]:
        self.lines = lines
        return lines

    def _wait_for_answer(self) -> None:
        """Stop the previous generation and wait until its turn is recorded. Raises ChatError on
        timeout.
        """
        if self._stream is not None:
            self._stream.stop.set()
            if not self._stream.wait(self.app.limits.max_answer_seconds):
                raise ChatError(
                    "the former answer is still being stopped", do="Ask again in a moment"
                )
            self._stream = None
