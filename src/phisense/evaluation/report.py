"""The report: one HTML file with everything in it, pictures and plot included, readable on a phone and when printed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..conversations import CAPTION_KINDS, Pictures
from ..errors import PictureError
from ..vision.pictures import open_picture
from .scores import CONDITIONS, Prediction

SHOWN = 18  # cards of each sort
THUMB = 256  # pixels

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --paper: #fff; --soft: #f2f4f8; --right: #1a7f4b; --wrong: #b3261e; --line: #d5dae3 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --paper: #14171d; --soft: #1f242d; --right: #5fcf97; --wrong: #ff8a80; --line: #394150 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 66rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left } .verdict { font-size: 1.25rem; padding: .8rem 1rem; background: var(--soft); border-radius: .5rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem }
.card { background: var(--soft); border-radius: .5rem; padding: .8rem; break-inside: avoid } .card img { width: 100%; border-radius: .3rem }
.right { color: var(--right) } .wrong { color: var(--wrong) } .small { font-size: .85rem; opacity: .8 } img.plot { max-width: 100% }
"""


def render(title: str, scores: dict[str, Any], predictions: Sequence[Prediction], images: Pictures) -> str:
    """The page for `scores` of `evaluate`; pictures are read from `images` and put into the page."""
    real = [p for p in predictions if p.condition == "real"] or list(predictions)
    misses = [p for p in real if not p.right and p.kind not in CAPTION_KINDS]
    hits = [p for p in real if p.right and p.kind not in CAPTION_KINDS]
    told = [p for p in real if p.kind in CAPTION_KINDS]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        _verdict(scores),
        _table(scores),
        f"<img class='plot' alt='Accuracy by kind of question' src='{_plot(scores)}'>" if real else "",
        _gallery("Wrong", _spread(misses), images, f"{len(misses)} of {len(misses) + len(hits)} questions"),
        _gallery("Right", _spread(hits), images, f"{len(hits)} of {len(misses) + len(hits)} questions"),
        _gallery("Descriptions", _spread(told), images, f"{len(told)} texts") if told else "",
        "<p class='small'>Real: the question with its own picture. Blind: without a picture. Shuffled: with another question's picture. "
        "Answers are compared after the normalisation of the VQA challenge; intervals are 95 % (Wilson).</p></body></html>",
    ]
    return "\n".join(parts)


def _verdict(scores: dict[str, Any]) -> str:
    if "looks" not in scores:
        return "<p class='verdict'>Asked under one condition only: run all three to learn whether the model looks at the picture.</p>"
    over = scores["looks"]["over"]
    looks = scores["looks"]["verdict"] == "looks"
    words = "The model looks at the picture." if looks else "The model is blind: its answers are no better with the picture than without."
    return f"<p class='verdict {'right' if looks else 'wrong'}'>{words} <span class='small'>{scores['looks']['figure']} {over['blind']['value']:+.3f} over blind, {over['shuffled']['value']:+.3f} over shuffled</span></p>"


def _table(scores: dict[str, Any]) -> str:
    ran = [name for name in CONDITIONS if name in scores]
    kinds = sorted({kind for name in ran for kind in scores[name]["kinds"]})
    head = "".join(f"<th>{name}</th>" for name in ran)
    rows = [(figure, [scores[name]["figures"].get(figure) for name in ran]) for figure in scores[ran[0]]["figures"]]
    rows += [(kind, [scores[name]["kinds"].get(kind) for name in ran]) for kind in kinds]
    body = "".join(f"<tr><td>{escape(kind)}</td>{''.join(map(_cell, figures))}</tr>" for kind, figures in rows)
    if all(scores[name]["loss"] is not None for name in ran):
        body += _row("loss per token", [scores[name]["loss"] for name in ran])
    return f"<table><tr><th>accuracy</th>{head}</tr>{body}</table>"


def _row(words: str, values: list[float]) -> str:
    return f"<tr><td>{words}</td>{''.join(f'<td>{value:.3f}</td>' for value in values)}</tr>"


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "<td>–</td>"
    return f"<td>{figure['value']:.3f}<br><span class='small'>{figure['low']:.2f}–{figure['high']:.2f}{_n(figure)}</span></td>"


def _n(figure: dict[str, float]) -> str:
    return f", n {figure['n']}" if "n" in figure else ""


def _plot(scores: dict[str, Any]) -> str:
    """Bars by kind and condition, as a data URL."""
    from matplotlib.figure import Figure

    ran = [name for name in CONDITIONS if name in scores]
    kinds = ["all", *sorted(scores[ran[0]]["kinds"])]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(ran):
        figures = [scores[name]["figures"][scores["headline"]], *(scores[name]["kinds"].get(kind, {"value": 0.0}) for kind in kinds[1:])]
        places = [at + (i - (len(ran) - 1) / 2) * 0.27 for at in range(len(kinds))]
        axes.bar(
            places, [f["value"] for f in figures], width=0.25, label=name, color=("#2f6fde", "#9aa5b5", "#d99a2b")[CONDITIONS.index(name)]
        )
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, ncols=3, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _data_url(buffer.getvalue(), "png")


def _spread(members: list[Prediction]) -> list[Prediction]:
    """Evenly over the whole, so that every kind and scene has its chance."""
    return members[:: max(1, -(-len(members) // SHOWN))]


def _gallery(heading: str, members: list[Prediction], images: Pictures, count: str) -> str:
    cards = "".join(_card(p, images) for p in members)
    return f"<h2>{heading} <span class='small'>{count}</span></h2><div class='gallery'>{cards}</div>" if members else ""


def _card(p: Prediction, images: Pictures) -> str:
    picture = f"<img loading='lazy' alt='{escape(p.image)}' src='{_thumb(images.path(p.image))}'>" if p.image else ""
    mark = "" if p.kind in CAPTION_KINDS else f"<span class='{'right' if p.right else 'wrong'}'>{'✓' if p.right else '✗'}</span> "
    wanted = "" if p.right else f"<div class='small'>wanted: {escape(' / '.join(p.answers))}</div>"
    return f"<div class='card'>{picture}<div><b>{escape(p.question)}</b></div><div>{mark}{escape(p.answer)}</div>{wanted}<div class='small'>{escape(p.kind)} · {escape(p.id)}</div></div>"


def _thumb(path: Path) -> str:
    try:
        picture = open_picture(path)
    except PictureError:
        return ""
    picture.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
