"""Validate every row of a data set before training: which rows are usable, and what is wrong with
the others.

Rows are streamed in one pass. For each row only its number, id, image names and a hash of its
content are kept; then each distinct image is checked once, in threads, and its faults are assigned
to every row that names it.
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

from ..pipeline.progress import OnEvent, Progress, ignore
from ..pipeline.results import CheckResult
from ..safe_parsing import MAX_PATH_LENGTH, quote
from .defects import DEFECT_KINDS, Defect
from .ignored_keys import IgnoredKeyCounter
from .image_finder import ImageFinder, list_alternatives
from .json_reader import Fault
from .rows import Row, validate_row
from .sources import DataSource, open_data_source
from .types import Conversation

#: (image file or bytes, name in the rows) -> the image's faults
ImageCheck = Callable[[Path | bytes, str], list[Fault]]
#: conversation -> faults of its rendered length
LengthCheck = Callable[[Conversation], list[Fault]]


@dataclass(slots=True)
class CheckReport:
    """`good` counts the rows that can be trained on; `rejected` has the numbers of those that
    cannot; `findings` are in row order.
    """

    kind: str
    rows: int = 0
    good: int = 0
    turns: int = 0
    pictures: int = 0
    without_picture: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    findings: list[Defect] = field(default_factory=list)
    rejected: set[int] = field(default_factory=set)

    @property
    def counts(self) -> Counter[str]:
        """Number of findings of each class; for aggregated classes, the number of rows."""
        counts: Counter[str] = Counter()
        for finding in self.findings:
            counts[finding.code] += finding.rows
        return counts

    @property
    def rejects(self) -> list[Defect]:
        """The findings that reject a row."""
        return [finding for finding in self.findings if finding.rejects]

    def to_result(self) -> CheckResult:
        """The result of the check, whose JSON `check --json` prints."""
        return CheckResult(
            format=self.kind,
            shapes=dict(self.shapes),
            rows=self.rows,
            good=self.good,
            rejected=len(self.rejected),
            turns=self.turns,
            images=self.pictures,
            without_image=self.without_picture,
            counts=dict(self.counts),
            defects=tuple(one.to_finding() for one in self.findings if one.rejects),
            notes=tuple(one.to_finding() for one in self.findings if not one.rejects),
        )


def check(
    path: Path,
    pictures: Sequence[Path] = (),
    *,
    check_image: ImageCheck | None = None,
    check_length: LengthCheck | None = None,
    leaks: (
        Callable[[Iterable[tuple[str, Path | bytes]]], Iterator[tuple[str, Fault]]] | None
    ) = None,
    on_event: OnEvent = ignore,
) -> CheckReport:
    """Report every defect of every row. Images are searched in `pictures` and checked by
    `check_image`, if given.

    `leaks` receives every image that was found, as (name, source), and yields (name, fault) for
    each that is held out. Raises ConversationError only if the data does not exist or has no rows.
    """
    source = open_data_source(path, announce=False)
    folders = [*pictures, *([source.pictures] if source.pictures is not None else [])]
    run = _CheckRun(
        source,
        ImageFinder(folders) if folders and check_image is not None else None,
        check_image,
        check_length,
    )
    run.read(on_event)
    if run.finder is not None:
        run.check_images(on_event)
        if leaks is not None:
            run.add_faults(leaks(run.found_images()))
    return run.result()


class _CheckRun:
    def __init__(
        self,
        source: DataSource,
        finder: ImageFinder | None,
        check_image: ImageCheck | None,
        check_length: LengthCheck | None,
    ) -> None:
        self.source, self.finder, self.check_image, self.check_length = (
            source,
            finder,
            check_image,
            check_length,
        )
        self.checked = CheckReport(source.kind)
        self.repeats = _DuplicateTracker()
        self.ignored_keys = IgnoredKeyCounter()
        self.named: dict[str, list[tuple[int, str | None]]] = {}
        #: Image names written as relative paths, not as paths of another machine.
        self.plain: set[str] = set()
        self.files: dict[str, Path] = {}
        self.embedded: set[str] = set()
        #: Row number -> number of answers, for rows without a rejecting fault so far; negative
        #: without an image.
        self.answers: dict[int, int] = {}

    def read(self, on_event: OnEvent) -> None:
        """The pass over the rows."""
        checked = self.checked
        checked.findings += [Defect(0, None, code, what) for code, what in self.source.notes]
        for number, raw, fault in self.source.rows():
            row = validate_row(raw, number, fault)
            checked.rows += 1
            checked.shapes[row.shape] += 1
            if row.ignored_keys:
                self.ignored_keys.add(number, row.ignored_keys)
            faults = row.faults
            if row.turns:
                faults = self._check_details(row)
            if faults:
                checked.findings += [Defect(number, row.id, code, what) for code, what in faults]
                if any(DEFECT_KINDS[code].rejects for code, _ in faults):
                    checked.rejected.add(number)
                    continue
            answers = sum(1 for role, _ in row.turns if role in ("gpt", "assistant"))
            self.answers[number] = answers if row.pictures else -answers
            if not checked.rows % 512:
                on_event(self.source.progress("reading rows"))
        on_event(self.source.progress("reading rows"))

    def _check_details(self, row: Row) -> list[Fault]:
        """Duplicates, images and length: the checks that need more than the row's own text."""
        faults = [*row.faults, *self.repeats.faults(row)]
        for picture in row.pictures:
            known = self.named.setdefault(picture.name, [])
            known.append((row.number, row.id))
            if not picture.elsewhere:
                self.plain.add(picture.name)
            if picture.data is not None:
                self.embedded.add(picture.name)
                faults += (
                    self.check_image(picture.data, picture.name)
                    if self.check_image is not None
                    else []
                )
        if self.check_length is not None and row.good:
            faults += self.check_length(row.conversation())
        return faults

    def check_images(self, on_event: OnEvent) -> None:
        """Check each distinct image once."""
        assert self.finder is not None
        names = [name for name in self.named if name not in self.embedded]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, (name, faults) in enumerate(
                _map_ahead(pool, self._check_one_image, names), 1
            ):
                self.add_faults((name, fault) for fault in faults)
                if not done % 64:
                    on_event(Progress("checking images", done, len(names), "images"))
        on_event(Progress("checking images", len(names), len(names), "images"))
        self._note_tail_matches(self.finder.by_tail)

    def _note_tail_matches(self, by_tail: dict[str, Path]) -> None:
        """A file found only by the end of its path may be the wrong image: report it, and reject
        two paths that resolve to one file.
        """
        same: dict[Path, list[str]] = {}
        for name in by_tail:
            if name in self.plain:
                same.setdefault(by_tail[name], []).append(name)
        for path, alike in same.items():
            for name in alike if len(alike) > 1 else ():
                other = next(one for one in alike if one != name)
                shown, also = quote(name, MAX_PATH_LENGTH), quote(other, MAX_PATH_LENGTH)
                self.add_faults(
                    [
                        (
                            name,
                            (
                                "ambiguous-picture",
                                (
                                    f"names the picture {shown}, and all there is for it and for"
                                    f" {also} is {path}"
                                ),
                            ),
                        )
                    ]
                )
        rows = sorted(
            {
                number
                for name in by_tail
                for number, _ in self.named[name]
                if number not in self.checked.rejected
            }
        )
        if rows:
            name = min((name for name in by_tail), key=lambda one: self.named[one][0])
            shown = f"{quote(name, MAX_PATH_LENGTH)} as {quote(by_tail[name], MAX_PATH_LENGTH)}"
            what = f"has a picture that the end of its path alone has found, {shown} for one"
            self.checked.findings.append(Defect(rows[0], None, "found-by-tail", what, len(rows)))

    def _check_one_image(self, name: str) -> tuple[str, list[Fault]]:
        assert self.finder is not None
        assert self.check_image is not None
        found = self.finder.candidates(name)
        if not found:
            return name, [
                (
                    "missing-picture",
                    (
                        f"names the picture {quote(name, MAX_PATH_LENGTH)}, which is in none of the"
                        " folders"
                    ),
                )
            ]
        if len(found) > 1:
            return name, [
                (
                    "ambiguous-picture",
                    (
                        f"names the picture {quote(name, MAX_PATH_LENGTH)}, which may be"
                        f" {list_alternatives(found)}"
                    ),
                )
            ]
        self.files[name] = found[0]
        return name, self.check_image(found[0], name)

    def found_images(self) -> Iterator[tuple[str, Path | bytes]]:
        yield from self.files.items()

    def add_faults(self, faults: Iterable[tuple[str, Fault]]) -> None:
        """Add the faults of an image to every row that names it."""
        for name, (code, what) in faults:
            for number, called in self.named[name]:
                self.checked.findings.append(Defect(number, called, code, what))
                if DEFECT_KINDS[code].rejects:
                    self.checked.rejected.add(number)

    def result(self) -> CheckReport:
        checked = self.checked
        checked.findings += self.ignored_keys.findings()
        checked.findings.sort(key=lambda finding: finding.row)
        good = [
            answers for number, answers in self.answers.items() if number not in checked.rejected
        ]
        checked.good = len(good)
        checked.turns = sum(map(abs, good))
        checked.without_picture = sum(answers < 0 for answers in good)
        checked.pictures = len(self.named)
        return checked


def _map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[str], Any], names: Sequence[str], ahead: int = 256
) -> Iterator[Any]:
    """`pool.map` with a bounded queue: `ahead` names at a time."""
    left = iter(names)
    while some := list(islice(left, ahead)):
        yield from pool.map(work, some)


class _DuplicateTracker:
    """Detects duplicate rows, by a hash of their content, and duplicate ids, with a hash of their
    image names.
    """

    def __init__(self) -> None:
        self.said: dict[int, int] = {}
        self.ids: dict[str, int] = {}

    def faults(self, row: Row) -> list[Fault]:
        names = tuple(picture.name for picture in row.pictures)
        said = hash((tuple(row.turns), row.unsupervised, names))
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
