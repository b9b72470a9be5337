"""Terminal chat: streams the answers; `/help` lists the commands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ..console import SafeConsole, escape_controls
from ..errors import PhisenseError
from ..vision.image_io import open_image_with_notes
from .session import ChatSession

HELP = """/image FILE   show a picture, or one more, with the next question
/images       list the pictures, as the model numbers them
/drop NUMBER  take a picture out; what was said stays
/clear        forget what was said; the pictures stay
/new          begin anew: no pictures, nothing said
/quit         leave (or Ctrl-D); Ctrl-C stops an answer"""


def run_terminal_chat(
    session: ChatSession, console: SafeConsole, read: Callable[[str], str] = input
) -> None:
    """Run until `/quit` or the end of input."""
    console.print(
        f"{session.engine.name}: {session.engine.picture_tokens} tokens a picture, window"
        f" {session.engine.window}. /help",
        style="dim",
    )
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _run_command(session, console, line)
            elif line:
                _print_answer(session, console, line)
        except PhisenseError as error:
            console.print(escape_controls(str(error), lines=False), style="red")


def _run_command(session: ChatSession, console: SafeConsole, line: str) -> None:
    verb, _, rest = line.partition(" ")
    if verb == "/image" and rest:
        path = Path(rest.strip()).expanduser()
        opened = open_image_with_notes(path)
        number = session.add_image(opened.image, path.name)
        _tell(console, f"Picture {number}: {path.name}")
        for remark in opened.notes:
            console.print(remark, style="yellow")
    elif verb == "/images":
        for number, image in enumerate(session.images, 1):
            _tell(console, f"Picture {number}: {image.name}")
        if not session.has_image:
            _tell(console, "No pictures.")
    elif verb == "/drop" and rest.strip().isdecimal():
        session.remove_image(int(rest))
        left = len(session.images)
        _tell(console, f"Taken out; {left} picture{'' if left == 1 else 's'} left.")
    elif verb == "/clear":
        session.clear()
        _tell(console, "Forgotten.")
    elif verb == "/new":
        session.set_image(None)
        _tell(console, "A new conversation.")
    else:
        console.print(HELP)


def _tell(console: SafeConsole, words: str) -> None:
    console.print(escape_controls(words, lines=False), style="dim", markup=False)


def _print_answer(session: ChatSession, console: SafeConsole, question: str) -> None:
    stop = threading.Event()
    pieces = session.ask(question, stop)
    if session.notice:
        _tell(console, session.notice)
    try:
        for piece in pieces:
            console.out(piece, end="")
    except KeyboardInterrupt:
        stop.set()
        console.out(" [stopped]", end="")
    finally:
        getattr(pieces, "close", lambda: None)()
    console.out("")
