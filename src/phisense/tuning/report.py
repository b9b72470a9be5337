"""The report of a study, one HTML page: the best settings, every trial, and the effect of each
setting.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from ..pipeline.results import TrialResult

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}\n"
    "table{border-collapse:collapse;font-size:.85rem}"
    "td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd}\n"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}.scroll{overflow-x:auto}\n"
    "@media (prefers-color-scheme:dark){body{background:#161616;color:#ddd}"
    "td,th{border-color:#333}img{background:#fff}}"
)


PAGE_START = "<!doctype html><!-- a page of phisense tune -->"  # marks pages of phisense


def render(name: str, rows: Sequence[TrialResult], best: TrialResult, questions: int) -> str:
    """Render a self-contained HTML page."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    head = "".join(f"<th>{html.escape(key.removeprefix('train.'))}</th>" for key in keys)
    lines = []
    for row in sorted(rows, key=lambda row: -1.0 if row.value is None else row.value, reverse=True):
        settings = "".join(f"<td>{_short(row.settings.get(key))}</td>" for key in keys)
        value = "" if row.value is None else f"{row.value:.3f}"
        told = html.escape(str(row.why or ""))
        lines.append(
            f"<tr><td>{row.number}</td><td>{row.state}</td><td>{value}</td>{settings}<td"
            f" title='{told}'>{told[:60]}</td></tr>"
        )
    plots = "".join(
        f"<img alt='{what}' src='data:image/png;base64,{base64.b64encode(data).decode()}'>"
        for what, data in _plots(rows, keys)
    )
    chosen = ", ".join(
        f"{html.escape(key)} = {_short(value)}" for key, value in best.settings.items()
    )
    return (
        f"{PAGE_START}<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(name)}, tuned</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(name)}, tuned</h1>"
        f"<p>Best of {len(rows)} trials: number {best.number}, {best.value:.3f} of"
        f" {questions} held-out questions right.</p>"
        f"<p>{chosen}</p>{plots}<div class='scroll'><table>"
        f"<tr><th>trial</th><th>state</th><th>accuracy</th>{head}<th></th></tr>"
        f"{''.join(lines)}</table></div></body></html>"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))


def _plots(rows: Sequence[TrialResult], keys: list[str]) -> list[tuple[str, bytes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    curves = figure.subplots()
    for row in rows:
        if row.curve:
            colour = "#1f5f8b" if row.state == "complete" else "#c9c9c9"
            curves.plot(
                [at + 1 for at, _ in row.curve],
                [value for _, value in row.curve],
                color=colour,
                marker="o",
                linewidth=1,
            )
    curves.set(
        xlabel="look at the held-out questions",
        ylabel="accuracy",
        title="every trial; pruned ones grey",
    )
    curves.grid(alpha=0.25)
    found = [("curves", _png(figure))]
    done = [row for row in rows if row.value is not None]
    if keys:
        across = min(3, len(keys))
        down = -(-len(keys) // across)
        figure = Figure(figsize=(9, 2.8 * down), layout="constrained")
        for axes, key in zip(figure.subplots(down, across, squeeze=False).flat, keys, strict=False):
            its = [row for row in done if key in row.settings]
            values = [row.settings[key] for row in its]
            axes.scatter(
                [str(v) if isinstance(v, (str, bool)) else v for v in values],
                [row.value for row in its],
                color="#c8553d",
            )
            rates = [v for v in values if isinstance(v, float) and v > 0]
            if rates and len(rates) == len(values) and max(rates) > 8 * min(rates):
                axes.set_xscale("log")
            axes.set(title=key.removeprefix("train."), ylabel="accuracy")
            axes.grid(alpha=0.25)
        found.append(("settings", _png(figure)))
    return found


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()
