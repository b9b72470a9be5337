"""Sanitizers for output: an answer cannot make the browser load or run anything, and an error
message does not reveal paths or addresses.
"""

from __future__ import annotations

import html
import logging
import re

from ..errors import PhisenseError

_logger = logging.getLogger(__name__)

# Every repetition is bounded against catastrophic backtracking. What exceeds a bound is not removed
# but escaped.
_LINK = re.compile(
    r"!?\[([^\[\]\n]{0,200})\][ \t]{0,8}(?:\([^()\n]{0,500}(?:\)|$)|\[[^\[\]\n]{0,200}\])"
)
_DEFINITION = re.compile(r"^[ \t>*-]{0,40}\[[^\]\n]{0,200}\]:[^\n]*$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]{0,40})[^`\n]*$")
# no |: a table cell would split the code span
_CODE = re.compile(r"(?<!`)(`{1,8})(?!`)[^`\n|]{1,500}(?<!`)\1(?!`)")
_LONE_NUMBER = re.compile(r"^([ \t]{0,40}\d{1,40})\.[ \t]*$", re.MULTILINE)
_ENTITY = re.compile(r"&(?=#?\w{1,40};)")
_BLOCK_START = re.compile(r"^([ \t]*)(?:(\d{1,9})(?=[.)])|(?=[#+=:>-]))", re.MULTILINE)
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])|&nbsp;")
_MAX_ERROR_LENGTH = 2_000  # characters of an error
_PATH_OR_URL = re.compile(
    r"(?:[a-zA-Z][a-zA-Z0-9+.-]{0,30}://\S+|(?<![\w.])(?:[A-Za-z]:)?[/\\~][\w.~/\\-]*[\w~-]|"
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b)"
)


def escape_markdown(text: str) -> str:
    """Escape a visitor's text so that a Markdown renderer shows it verbatim. Collapsible spaces
    become no-break spaces; other characters stay as they are.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\\`*_~<\[\]|&@]", r"\\\g<0>", text)
    text = _BLOCK_START.sub(lambda found: f"{found[1]}{found[2] or ''}\\", text)
    text = re.sub(
        r"^[ \t]+|(?<= ) +",
        lambda found: found[0].replace("\t", 4 * " ").replace(" ", "\xa0"),
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"(?<=\n)(?=\n\n)", "&nbsp;", text)
    return re.sub(r"(?i)\b(www)\.", r"\1\.", text).replace("://", r":\//")


def unescape_markdown(text: str) -> str:
    """Invert `escape_markdown`, to obtain the raw text of an edited message."""
    return _ESCAPE.sub(lambda found: found[1] or "", text).replace("\xa0", " ")


def sanitize_markdown(text: str) -> str:
    """Sanitize an answer for a Markdown renderer.

    Links and images become plain text and HTML tags are escaped. A line such as "2." is escaped,
    since Markdown would render it as an empty list item. Inline code is unchanged; fenced code
    blocks are re-emitted with unambiguous fences.
    """
    made: list[str] = []
    prose: list[str] = []
    lines = iter(text.split("\n"))
    for line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            prose.append(line)
            continue
        code: list[str] = []
        for inner in lines:
            end = inner.strip()
            if len(end) >= len(fence[1]) and set(end) == set(fence[1]):
                break
            code.append(inner)
        made += [_sanitize_prose("\n".join(prose)), _code_block(code, fence[2])]
        prose = []
    return (
        "\n".join([*made, _sanitize_prose("\n".join(prose))]).strip("\n")
        if made
        else _sanitize_prose(text)
    )


def _code_block(code: list[str], language: str) -> str:
    ticks = "`" * max([3, *(1 + len(run) for line in code for run in re.findall("`{3,}", line))])
    told = (
        language
        if re.fullmatch(r"[A-Za-z0-9+#-]{1,20}", language) and language != "mermaid"
        else ""
    )  # Gradio would render mermaid as a diagram
    return "\n".join(["", f"{ticks}{told}", *code, ticks, ""])


def _sanitize_prose(text: str) -> str:
    text = _DEFINITION.sub("", text)
    made, at = [], 0
    for code in _CODE.finditer(text):
        made += [_escape_prose(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*made, _escape_prose(text[at:])])


def _escape_prose(text: str) -> str:
    for _ in range(3):  # removing one can expose another
        text = _DEFINITION.sub("", _LINK.sub(lambda found: found.group(1), text))
    # Escape any remaining link or tag syntax.
    text = re.sub(r"[\\\[\]<`]", r"\\\g<0>", text)
    # Otherwise it would open a fenced block.
    text = re.sub("~{3,}", lambda found: len(found[0]) * r"\~", _ENTITY.sub(r"\\&", text))
    return _LONE_NUMBER.sub(r"\1\.", text.replace("://", r":\//"))


def public_error_message(error: Exception) -> str:
    """Return the message shown to a visitor: a PhisenseError's text without paths and addresses; a
    generic one for any other exception, which is logged.
    """
    if not isinstance(error, PhisenseError):
        _logger.error("an answer broke", exc_info=error)
        return "Something broke here, and was written down. Ask again."
    return html.escape(_PATH_OR_URL.sub("…", str(error)[:_MAX_ERROR_LENGTH]), quote=False)
