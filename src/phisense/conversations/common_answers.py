"""The commonest answers to questions, counted from texts alone: what can be said without any image.

    AnswerTable   counts by question: its whole text, its first words, its kind, any question
    Constants     for each question of an evaluation the commonest answer, and what else could be
                  answered to it

An evaluation compares a model with the first, and reads from the second what an answer out of form
would have been. The counts come from the training data (`count_training_answers`, which a run
records), and where those say nothing, from the evaluated questions themselves. There an answer
counts only if another image has it too, so that no question is answered by its own reference.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, Self

from ..errors import ArtifactError
from ..unicode_scripts import is_unspaced, normalize_unicode, word_count
from .questions import CAPTION_KINDS, LONG_ANSWER_WORDS
from .types import IMAGE, Conversation, Question

Source = Literal["training", "questions"]

FILE = "common_answers.json"  # of a run folder
RECORD_KEY = "common_answers"  # the same in training.json of a model folder
MAX_CANDIDATES = 8  # answers whose likelihoods are compared
MIN_IMAGES = 8  # of the evaluated questions of one key: with fewer, its majority is chance
MIN_COUNT = 5  # a training question, or beginning, that is kept in a record
_KEPT = {"=": 1000, "3": 300, "2": 300, "1": 100, "": 1}  # keys that are kept in a record
_KEPT_ANSWERS, _KEPT_ANY = 8, 300  # answers of a key, and of any question
_MAX_COUNTS = 500_000  # beyond, rare entries are dropped while counting
_TEXT_WORDS, _TEXTS = 5, 48  # an answer of more words is a text; of so many the medoid is chosen
_INSTRUCTION = re.compile(
    r"\n\s*(?:please )?answer (?:the question|with the option|yes or no|with)\b[^\n]*$", re.I
)
_POLAR = re.compile(r"(yes|no)\b", re.I)
_YES_NO = ("yes", "no")


@lru_cache(maxsize=1 << 16)  # the same short texts come again and again
def answer_form(answer: str) -> str:
    """The form by which answers are counted as the same: case, punctuation around and space do not
    count.
    """
    # ASCII needs no more, and this is a hundred times as fast
    shown = " ".join(answer.lower().split()) if answer.isascii() else normalize_unicode(answer)
    return shown.strip(" .,;:!?\"'`()[]")


@lru_cache(maxsize=1 << 16)
def question_form(text: str) -> str:
    """The form by which questions are the same: without image marker, the line of instruction that
    benchmarks append, case, and punctuation around.
    """
    return answer_form(_INSTRUCTION.sub("", text.replace(IMAGE, " ").strip()))


@dataclass(slots=True)
class _Count:
    number: int = 0
    image: str | None = None  # the first image with this answer
    several: bool = False  # whether another has it, too


@dataclass
class AnswerTable:
    """Counts of short answers by key: "= what is it" for the whole question, "2 what is" for its
    first words, "kind colour" for its kind, "" for any question. `texts` are some long answers with
    their images.
    """

    counts: dict[str, dict[str, _Count]] = field(default_factory=dict)
    written: dict[str, Counter[str]] = field(default_factory=dict)  # form -> as it was written
    texts: list[tuple[str, str | None]] = field(default_factory=list)
    images: dict[str, set[str | None]] | None = None  # of a key, if images are to be told apart
    _order: dict[str, list[tuple[str, _Count]]] = field(default_factory=dict)  # once ranked
    _medoids: list[tuple[str, str | None]] | None = None  # the texts, once ranked
    _size: int = 0
    _seen_texts: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, question: str, answer: str, *, kind: str = "", image: str | None = None) -> None:
        """Count an answer under every key of its question."""
        if word_count(answer) > _TEXT_WORDS:
            self._add_text(answer, image)
        shown = answer_form(answer)
        if polar := _POLAR.match(shown):
            shown = polar[1]
        elif word_count(answer) > LONG_ANSWER_WORDS:
            return
        if answer_form(answer) == shown:  # a yes with an explanation is no way of writing yes
            self.written.setdefault(shown, Counter())[answer.strip()] += 1
        for key in _keys(question, kind):
            if self.images is not None and len(seen := self.images.setdefault(key, set())) < (
                MIN_IMAGES
            ):
                seen.add(image)
            answers = self.counts.setdefault(key, {})
            if shown not in answers:
                answers[shown] = _Count(0, image)
                self._size += 1
            one = answers[shown]
            one.number += 1
            one.several |= one.image != image or self.images is None
        if self._size > _MAX_COUNTS and self.images is None:
            self._drop_rare()

    def ranked(self, key: str, image: str | None = None) -> Iterator[tuple[str, int]]:
        """The answers of a key with their numbers, the commonest first; where images are told
        apart, those that another image than `image` has, too, of keys with enough images. Nothing
        may be added once this was called.
        """
        if self.images is not None and len(self.images.get(key, ())) < MIN_IMAGES:
            return
        if key not in self._order:
            answers = self.counts.get(key, {}).items()
            self._order[key] = sorted(answers, key=lambda one: (-one[1].number, one[0]))
        for shown, one in self._order[key]:
            if self.images is None or one.several or one.image != image:
                yield shown, one.number

    def write(self, shown: str) -> str:
        """An answer as it was mostly written."""
        most = self.written.get(shown)
        if not most:
            return shown.capitalize() if shown in _YES_NO else shown
        return min(most, key=lambda text: (-most[text], text))

    def text(self, image: str | None = None) -> str | None:
        """The long answer that shares most words with the others, of another image."""
        if self._medoids is None:
            bags = [_bag(text) for text, _ in self.texts]
            shared = [sum(_overlap(bag, other) for other in bags) for bag in bags]
            order = sorted(range(len(bags)), key=lambda i: (-shared[i], i))
            self._medoids = [self.texts[i] for i in order]
        return next((text for text, of in self._medoids if of is None or of != image), None)

    def _add_text(self, answer: str, image: str | None) -> None:
        """Keep a sample of all (reservoir sampling)."""
        self._seen_texts += 1
        if len(self.texts) < _TEXTS:
            self.texts.append((answer, image))
        elif (at := self._random.randrange(self._seen_texts)) < _TEXTS:
            self.texts[at] = answer, image

    def _drop_rare(self) -> None:
        """Drop what was counted once: lossy counting (Manku and Motwani, 2002)."""
        for key, answers in list(self.counts.items()):
            kept = {shown: one for shown, one in answers.items() if one.number > 1}
            if kept:
                self.counts[key] = kept
            else:
                del self.counts[key]
        self._size = sum(map(len, self.counts.values()))
        known = {shown for answers in self.counts.values() for shown in answers}
        self.written = {shown: one for shown, one in self.written.items() if shown in known}

    def to_dict(self) -> dict[str, object]:
        """`{"answers": {key: [[answer, number], ...]}, "text"}`: the commonest keys that were asked
        at least `MIN_COUNT` times, and their commonest answers.
        """
        kept: dict[str, object] = {}
        for level, most in _KEPT.items():
            keys = [key for key in self.counts if key.partition(" ")[0] == level]
            number = {key: sum(one.number for one in self.counts[key].values()) for key in keys}
            for key in sorted(keys, key=lambda key: (-number[key], key))[:most]:
                if number[key] >= MIN_COUNT or not key:
                    answers = islice(self.ranked(key), _KEPT_ANSWERS if key else _KEPT_ANY)
                    kept[key] = [[self.write(shown), count] for shown, count in answers]
        return {"answers": kept, "text": self.text()}

    @classmethod
    def from_dict(cls, document: object, source: str = "the file") -> Self:
        """Read `to_dict`'s JSON. Raises ArtifactError, naming `source`, for anything else."""
        made = cls()
        try:
            found: Any = document
            for key, answers in found["answers"].items():
                made.counts[str(key)] = {
                    _shown(str(answer)): _Count(int(number), None, True)
                    for answer, number in answers
                }
                for answer, number in answers:
                    made.written.setdefault(_shown(answer), Counter())[answer] += number
            if found.get("text") is not None:
                made.texts.append((str(found["text"]), None))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{source} is no table of answers",
                got=f"{document!r}"[:80],
                wanted="answers with their numbers by question",
                do="It is damaged or of another version: make it again",
            ) from error
        return made


