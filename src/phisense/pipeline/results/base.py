"""Results whose files are in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from ... import artifacts
from ..records import Record, local


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderResult(Record):
    """The result of a step that wrote `folder`; `PLACE` is what `--json` calls that folder."""

    PLACE: ClassVar[str]

    folder: Path = local(default=Path())


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedResult(FolderResult):
    """A result stored in its folder as the file `FILE`."""

    FILE: ClassVar[str]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The result of the step that wrote `folder`. Raises ArtifactError if its file is missing
        or invalid.
        """
        path = folder / cls.FILE
        return replace(cls.from_dict(artifacts.read_json(path), str(path)), folder=folder)
