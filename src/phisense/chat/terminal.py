"""The conversation in a terminal: type, read the answer as it comes, `/help` for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..errors import PhisenseError
from ..vision.pictures import open_picture
from .session import Session

HELP = """/image FILE   look at another picture (the conversation begins anew)
/clear        forget what was said; the picture stays
/quit         leave (or Ctrl-D); Ctrl-C stops an answer"""


def talk(session: Session, console: Console, read: Callable[[str], str] = input) -> None:
    """Until `/quit` or the end of the input."""
    console.print(
        f"[dim]{session.engine.name}: {session.engine.picture_tokens} tokens a picture, window {session.engine.window}. /help[/dim]"
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
                _command(session, console, line)
            elif line:
                _answer(session, console, line)
        except PhisenseError as error:
            console.print(f"[red]{error}[/red]")


def _command(session: Session, console: Console, line: str) -> None:
    verb, _, rest = line.partition(" ")
    if verb == "/image" and rest:
        session.show(open_picture(Path(rest.strip()).expanduser()))
        console.print("[dim]Looking at it.[/dim]")
    elif verb == "/clear":
        session.clear()
        console.print("[dim]Forgotten.[/dim]")
    else:
        console.print(HELP, highlight=False)


def _answer(session: Session, console: Console, question: str) -> None:
    stop = threading.Event()
    pieces = session.ask(question, stop)
    if session.notice:
        console.print(f"[dim]{session.notice}[/dim]")
    try:
        for piece in pieces:
            console.out(piece, end="", highlight=False)
    except KeyboardInterrupt:
        stop.set()
        console.out(" [stopped]", end="")
    finally:
        getattr(pieces, "close", lambda: None)()
    console.out("")
