"""How it was measured: what `evaluate` recorded of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .words import computed, facts, text

if TYPE_CHECKING:
    from ..report import Report

_WORDS = {
    "model": "model", "fingerprint": "fingerprint of its files", "engine": "engine", "device": "device", "dtype": "computed in",
    "seed": "seed", "batch": "questions at once", "max_new_tokens": "longest answer, tokens", "picture_tokens": "tokens a picture",
    "limit": "questions, at most",
}  # fmt: skip


def measured(reports: Sequence[Report]) -> str:
    """One list for each report; what later versions of `evaluate` record more is told, too."""
    parts = []
    for report in reports:
        about = dict(report.about)
        pairs = [(word, _short(about.pop(key, None))) for key, word in _WORDS.items()]
        seconds, data, prompt, versions = (about.pop(key, None) for key in ("seconds", "data", "prompt", "versions"))
        pairs += [("questions", f"{report.scores['questions']:,}"), ("independent units", f"{report.scores.get('units', 0):,}")]
        pairs += computed(about.pop("arithmetic", None))
        pairs += [("took", f"{float(seconds):,.0f} s")] if seconds else []
        pairs += [("data", f"{one['name']}, sha256 {str(one.get('sha256', 'not recorded'))[:12]}…") for one in data or ()]
        pairs += [(key.replace("_", " "), _short(value)) for key, value in about.items() if not isinstance(value, (dict, list))]
        pairs += sorted((versions or {}).items()) if isinstance(versions, dict) else []
        heading = f"<h3>{text(report.title)}</h3>" if len(reports) > 1 else ""
        put = f"<p class='small'>A question as the model was given it:</p><pre>{text(prompt)}</pre>" if prompt else ""
        parts.append(f"{heading}{facts(pairs)}{put}")
    return "".join(parts)


def _short(value: Any) -> Any:
    return f"{value[:16]}…" if isinstance(value, str) and len(value) > 48 and value.isalnum() else value