def _shown(answer: str) -> str:
    found = answer_form(answer)
    return polar[1] if (polar := _POLAR.match(found)) else found


def _keys(question: str, kind: str = "") -> Iterator[str]:
    """The keys of a question, the most telling first."""
    asked = question_form(question)
    yield f"= {asked}"
    words = asked.split()
    for number in (3, 2, 1):
        if len(words) > number:
            yield f"{number} {' '.join(words[:number])}"
    if kind:
        yield f"kind {kind}"
    yield ""


def _bag(text: str) -> Counter[str]:
    shown = normalize_unicode(text)
    return Counter(shown.replace(" ", "") if is_unspaced(text) else shown.split())


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    return 2 * (one & other).total() / max(1, one.total() + other.total())


def count_training_answers(conversations: Iterable[Conversation]) -> AnswerTable:
    """Count the supervised answers of training conversations."""
    table = AnswerTable()
    for conversation in conversations:
        question = None
        for message in conversation.messages:
            if message.role == "assistant":
                if question is not None and message.supervised:
                    table.add(question, message.text)
            elif message.role == "user":
                question = message.text
    return table


@dataclass(frozen=True, slots=True)
class Constants:
    """For each question: the `answers` that are given without any image or model, with the
    `sources` of their counts; and the `candidates` among which an answer out of form is chosen by
    content, empty for an open question.
    """

    answers: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    sources: tuple[Source, ...]
    known: frozenset[str] = frozenset()  # forms of answers that training has
    closed: tuple[bool, ...] = ()  # whether the question itself names its answers

    @property
    def source(self) -> str:
        """Where the counts come from, in words."""
        return " and ".join(sorted(set(self.sources), reverse=True)) or "questions"

    @classmethod
    def of(cls, questions: Sequence[Question], training: AnswerTable | None) -> Constants:
        """The constants of `questions`, by the counts of training where they have any for a
        question, else by those of the questions.
        """
        asked = AnswerTable(images={})
        for one in questions:
            # every annotator of a benchmark counts; a reference written in two ways counts once
            for shown in dict.fromkeys(one.answers) if len(one.answers) < 4 else one.answers:
                asked.add(one.text, shown, kind=one.kind, image=_apart(one))
        tables: list[tuple[Source, AnswerTable]] = [("questions", asked)]
        if training is not None:
            tables.insert(0, ("training", training))
        found = [_constant(one, tables) for one in questions]
        known = set(training.counts.get("", {})) if training is not None else set()
        return cls(
            tuple(answer for answer, _ in found),
            tuple(tuple(_candidates(one, tables)) for one in questions),
            tuple(source for _, source in found),
            frozenset(known - set(_YES_NO)),
            tuple(bool(_closed(one, tables)) for one in questions),
        )

    def out_of_form(
        self, at: int, answer: str, accepts: Callable[[str, str], bool], credit: float
    ) -> bool:
        """Whether `answer` to question `at` is none of the answers that the question has: it earns
        nothing, and `accepts(answer, reference)` is false for each of the candidates, and training
        does not know it. False for an open question, of which that cannot be told.
        """
        if not self.candidates[at] or credit > 0:
            return False
        if not self.closed[at] and answer_form(answer) in self.known:
            return False
        return not any(
            accepts(answer, reference)
            for one in self.candidates[at]
            for reference in (one, answer_form(one))
        )


