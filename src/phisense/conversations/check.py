"""Looks at every row of a data set before anything is trained on it: what can be used, and what is wrong with the rest.

Rows pass by once, as a stream. Of each only its number, id and picture names are kept, and a hash of what it says; then each
distinct picture is looked at once, in threads, and what is wrong with it is held against every row that names it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .defects import KINDS, Finding
from .documents import Fault
from .roots import Pictures
from .rows import Row, examine
from .sources import Source, open_source
from .types import Conversation

#: What is being done, how far it is, how far it goes (None: not known).
Progress = Callable[[str, int, int | None], None]
#: The picture's file or bytes, and what rows call it -> what is wrong with it.
Look = Callable[[Path | bytes, str], list[Fault]]
#: What is wrong with how a conversation will be rendered: its length.
Measure = Callable[[Conversation], list[Fault]]


@dataclass(slots=True)
class Checked:
    """`good` rows can be trained on; `rejected` are the numbers of those that cannot; `findings` are in the order of rows."""

    kind: str
    rows: int = 0
    good: int = 0
    turns: int = 0
    pictures: int = 0
    without_picture: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    rejected: set[int] = field(default_factory=set)

    @property
    def counts(self) -> Counter[str]:
        """Findings of each class."""
        return Counter(finding.code for finding in self.findings)

    @property
    def rejects(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.rejects]

    def as_dict(self) -> dict[str, Any]:
        counts = {"rows": self.rows, "good": self.good, "rejected": len(self.rejected), "turns": self.turns, "pictures": self.pictures}
        return {
            "format": self.kind,
            "shapes": dict(self.shapes),
            **counts,
            "without_picture": self.without_picture,
            "counts": dict(self.counts),
            "defects": [finding.as_dict() for finding in self.findings if finding.rejects],
            "notes": [finding.as_dict() for finding in self.findings if not finding.rejects],
        }


def check(
    path: Path,
    pictures: Sequence[Path] = (),
    *,
    look: Look | None = None,
    measure: Measure | None = None,
    leaks: Callable[[Iterable[tuple[str, Path | bytes]]], Iterator[tuple[str, Fault]]] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Checked:
    """Every defect of every row. Pictures are looked for in `pictures` and looked at by `look`, if there is one.

    `leaks` gets every picture that was found, as name and source, and yields the name and fault of each that is held out.
    Raises ConversationError only if there is no such data at all.
    """
    source = open_source(path)
    folders = [*pictures, *([source.pictures] if source.pictures is not None else [])]
    run = _Run(source, Pictures(folders) if folders and look is not None else None, look, measure)
    run.read(progress)
    if run.finder is not None:
        run.look_at_all(progress)
        if leaks is not None:
            run.hold_against(leaks(run.found()))
    return run.result()


class _Run:
    def __init__(self, source: Source, finder: Pictures | None, look: Look | None, measure: Measure | None) -> None:
        self.source, self.finder, self.look, self.measure = source, finder, look, measure
        self.checked = Checked(source.kind)
        self.repeats = _Repeats()
        self.named: dict[str, list[tuple[int, str | None]]] = {}
        self.files: dict[str, Path] = {}
        self.embedded: set[str] = set()
        #: Of rows with nothing wrong so far: how many answers, negative without a picture.
        self.answers: dict[int, int] = {}

    def read(self, progress: Progress) -> None:
        """The pass over the rows."""
        checked = self.checked
        for number, raw, fault in self.source.rows():
            row = examine(raw, number, fault)
            checked.rows += 1
            checked.shapes[row.shape] += 1
            faults = row.faults
            if row.turns:
                faults = self._look_closer(row)
            if faults:
                checked.findings += [Finding(number, row.id, code, what) for code, what in faults]
                if any(KINDS[code].rejects for code, _ in faults):
                    checked.rejected.add(number)
                    continue
            answers = sum(1 for role, _ in row.turns if role in ("gpt", "assistant"))
            self.answers[number] = answers if row.pictures else -answers
            if not checked.rows % 512:
                progress("checking rows", *self.source.progress())
        progress("checking rows", *self.source.progress())

    def _look_closer(self, row: Row) -> list[Fault]:
        """Repetitions, pictures and length, which need more than the row's own text."""
        faults = [*row.faults, *self.repeats.faults(row)]
        for picture in row.pictures:
            known = self.named.setdefault(picture.name, [])
            known.append((row.number, row.id))
            if picture.data is not None:
                self.embedded.add(picture.name)
                faults += self.look(picture.data, picture.name) if self.look is not None else []
        if self.measure is not None and row.good:
            faults += self.measure(row.conversation())
        return faults

    def look_at_all(self, progress: Progress) -> None:
        """Each distinct picture once."""
        assert self.finder is not None
        names = [name for name in self.named if name not in self.embedded]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, (name, faults) in enumerate(_in_order(pool, self._look_at, names), 1):
                self.hold_against((name, fault) for fault in faults)
                if not done % 64:
                    progress("looking at pictures", done, len(names))
        progress("looking at pictures", len(names), len(names))

    def _look_at(self, name: str) -> tuple[str, list[Fault]]:
        assert self.finder is not None
        assert self.look is not None
        path = self.finder.find(name)
        if path is None:
            return name, [("missing-picture", f"names the picture {name}, which is in none of the folders")]
        self.files[name] = path
        return name, self.look(path, name)

    def found(self) -> Iterator[tuple[str, Path | bytes]]:
        yield from self.files.items()

    def hold_against(self, faults: Iterable[tuple[str, Fault]]) -> None:
        """Every row that names the picture has its fault."""
        for name, (code, what) in faults:
            for number, called in self.named[name]:
                self.checked.findings.append(Finding(number, called, code, what))
                if KINDS[code].rejects:
                    self.checked.rejected.add(number)

    def result(self) -> Checked:
        checked = self.checked
        checked.findings.sort(key=lambda finding: finding.row)
        good = [answers for number, answers in self.answers.items() if number not in checked.rejected]
        checked.good, checked.turns, checked.without_picture = len(good), sum(map(abs, good)), sum(answers < 0 for answers in good)
        checked.pictures = len(self.named)
        return checked


def _in_order(pool: ThreadPoolExecutor, work: Callable[[str], Any], names: Sequence[str], ahead: int = 256) -> Iterator[Any]:
    """`pool.map` that does not queue a million jobs: `ahead` names at a time."""
    left = iter(names)
    while some := list(islice(left, ahead)):
        yield from pool.map(work, some)


class _Repeats:
    """Rows seen before, by a hash of what they say, and ids seen before, by the pictures they came with."""

    def __init__(self) -> None:
        self.said: dict[int, int] = {}
        self.ids: dict[str, int] = {}

    def faults(self, row: Row) -> list[Fault]:
        names = tuple(picture.name for picture in row.pictures)
        said = hash((tuple(row.turns), names))
        first = self.said.setdefault(said, row.number)
        if first != row.number:
            return [("duplicate-row", f"says exactly what row {first} says")]
        if row.id is None:
            return []
        shown = hash(names)
        if row.id not in self.ids:
            self.ids[row.id] = shown
            return []
        if self.ids[row.id] == shown:
            return [("duplicate-id", "has the id of an earlier row about the same picture")]
        return [("id-conflict", "has the id of an earlier row about another picture")]
