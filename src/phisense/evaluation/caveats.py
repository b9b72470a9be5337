"""Caveats beside a metric: to how many answers or questions its rule does not fully apply, and how
they were treated.

{"code": "unreadable", "what": "answers are neither yes nor no, and count as wrong", "count": 12}:
`what` is printed after the count.

thought          answers held a reasoning trace or marked their final answer, which was scored
cut-off          answers end within a reasoning trace, so there is no answer
markup           answers hold unknown tags or control tokens, and are scored with them
unreadable       answers that are not empty, but from which the rule parses nothing
few-answers      questions with fewer than four references, too few for VQA's rule;
                 they are scored by equality
fewer-than-ten   questions with four to nine annotators, where the rule assumes ten
other-script     texts of scripts that the rule was not made for, and how they are compared
one-picture      CIDEr is 0 by definition for a single image
empty            answers that are given and empty
all-right        many questions, every one of which is answered correctly
answer-column    which of several columns holds the answers
gold-column      the user named a column of answers that holds the references
by-text          answers matched by the text of their question, because rows have no number
not-asked        answers to questions of the same files that the task does not ask
left-out         questions of the files that the benchmark has, but that cannot be asked here
drawn            answers that name no option, for which MMMU's rule draws one
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..pipeline.json_fields import as_object, required
from ..unicode_scripts import is_non_latin, is_unspaced
from .answer_metrics import ANNOTATORS, MIN_ANNOTATORS
from .final_answer import final_answer
from .scored_answer import ScoredAnswer


@dataclass(frozen=True, slots=True)
class Caveat:
    """`count` answers or questions; `what` is the text printed after the count."""

    code: str
    what: str
    count: int

    def to_dict(self) -> dict[str, str | int]:
        """`{"code", "what", "count"}`."""
        return {"code": self.code, "what": self.what, "count": self.count}

    @classmethod
    def from_dict(cls, document: object, source: str = "the file") -> Caveat:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for what is missing."""
        found = as_object(document, f"{source}: a caveat")
        return cls(
            required(found, "code", str, source),
            required(found, "what", str, source),
            required(found, "count", int, source),
        )

    def __str__(self) -> str:
        return f"{self.count:,} {self.what}"


def counted(code: str, what: str, count: int) -> Iterator[Caveat]:
    """Yield one caveat, or none if `count` is 0."""
    if count:
        yield Caveat(code, what, count)


def of_thoughts(answers: Iterable[str]) -> Iterator[Caveat]:
    """Caveats about reasoning traces and markup in the raw answers."""
    found = Counter(final_answer(answer).how for answer in answers)
    marked = (
        "answers hold a thought or tags: what stands behind the thought, in the tags or in the box"
        " was scored"
    )
    yield from counted("thought", marked, found["thought"] + found["tags"])
    yield from counted(
        "cut-off",
        "answers end within a thought, so they answer nothing and count as wrong",
        found["cut off"],
    )
    yield from counted(
        "markup",
        "answers hold tags or control tokens that are not known here, and were scored with them",
        found["unknown"],
    )


def of_people(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    """Caveats about questions with too few annotators."""
    counts = [len(one.question.answers) for one in marked]
    few = (
        f"questions have fewer than {MIN_ANNOTATORS} right answers, of which VQA's rule gives"
        " nobody 1:"
        " they count by equality with any of them"
    )
    yield from counted("few-answers", few, sum(n < MIN_ANNOTATORS for n in counts))
    some = (
        f"questions have {MIN_ANNOTATORS} to {ANNOTATORS - 1} people's answers, where the rule"
        " is of"
        f" {ANNOTATORS}"
    )
    yield from counted(
        "fewer-than-ten", some, sum(MIN_ANNOTATORS <= n < ANNOTATORS for n in counts)
    )


def of_unread(
    marked: Sequence[ScoredAnswer], reads: Callable[[ScoredAnswer], bool], what: str
) -> Iterator[Caveat]:
    """Caveat about non-empty answers for which `reads` is False."""
    unread = sum(bool(one.answer.strip()) and not reads(one) for one in marked)
    yield from counted("unreadable", f"answers {what}, and count as wrong", unread)


def of_scripts(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    """Caveat about short answers whose references are in scripts that VQA's normalization was not
    made for.
    """
    count = sum(any(map(is_non_latin, one.question.answers)) for one in marked)
    told = (
        "questions have right answers in scripts that the rule was not made for: Unicode forms,"
        " case and marks are made alike, no more"
    )
    yield from counted("other-script", told, count)


def of_long_texts(marked: Sequence[ScoredAnswer]) -> Iterator[Caveat]:
    """Caveat about texts in scripts without spaces, whose metrics compare words."""
    count = sum(any(map(is_unspaced, one.question.answers)) for one in marked)
    told = (
        "questions have right answers in scripts without spaces between words: BLEU, ROUGE-L and"
        " CIDEr compare characters there"
    )
    yield from counted("other-script", told, count)
