"""What each event of the page calls: the steps of `talk` for one visitor, errors as passing notices, conversations as Gradio has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import PhisenseError
from .talk import Room, Said, Visitor
from .taming import told

Messages = list[dict[str, Any]]
Kept = Visitor | None


class Steps:
    """Over one room. `settings` of the page are a temperature and the longest answer in tokens."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def ask(
        self, text: str, path: str | None, warmth: float, tokens: float, state: Kept, request: gr.Request
    ) -> Iterator[tuple[Messages, str, str, Visitor]]:
        """Streams the conversation; the box is emptied once the question has been taken."""
        me = self._visitor(state, request, warmth, tokens)
        yield from self._stream(me, lambda: me.ask(text or "", _path(path)), keep=text)

    def ask_heard(
        self, text: str, at_once: bool, path: str | None, warmth: float, tokens: float, state: Kept, request: gr.Request
    ) -> Iterator[tuple[Messages, str, str, Visitor]]:
        """Sends what was heard, if that is wanted; else it waits in its box to be changed and sent."""
        me = self._visitor(state, request, warmth, tokens)
        if not text or not at_once:
            yield messages(me.lines), text, me.timing, me
            return
        yield from self._stream(me, lambda: me.ask(text, _path(path)), keep=text)

    def retry(
        self, path: str | None, box: str, warmth: float, tokens: float, state: Kept, request: gr.Request, event: gr.RetryData
    ) -> Iterator[tuple[Messages, str, str, Visitor]]:
        me = self._visitor(state, request, warmth, tokens)
        yield from self._stream(me, lambda: me.again(_line(event.index), _path(path)), keep=box, then=box)

    def edit(
        self, path: str | None, box: str, warmth: float, tokens: float, state: Kept, request: gr.Request, event: gr.EditData
    ) -> Iterator[tuple[Messages, str, str, Visitor]]:
        me = self._visitor(state, request, warmth, tokens)
        new = event.value if isinstance(event.value, str) else ""
        yield from self._stream(me, lambda: me.again(_line(event.index), _path(path), new), keep=box, then=box)

    def undo(self, state: Kept, request: gr.Request, event: gr.UndoData) -> tuple[Messages, str, Visitor]:
        """The question goes back into the box."""
        me = self._visitor(state, request)
        try:
            text = me.undo(_line(event.index))
        except PhisenseError as error:
            gr.Warning(told(error))
            text = ""
        return messages(me.lines), text, me

    def look(self, path: str | None, state: Kept, request: gr.Request) -> tuple[Messages, Visitor]:
        """A picture was put there or taken away; it is encoded while the visitor types."""
        me = self._visitor(state, request)
        if path is not None and Path(path) == me.refused:  # said already; the browser reports a change twice
            return messages(me.lines), me
        try:
            me.look(_path(path))
        except Exception as error:
            gr.Warning(told(error))
        return messages(me.lines), me

    def listen(self, path: str | None) -> tuple[str, str]:
        """What was heard, and in which language."""
        try:
            heard = self.room.transcribe(_path(path))
        except Exception as error:
            gr.Warning(told(error))
            return "", ""
        return heard.text, f"Heard {heard.spoken}, {heard.seconds:.1f} s"

    def where(self, state: Kept) -> Any:
        try:
            if state is None:
                raise PhisenseError("there is no answer yet", do="Ask something")
            return gr.update(value=state.where(), visible=True)
        except Exception as error:
            gr.Warning(told(error))
            return gr.update(visible=False)

    def halt(self, state: Kept, request: gr.Request) -> None:
        me = state or self.room.known(request.session_hash)
        if me is not None:
            me.stop.set()

    def clear(self, state: Kept, request: gr.Request) -> tuple[Messages, str, Visitor]:
        me = self._visitor(state, request)
        try:
            me.clear()
        except PhisenseError as error:
            gr.Warning(told(error))
        return messages(me.lines), "", me

    def leave(self, request: gr.Request) -> None:
        self.room.leave(request.session_hash)

    def _visitor(self, state: Kept, request: gr.Request, warmth: float | None = None, tokens: float | None = None) -> Visitor:
        me = state or self.room.known(request.session_hash) or self.room.visitor(request.session_hash)
        if warmth is not None and tokens is not None:
            me.choose(warmth, int(tokens))
        return me

    def _stream(
        self, me: Visitor, steps: Callable[[], Iterator[list[Said]]], *, keep: str, then: str = ""
    ) -> Iterator[tuple[Messages, str, str, Visitor]]:
        """`keep` stays in the box if nothing comes of it, else it holds `then`."""
        try:
            for lines in steps():
                yield messages(lines), then, me.timing, me
        except Exception as error:
            gr.Warning(told(error))
            yield messages(me.lines), keep, me.timing, me


def messages(lines: Sequence[Said]) -> Messages:
    """Gradio's message format; a notice is a line of the assistant's in italics, and no turn of the model."""
    return [
        {"role": "user" if line.who == "user" else "assistant", "content": f"*{line.text}*" if line.who == "notice" else line.text}
        for line in lines
    ]


def _path(path: str | None) -> Path | None:
    return Path(path) if path else None


def _line(index: Any) -> int:
    return index if isinstance(index, int) else -1
