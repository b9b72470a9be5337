"""Texts on their way to a browser: an answer never makes it fetch or run anything, an error never tells where the server keeps what."""

from __future__ import annotations

import html
import logging
import re

from ..errors import PhisenseError

log = logging.getLogger(__name__)

_LINKED = re.compile(r"!?\[([^\]]*)\][ \t]*(?:\([^)]*(?:\)|$)|\[[^\]]*\])")
_TAG = re.compile(r"<[a-zA-Z/!?][^>]*>")
_DEFINITION = re.compile(r"^[ \t>*-]*\[[^\]]*\]:[^\n]*$", re.MULTILINE)
_LONE_NUMBER = re.compile(r"^([ \t]*\d+)\.[ \t]*$", re.MULTILINE)
_PLACE = re.compile(
    r"(?:[a-zA-Z][a-zA-Z0-9+.-]*://\S+|(?<![\w.])(?:[A-Za-z]:)?[/\\~][\w.~/\\-]*[\w~-]|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b)"
)


def tame(text: str) -> str:
    """For a page that renders Markdown: links, pictures, tags and what they refer to become plain words; and a line such as "2." stays a
    number, where Markdown would begin a list and show nothing to copy.
    """
    before = None
    while before != text:  # what is left when one is taken out may be another
        before = text
        text = _DEFINITION.sub("", _TAG.sub("", _LINKED.sub(lambda found: found.group(1), text)))
    text = re.sub(r"[\\\[\]<]", r"\\\g<0>", text)  # whatever way of writing a link or a tag is left is shown as it is written
    return _LONE_NUMBER.sub(r"\1\.", text.replace("://", r":\//"))


def told(error: Exception) -> str:
    """What a visitor is told of an error: its sentence without paths and addresses, or that something broke, as the log tells."""
    if not isinstance(error, PhisenseError):
        log.error("an answer broke", exc_info=error)
        return "Something broke here, and was written down. Ask again."
    return html.escape(_PLACE.sub("…", str(error)), quote=False)
