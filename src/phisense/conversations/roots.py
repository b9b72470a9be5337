"""Finds the file that a data set means by a picture's name: in several folders, and in the spellings COCO pictures go by.

The same picture is `000000033471.jpg` in LLaVA-Instruct-150K, `coco/train2017/000000033471.jpg` in LLaVA's mix665k and
`COCO_train2014_000000033471.jpg` in the 2014 release, and lies in a folder of any of these layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import PictureError

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12}\.jpg)")
_SPELLINGS = ("", "COCO_train2014_", "COCO_val2014_")
_FOLDERS = ("", "train2017", "val2017", "train2014", "val2014", "coco/train2017", "coco/val2017")


class Pictures:
    """`folders` are looked into in their order, each first for the name as it is written."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._here: dict[Path, bool] = {}

    def find(self, name: str) -> Path | None:
        """The picture's file, or None. `name` must be relative and stay inside (`shapes.py` refuses others)."""
        for folder in self.folders:
            path = folder / name
            if _is_file(path):
                return path
        return next((path for path in self._other_spellings(name) if _is_file(path)), None)

    def path(self, name: str) -> Path:
        """As `find`. Raises PictureError if there is none."""
        found = self.find(name)
        if found is None:
            looked = ", ".join(map(str, self.folders))
            raise PictureError(
                f"there is no picture {name}", got=f"no such file in {looked}", do="Name its folder in data.images or by --images"
            )
        return found

    def _other_spellings(self, name: str) -> Iterator[Path]:
        """`name` without its leading folders, and COCO's names for it; only in folders that are there."""
        parts = name.split("/")
        tails = ["/".join(parts[i:]) for i in range(1, len(parts))]
        coco = _COCO.fullmatch(parts[-1])
        spelled = [f"{folder}/{prefix}{coco.group(1)}".lstrip("/") for folder in _FOLDERS for prefix in _SPELLINGS] if coco else []
        for folder in self.folders:
            for tail in dict.fromkeys([*tails, *spelled]):
                path = folder / tail
                if self._is_folder(path.parent):
                    yield path

    def _is_folder(self, path: Path) -> bool:
        if path not in self._here:
            self._here[path] = path.is_dir()
        return self._here[path]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False
