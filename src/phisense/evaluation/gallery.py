"""Select the predictions that a report shows: a deterministic sample of each kind of question, so
that reports can be compared.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..conversations import CAPTION_KINDS
from .scores import Prediction

MAX_SHOWN = 18  # of each outcome


def split_by_outcome(
    predictions: Sequence[Prediction], max_shown: int = MAX_SHOWN
) -> tuple[list[Prediction], list[Prediction], list[Prediction]]:
    """Split into wrong answers, correct answers, and texts, at most `max_shown` of each."""
    asked = [p for p in predictions if p.kind not in CAPTION_KINDS]
    found = (
        [p for p in asked if not p.right],
        [p for p in asked if p.right],
        [p for p in predictions if p.kind in CAPTION_KINDS],
    )
    wrong, right, texts = (interleave_kinds(sort)[:max_shown] for sort in found)
    return wrong, right, texts


def select_gallery(
    predictions: Sequence[Prediction], max_shown: int = MAX_SHOWN
) -> list[Prediction]:
    """The predictions shown in a report: `max_shown` of each outcome, with the real image if that
    condition was evaluated.
    """
    real = [p for p in predictions if p.condition == "real"] or list(predictions)
    return [p for sort in split_by_outcome(real, max_shown) for p in sort]


def interleave_kinds(members: Sequence[Prediction]) -> list[Prediction]:
    """Interleave the kinds of question. The order depends on the question ids only, so reports
    about the same questions show the same ones.
    """
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for p in sorted(members, key=lambda p: hashlib.sha256(p.id.encode()).digest()):
        kinds[p.kind].append(p)
    return list(round_robin([kinds[kind] for kind in sorted(kinds)]))


def round_robin(lists: Sequence[list[Prediction]]) -> Iterator[Prediction]:
    """The first of each list, the second of each, and so on."""
    for at in range(max(map(len, lists), default=0)):
        yield from (one[at] for one in lists if at < len(one))
