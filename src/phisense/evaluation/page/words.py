"""The small pieces of the page: escaped text, numbers, tables, sections."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

_SPELLED = {"rouge l": "ROUGE-L", "bleu ": "BLEU-", "cider d": "CIDEr-D", "cider": "CIDEr", r"\bf1\b": "F1", "meteor": "METEOR"}
CONDITION = {"real": "with its picture", "blind": "without", "shuffled": "with another's"}


def text(value: object) -> str:
    """Fit to stand in HTML, and no link for a browser or a reader: what a model says may name places."""
    return escape(str(value)).replace("://", ":&#8203;//")


def name_of(figure: str) -> str:
    """As people write it: `yes_no_f1` is yes/no F1."""
    words = figure.replace("yes_no_", "yes/no ").replace("_", " ")
    return re.sub("|".join(_SPELLED), lambda found: _SPELLED.get(found[0], "F1"), words)


def number(value: float | None) -> str:
    """Three digits behind the point where that says something, fewer for sums; a dash for what there is not (JSON has no NaN)."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"+{number(value)}" if value >= 0 else f"−{number(-value)}"


def span(figure: dict[str, float], show: Any = number) -> str:
    """A figure with its interval, the latter small."""
    return f"{show(figure['value'])}<span class='ci'>{show(figure['low'])} to&nbsp;{show(figure['high'])}</span>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Of cells that are HTML already; it scrolls in its own box where it is wider than the page."""
    if not rows:
        return ""
    heads = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = "".join(f"<tr><th scope='row'>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    top = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    return f"<div class='scroll' tabindex='0'><table class='{kind}'>{top}<tbody>{body}</tbody></table></div>"


def computed(arithmetic: dict[str, Any] | None) -> list[tuple[str, object]]:
    """What a step computed in, as model/arithmetic.py records it, in words."""
    if not arithmetic:
        return []
    machine = arithmetic.get("gpu") or arithmetic.get("processor")
    has = ", ".join(arithmetic.get("instructions", ()))
    libraries = ", ".join(f"{name} {version}" for name, version in arithmetic.get("libraries", {}).items())
    return [
        ("computed in", f"{arithmetic['format']}, since {arithmetic['reason']}"),
        ("machine", f"{machine}; {has}" if has else machine),
        ("libraries", libraries),
    ]


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Words with their values, as a list that wraps."""
    told = "".join(f"<div><dt>{text(word)}</dt><dd>{text(value)}</dd></div>" for word, value in pairs if value not in (None, "", [], {}))
    return f"<dl>{told}</dl>" if told else ""


def section(heading: str, body: str, anchor: str) -> str:
    return f"<section id='{anchor}'><h2>{text(heading)}</h2>{body}</section>" if body else ""


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
