"""HTML helpers: escaped text, numbers, tables, sections."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...intervals import Interval
    from ..training_facts import ComputedIn

_SPELLED = {
    "rouge l": "ROUGE-L",
    "bleu ": "BLEU-",
    "cider d": "CIDEr-D",
    "cider": "CIDEr",
    r"\bf1\b": "F1",
    "meteor": "METEOR",
}
CONDITION_LABELS = {
    "real": "with its picture",
    "blind": "without",
    "shuffled": "with another's",
    "constant": "always the commonest answer",
}
#: What a model that is not shown to look is no better than, by the largest of the others.
NO_BETTER = {
    "blind": "The model is blind: its answers are no better with the picture than without",
    "shuffled": "The model is blind: its answers are no better with the picture than another's",
    "constant": (
        "The model is not shown to look: its answers are no better than each question's commonest"
    ),
}


def escape_text(value: object) -> str:
    """Escape for HTML, and break URLs so that no browser or reader makes links of them: a model may
    output addresses.
    """
    return escape(str(value)).replace("://", ":&#8203;//")


def metric_label(figure: str) -> str:
    """The display name of a metric: `yes_no_f1` becomes yes/no F1."""
    words = figure.replace("yes_no_", "yes/no ").replace("_", " ")
    return re.sub("|".join(_SPELLED), lambda found: _SPELLED.get(found[0], "F1"), words)


def format_number(value: float | None) -> str:
    """Up to three decimals, fewer for large sums; a dash for a missing value (JSON has no NaN)."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def format_signed(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"+{format_number(value)}" if value >= 0 else f"−{format_number(-value)}"


def format_interval(figure: Interval, show: Callable[[float], str] = format_number) -> str:
    """A value with its interval in small print."""
    return (
        f"{show(figure.value)}<span class='ci'>{show(figure.low)}"
        f" to&nbsp;{show(figure.high)}</span>"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; it scrolls in its own box if it is wider than the
    page.
    """
    if not rows:
        return ""
    heads = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope='row'>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    top = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    return (
        "<div class='scroll' tabindex='0'><table"
        f" class='{kind}'>{top}<tbody>{body}</tbody></table></div>"
    )


def arithmetic_rows(arithmetic: ComputedIn | None) -> list[tuple[str, object]]:
    """The arithmetic of a step, as recorded by model/arithmetic.py, as rows of a definition
    list.
    """
    if not arithmetic:
        return []
    has = ", ".join(arithmetic.instructions)
    return [
        ("computed in", f"{arithmetic.format}, since {arithmetic.reason}"),
        ("machine", f"{arithmetic.machine}; {has}" if has else arithmetic.machine),
        ("libraries", ", ".join(f"{name} {found}" for name, found in arithmetic.libraries.items())),
    ]


def definition_list(pairs: Sequence[tuple[str, object]]) -> str:
    """Terms with their values, as a list that wraps."""
    told = "".join(
        f"<div><dt>{escape_text(word)}</dt><dd>{escape_text(value)}</dd></div>"
        for word, value in pairs
        if value not in (None, "", [], {})
    )
    return f"<dl>{told}</dl>" if told else ""


def html_section(heading: str, body: str, anchor: str) -> str:
    return f"<section id='{anchor}'><h2>{escape_text(heading)}</h2>{body}</section>" if body else ""


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
