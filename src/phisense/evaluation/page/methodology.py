"""How the evaluation was measured: what `evaluate` recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .markup import arithmetic_rows, definition_list, escape_text

if TYPE_CHECKING:
    from ..report import Report

_WORDS = {
    "model": "model",
    "fingerprint": "fingerprint of its files",
    "engine": "engine",
    "device": "device",
    "dtype": "computed in",
    "seed": "seed",
    "batch": "questions at once",
    "max_new_tokens": "longest answer, tokens",
    "picture_tokens": "tokens a picture",
    "limit": "questions, at most",
}


def methodology_section(reports: Sequence[Report]) -> str:
    """One list for each report; values that a later version of `evaluate` records are shown,
    too.
    """
    parts = []
    for report in reports:
        about = report.about.to_dict()
        pairs = [(word, _short(about.pop(key, None))) for key, word in _WORDS.items()]
        prompt, seconds = report.about.prompt, report.about.seconds
        versions = about.pop("versions", None)
        for shown_elsewhere in ("seconds", "data", "prompt", "arithmetic"):
            about.pop(shown_elsewhere, None)
        pairs += [
            ("questions", f"{report.scores.questions:,}"),
            ("independent units", f"{report.scores.units:,}"),
        ]
        pairs += arithmetic_rows(report.about.arithmetic)
        pairs += [("took", f"{seconds:,.0f} s")] if seconds else []
        pairs += [
            ("data", f"{one.name}, sha256 {(one.sha256 or 'not recorded')[:12]}…")
            for one in report.about.data
        ]
        pairs += [
            (key.replace("_", " "), _short(value))
            for key, value in about.items()
            if not isinstance(value, (dict, list))
        ]
        pairs += sorted((versions or {}).items()) if isinstance(versions, dict) else []
        heading = f"<h3>{escape_text(report.title)}</h3>" if len(reports) > 1 else ""
        put = (
            "<p class='small'>A question as the model was given"
            f" it:</p><pre>{escape_text(prompt)}</pre>"
            if prompt
            else ""
        )
        parts.append(f"{heading}{definition_list(pairs)}{put}")
    return "".join(parts)


def _short(value: object) -> object:
    return (
        f"{value[:16]}…"
        if isinstance(value, str) and len(value) > 48 and value.isalnum()
        else value
    )