def _apart(question: Question) -> str:
    return question.image if question.image is not None else f"question {question.id}"


def _constant(
    question: Question, tables: Sequence[tuple[Source, AnswerTable]]
) -> tuple[str, Source]:
    closed = {_shown(one): one for one in _closed(question, tables)}
    own = _apart(question)
    if question.kind in CAPTION_KINDS:
        for source, table in tables:
            if (text := table.text(own)) is not None:
                return text, source
        return "", "questions"
    for source, table in tables:
        for key in _keys(question.text, question.kind):
            for shown, _ in table.ranked(key, own):
                if shown in closed:
                    return closed[shown], source
                if not closed and shown not in _YES_NO:
                    return table.write(shown), source
    return next(iter(closed.values()), ""), "questions"


def _candidates(question: Question, tables: Sequence[tuple[Source, AnswerTable]]) -> list[str]:
    if question.kind in CAPTION_KINDS:
        return []
    if closed := _closed(question, tables):
        return closed
    for _, table in tables:
        for key in _keys(question.text):
            if key[:1] not in "=32" or not key:
                break  # answers to any "what" are no choice
            often = (shown for shown, n in table.ranked(key, _apart(question)) if n > 1)
            if len(found := list(islice(often, MAX_CANDIDATES))) > 1:
                return list(map(table.write, found))
    return []


def _closed(question: Question, tables: Sequence[tuple[Source, AnswerTable]]) -> list[str]:
    """The answers that the question itself allows: its options, in the way of naming them that its
    reference has, or yes and no; empty for other questions. That a question is one of yes and no
    is told by its reference, which of the two it is is not.
    """
    if question.choices:
        letters = [chr(ord("A") + i) for i in range(len(question.choices))]
        right = question.answers[0].strip()
        return letters if right in letters else list(question.choices)
    if _shown(Counter(question.answers).most_common(1)[0][0]) in _YES_NO:
        return [_write_polar(shown, question, tables) for shown in _YES_NO]
    return []


def _write_polar(
    shown: str, question: Question, tables: Sequence[tuple[Source, AnswerTable]]
) -> str:
    """Yes or no, as training mostly writes it, or else as the reference does."""
    training = next((table for source, table in tables if source == "training"), None)
    if training is not None and training.written.get(shown):
        return training.write(shown)
    reference = question.answers[0].strip()
    end = reference[len(reference.rstrip(".!")) :]
    return (shown if reference[:1].islower() else shown.capitalize()) + end
