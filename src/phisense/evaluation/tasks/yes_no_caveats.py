"""The caveat of the tasks whose questions are answered by yes or no."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..caveats import Caveat, of_unread
from ..task import ScoredAnswer
from ..yes_no import parse_yes_no


def yes_no_caveats(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    """How many answers are neither, by `parse_yes_no`."""
    yield from of_unread(
        marked,
        lambda one: parse_yes_no(one.answer, one.question.text) != "other",
        "are neither yes nor no",
    )
