"""Terminal chat: streams the answers; `/help` lists the commands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ..console import SafeConsole, escape_controls
from ..errors import PhisenseError
from ..vision.image_io import open_image_with_notes
from .session import ChatSession

HELP = """/image FILE   look at another picture (the conversation begins anew)
/clear        forget what was said; the picture stays
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
        opened = open_image_with_notes(Path(rest.strip()).expanduser())
        session.set_image(opened.image)
        console.print("Looking at it.", style="dim")
        for remark in opened.notes:
            console.print(remark, style="yellow")
    elif verb == "/clear":
        session.clear()
        console.print("Forgotten.", style="dim")
    else:
        console.print(HELP)


def _print_answer(session: ChatSession, console: SafeConsole, question: str) -> None:
    stop = threading.Event()
    pieces = session.ask(question, stop)
    if session.notice:
        console.print(session.notice, style="dim")
    try:
        for piece in pieces:
            console.out(piece, end="")
    except KeyboardInterrupt:
        stop.set()
        console.out(" [stopped]", end="")
    finally:
        getattr(pieces, "close", lambda: None)()
    console.out("")
