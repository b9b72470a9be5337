"""What the page's buttons do, without any page: the state of one visitor, and the steps of one turn.

A visitor's `Session` is the only memory there is; it lives in that visitor's state and nowhere else.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from ..chat import Engine, Sampling, Session
from ..errors import ChatError, PhisenseError, SoundError
from ..speech import Transcriber, Transcript
from ..vision.overlay import overlay
from ..vision.pictures import open_picture
from .limits import PICTURES, Limits
from .pump import Pump
from .taming import tame

AGAIN = 0.7  # temperature of another try, or it would be the same answer


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the visible conversation."""

    who: str
    text: str


@dataclass
class Room:
    """What all visitors share: the engine, the ears, the bounds; `live` are the answers that are being made."""

    engine: Engine
    ears: Transcriber | None = None
    limits: Limits = field(default_factory=Limits)
    live: set[Pump] = field(default_factory=set)
    visitors: weakref.WeakValueDictionary[str, Visitor] = field(default_factory=weakref.WeakValueDictionary)

    def visitor(self, key: str | None) -> Visitor:
        """A new one; `leave` finds it by `key`, the browser session's."""
        made = Visitor(self)
        if key is not None:
            self.visitors[key] = made
        return made

    def known(self, key: str | None) -> Visitor | None:
        """The one of this browser session whose first answer is still being made, so that its state was not handed back yet."""
        return self.visitors.get(key) if key is not None else None

    def leave(self, key: str | None) -> None:
        """The tab was closed: what is being made for it ends."""
        gone = self.visitors.pop(key, None) if key is not None else None
        if gone is not None:
            gone.stop.set()

    def transcribe(self, sound: Path | None) -> Transcript:
        """What is said in a recording. Raises SoundError for no recording, or one in which nothing is heard."""
        if self.ears is None:
            raise SoundError("this page has no ears", do="Start it with --speech and a Whisper")
        if sound is None:
            raise SoundError("there is no recording yet", do="Record a question or upload one")
        return self.ears.transcribe(sound, name="The recording")


class Visitor:
    """One person's session, which picture it has looked at, and a way to stop the answer that is being made."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.session = Session(room.engine, Sampling(max_new_tokens=room.limits.answer))
        self.stop = threading.Event()
        self.refused: Path | None = None
        self.timing = ""
        self.lines: list[Said] = []
        self._picture: Path | None = None
        self._pump: Pump | None = None
        self._cleared = 0

    def choose(self, temperature: float, tokens: int) -> None:
        """Bounded, whatever a page sends."""
        most = self.room.limits.longest_answer
        self.session.sampling = Sampling(max(1, min(tokens, most)), min(max(temperature, 0.0), 2.0))

    def look(self, picture: Path | None) -> None:
        """Reads and encodes the picture if it is another one than before. Raises PictureError for what cannot be read."""
        if picture == self._picture:
            return
        self.refused = picture
        self.session.show(None if picture is None else open_picture(picture, name="The upload", formats=PICTURES))
        self.refused, self._picture = None, picture
        if not self.session.turns:
            self.lines = []

    def ask(self, question: str, picture: Path | None, temperature: float | None = None) -> Iterator[list[Said]]:
        """The conversation after each piece of the answer, and now and then while none comes; the first one holds the question alone.

        Raises PhisenseError.
        """
        self._finish()
        self.stop = stop = threading.Event()  # before the picture is read, so that it can be stopped then, too
        self.look(picture)
        if len(question) > self.room.limits.question:
            got, wanted = f"{len(question):,} characters", f"at most {self.room.limits.question:,}"
            raise ChatError("the question is too long", got=got, wanted=wanted, do="Ask in fewer words")
        notice = self.session.notice
        pieces = self.session.ask(question, stop, temperature)
        notices = [text for text in (notice, self.session.notice) if text]
        asked = [*self.conversation(), *(Said("notice", text) for text in notices), Said("user", tame(question.strip()))]
        yield self._show(asked)
        yield from self._answer(asked, pieces)

    def _answer(self, asked: list[Said], pieces: Iterator[str]) -> Iterator[list[Said]]:
        began, first, said, cleared = time.monotonic(), 0.0, "", self._cleared
        self._pump = pump = Pump(pieces, self.stop, self.room.limits.seconds, self.room.live)
        for piece in pump:
            if cleared != self._cleared:
                return
            if piece and not said:
                first = time.monotonic() - began
            said += piece
            yield self._show([*asked, Said("assistant", tame(said.strip()) if said else f"… {time.monotonic() - began:.0f} s")])
        if cleared != self._cleared:  # what is gone stays gone
            return
        last = [*asked, Said("assistant", tame(said.strip()))] if said.strip() else asked
        if pump.late:
            last.append(Said("notice", f"Cut off after {self.room.limits.seconds:.0f} s, the most that one answer may take."))
        elif not said.strip():
            last.append(Said("notice", "Stopped before a word." if self.stop.is_set() else "The model had nothing to say."))
        if said:
            whole = time.monotonic() - began
            self.timing = f"First word after {first:.1f} s, the answer after {whole:.1f} s"
        yield self._show(last)

    def again(self, line: int, picture: Path | None, question: str | None = None) -> Iterator[list[Said]]:
        """Asks anew what line `line` of the conversation asked, or `question` in its place, and forgets what came after."""
        self._finish()
        kept, lines = list(self.session.turns), self.lines
        text = self.undo(line)
        temperature = max(AGAIN, self.session.sampling.temperature) if question is None else None
        try:
            steps = self.ask(text if question is None else question, picture, temperature)
            yield next(steps)
        except PhisenseError:  # nothing came of it, so nothing is forgotten
            self.session.turns, self.lines = kept, lines
            raise
        yield from steps

    def undo(self, line: int) -> str:
        """Forgets the question on line `line` and all after it; returns its text."""
        self._finish()
        turn = self._turn(line)
        turns = self.session.turns
        text = turns[turn].question if turn < len(turns) else self.lines[line].text
        self.session.rewind(turn)
        self._show(self.conversation())
        return text

    def where(self) -> Image:
        """The picture, with what the last answer looked at laid over it. Raises ChatError where that cannot be told."""
        self._finish()
        grid = self.session.gaze()
        assert self._picture is not None
        return overlay(open_picture(self._picture, name="The picture", formats=PICTURES), grid)

    def conversation(self) -> list[Said]:
        """What the model remembers, as it is shown."""
        return [said for turn in self.session.turns for said in (Said("user", tame(turn.question)), Said("assistant", tame(turn.answer)))]

    def clear(self) -> None:
        self._cleared += 1
        self.stop.set()
        self._finish()
        self.session.clear()
        self.lines, self.timing = [], ""

    def _turn(self, line: int) -> int:
        """Which question a line is, counted in those that the model remembers: lines of turns that had to leave are shown no more."""
        if not 0 <= line < len(self.lines) or self.lines[line].who != "user":
            raise ChatError("there is no such question", do="Choose one of the conversation's")
        return sum(said.who == "user" for said in self.lines[:line])

    def _show(self, lines: list[Said]) -> list[Said]:
        self.lines = lines
        return lines

    def _finish(self) -> None:
        """The former answer must be over, and its turn remembered, before the next begins."""
        if self._pump is not None:
            self._pump.stop.set()
            if not self._pump.wait(self.room.limits.seconds):
                raise ChatError("the former answer is still being stopped", do="Ask again in a moment")
            self._pump = None
