"""What the page's buttons do, without any page: the state of one visitor, and the steps of one turn.

A visitor's `Session` is the only memory there is; it lives in that visitor's state and nowhere else.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..chat import Engine, Sampling, Session
from ..errors import SoundError
from ..speech import Transcriber
from ..vision.pictures import open_picture

LONGEST_ANSWER = 256  # tokens
_REMOTE = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|<[a-zA-Z/][^>]*>")
_LONE_NUMBER = re.compile(r"^([ \t]*\d+)\.[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Said:
    """One line of the visible conversation."""

    who: str
    text: str


class Visitor:
    """One person's session, which picture it has looked at, and a way to stop the answer that is being made."""

    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine, Sampling(max_new_tokens=LONGEST_ANSWER))
        self.stop = threading.Event()
        self.refused: Path | None = None
        self._picture: Path | None = None

    def look(self, picture: Path | None) -> None:
        """Reads and encodes the picture if it is another one than before. Raises PictureError for what cannot be read."""
        if picture == self._picture:
            return
        self.refused = picture
        self.session.show(None if picture is None else open_picture(picture, name="The upload"))
        self.refused, self._picture = None, picture

    def ask(self, question: str, picture: Path | None) -> Iterator[list[Said]]:
        """The conversation after each piece of the answer; the first one holds the question alone. Raises PhisenseError."""
        self.look(picture)
        notice = self.session.notice
        self.stop = stop = threading.Event()
        pieces = self.session.ask(question, stop)
        notices = [text for text in (notice, self.session.notice) if text]
        before = self.conversation() + [Said("notice", text) for text in notices]
        asked = [*before, Said("user", question.strip())]
        yield asked
        said = ""
        try:
            for piece in pieces:
                said += piece
                yield [*asked, Said("assistant", tame(said.strip()))]
        finally:
            pieces.close()  # type: ignore[attr-defined]
        if not said.strip():
            yield [*asked, Said("notice", "Stopped before a word." if stop.is_set() else "The model had nothing to say.")]

    def conversation(self) -> list[Said]:
        """What the model remembers, as it is shown."""
        return [said for turn in self.session.turns for said in (Said("user", turn.question), Said("assistant", tame(turn.answer)))]

    def clear(self) -> None:
        self.stop.set()
        self.session.clear()


def transcribe(ears: Transcriber | None, sound: Path | None) -> str:
    """What is said in a recording. Raises SoundError for no recording, or one in which nothing is heard."""
    if ears is None:
        raise SoundError("this page has no ears", do="Start it with --speech and a Whisper")
    if sound is None:
        raise SoundError("there is no recording yet", do="Record a question or upload one")
    return ears.transcribe(sound, name="The recording").text


def tame(text: str) -> str:
    """For a page that renders Markdown: links, pictures and tags become plain words, so that an answer never makes a browser fetch
    anything; and a line such as "2." stays a number, where Markdown would begin a list and show nothing to copy.
    """
    return _LONE_NUMBER.sub(r"\1\.", _REMOTE.sub(lambda found: found.group(1) or "", text))
