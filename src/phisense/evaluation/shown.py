"""Which answers are shown: some of each kind of question, and always the same, so that reports can be laid side by side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..conversations import CAPTION_KINDS
from .scores import Prediction

SHOWN = 18  # of each sort


def sorts(predictions: Sequence[Prediction], shown: int = SHOWN) -> tuple[list[Prediction], list[Prediction], list[Prediction]]:
    """Wrong answers, right ones, and texts."""
    asked = [p for p in predictions if p.kind not in CAPTION_KINDS]
    found = ([p for p in asked if not p.right], [p for p in asked if p.right], [p for p in predictions if p.kind in CAPTION_KINDS])
    wrong, right, texts = (drawn(sort)[:shown] for sort in found)
    return wrong, right, texts


def gallery(predictions: Sequence[Prediction], shown: int = SHOWN) -> list[Prediction]:
    """Who is shown of a report: of each sort so many, with the real picture if that was asked."""
    real = [p for p in predictions if p.condition == "real"] or list(predictions)
    return [p for sort in sorts(real, shown) for p in sort]


def drawn(members: Sequence[Prediction]) -> list[Prediction]:
    """Kind after kind in turn. The order hangs on the question's id alone, so reports about the same questions show the same ones."""
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for p in sorted(members, key=lambda p: hashlib.sha256(p.id.encode()).digest()):
        kinds[p.kind].append(p)
    return list(in_turn([kinds[kind] for kind in sorted(kinds)]))


def in_turn(lists: Sequence[list[Prediction]]) -> Iterator[Prediction]:
    """The first of each list, the second of each, and so on."""
    for at in range(max(map(len, lists), default=0)):
        yield from (one[at] for one in lists if at < len(one))
