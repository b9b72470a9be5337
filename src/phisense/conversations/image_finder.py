"""Resolve image names of a data set to files: in several folders, with COCO's naming variants, and
for paths from another machine by their last parts.

The same image is `000000033471.jpg` in LLaVA-Instruct-150K, `coco/train2017/000000033471.jpg` in
LLaVA's mix665k and `COCO_train2014_000000033471.jpg` in the 2014 release, and may lie in a folder
of any of these layouts. No file outside the folders is ever opened, whatever the name; symbolic
links inside them are followed.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from ..errors import ImageError
from ..safe_parsing import escape, quote

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12}\.jpg)")
_SPELLINGS = ("", "COCO_train2014_", "COCO_val2014_")
_FOLDERS = ("", "train2017", "val2017", "train2014", "val2014", "coco/train2017", "coco/val2017")
#: What distinguishes a name from a plain relative path: backslashes, a drive, a root, a home, `..`,
#: `.` or an empty part.
_FOREIGN = re.compile(r"[\\\0]|^[~/]|^[A-Za-z]:|^file:|(?:^|/)\.{0,2}(?:/|$)", re.IGNORECASE)
_FILE_URL = re.compile(r"file:(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_PART_LENGTH, _MAX_PATH_LENGTH = 255, 1000  # bytes of a file name; characters of a path
_MAX_PARTS = 64  # last parts of a path that are matched
_MAX_ALIKE = 16  # entries whose names differ only in case and are all searched


def normalize_image_name(name: str) -> str | None:
    r"""An image name as a relative path, whichever operating system wrote it; None if nothing
    remains.

    `C:\\Users\\me\\a.jpg` becomes `Users/me/a.jpg`, `/mnt/a.jpg` becomes `mnt/a.jpg`, `~/x/a.jpg`
    becomes `x/a.jpg`, `../img/a.jpg` becomes `img/a.jpg`.
    """
    if len(name) <= _MAX_PART_LENGTH and not _FOREIGN.search(name):
        return name
    if "\0" in name:
        return None
    parts: list[str] = []
    for part in _FILE_URL.sub("", name, count=1).replace("\\", "/").split("/"):
        part = part[2:] if not parts and _DRIVE.match(part) else part  # also for C:a.jpg
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", ".") and not _DRIVE.fullmatch(part):
            parts.append(part)
    if name.startswith("~") and len(parts) > 1:
        del parts[0]
    too_long = [
        at
        for at, part in enumerate(parts[:-1])
        if len(part.encode(errors="surrogatepass")) > _MAX_PART_LENGTH
    ]
    parts = parts[too_long[-1] + 1 :] if too_long else parts
    while len(parts) > 1 and sum(map(len, parts)) + len(parts) > _MAX_PATH_LENGTH:
        del parts[0]
    return "/".join(parts) or None


class ImageFinder:
    """Searches `folders` in order. A name found as it is written takes precedence over other
    spellings.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._above = tuple(_key(str(folder.absolute())).split("/")[::-1] for folder in folders)
        self._here: dict[str, bool] = {}
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._lock = threading.Lock()
        #: Names whose file was found only by the last parts of the path, without confirmation by a
        #: folder's name.
        self.by_tail: dict[str, Path] = {}

    def find(self, name: str) -> Path | None:
        """The image file, or None if there is none or it is ambiguous."""
        found = self.candidates(name)
        return found[0] if len(found) == 1 else None

    def path(self, name: str) -> Path:
        """As `find`. Raises ImageError if there is none or it is ambiguous."""
        found = self.candidates(name)
        if not found:
            looked = ", ".join(map(str, self.folders))
            raise ImageError(
                f"there is no picture {escape(name)}",
                got=f"no such file in {looked}",
                do="Name its folder in data.images or by --images",
            )
        if len(found) > 1:
            raise ImageError(
                f"the picture {escape(name)} may be several files",
                got=list_alternatives(found),
                do="Name it as it is written",
            )
        return found[0]

    def candidates(self, name: str) -> list[Path]:
        """The files that the name may mean: none, one, or several if it is ambiguous.

        Searched in this order: as written, in the first folder that has it; by its longest tail,
        including the names of the folder itself; by COCO's naming variants; by its tail, ignoring
        case and Unicode normalization of accents. `%20` may be a space.
        """
        asked = normalize_image_name(name)
        if asked is None:
            return []
        for folder in self.folders:
            if _is_file(f"{folder}/{asked}"):
                return [folder / asked]
        spellings = _spellings(asked)
        for look in (self._exactly, self._alike):
            for spelled in spellings:
                found, confirmed = self._by_tail(spelled, look)
                if not found and look == self._exactly:
                    found = next(
                        ([Path(path)] for path in self._as_coco(spelled) if _is_file(path)), []
                    )
                if len(found) == 1 and not confirmed and not _COCO.fullmatch(found[0].name):
                    self.by_tail[name] = found[0]
                if found:
                    return found
        return []

    def _by_tail(
        self, name: str, list_matches: Callable[[str, list[str]], Iterator[str]]
    ) -> tuple[list[Path], bool]:
        """The files below the folders that share most of the name's last parts; and whether the
        part before them matches the folder's own name or does not exist.
        """
        parts = name.split("/")[-_MAX_PARTS:]
        keys = [_key(part) for part in parts]
        best, found, confirmed = 0, dict[str, Path](), True
        for at in range(len(parts)):
            for folder, above in zip(self.folders, self._above, strict=True):
                around = _in_common(keys[:at][::-1], above)
                shared = len(parts) - at + around
                for path in list_matches(str(folder), parts[at:]) if shared >= best else ():
                    found = found if shared == best else {}
                    best, confirmed = shared, at == 0 or around > 0
                    found.setdefault(os.path.realpath(path), Path(path))
        return list(found.values()), confirmed

    def _exactly(self, folder: str, parts: list[str]) -> Iterator[str]:
        path = "/".join((folder, *parts))
        if self._is_folder(path.rpartition("/")[0]) and _is_file(path):
            yield path

    def _alike(self, folder: str, parts: list[str]) -> Iterator[str]:
        """Every file whose path differs from `parts` only in case or Unicode normalization."""
        paths = [folder]
        for part in parts:
            key = _key(part)
            paths = [f"{path}/{name}" for path in paths for name in self._names(path).get(key, ())][
                :_MAX_ALIKE
            ]
        yield from (path for path in paths if path != folder and _is_file(path))

    def _as_coco(self, name: str) -> Iterator[str]:
        """COCO's other names for an image, only in existing folders."""
        coco = _COCO.fullmatch(name.rpartition("/")[2])
        for folder in self.folders if coco else ():
            for below in _FOLDERS:
                at = f"{folder}/{below}".rstrip("/")
                if self._is_folder(at):
                    yield from (f"{at}/{prefix}{coco[1]}" for prefix in _SPELLINGS) if coco else ()

    def _is_folder(self, path: str) -> bool:
        if path not in self._here:
            self._here[path] = _mode(path, stat.S_ISDIR)
        return self._here[path]

    def _names(self, folder: str) -> dict[str, list[str]]:
        """The entries of a folder, grouped by normalized name; listed once."""
        with self._lock:
            if folder not in self._listed:
                names: dict[str, list[str]] = {}
                try:
                    with os.scandir(folder) as entries:
                        for entry in entries:
                            names.setdefault(_key(entry.name), []).append(entry.name)
                except (OSError, ValueError):  # not a folder
                    pass
                self._listed[folder] = names
            return self._listed[folder]


def list_alternatives(paths: Sequence[Path]) -> str:
    """The files of an ambiguous name, for an error message."""
    return " or ".join(quote(str(path), 120) for path in paths[:4])


def _spellings(name: str) -> list[str]:
    """The name and its possible readings: URL escapes decoded, whitespace stripped."""
    plain = unquote(name, errors="surrogateescape") if "%" in name else name
    others = (normalize_image_name(other) for other in (plain, name.strip(), plain.strip()))
    return list(dict.fromkeys([name, *(other for other in others if other is not None)]))


def _in_common(parts: list[str], others: list[str]) -> int:
    """Length of the common prefix."""
    return next(
        (at for at, (one, other) in enumerate(zip(parts, others, strict=False)) if one != other),
        min(len(parts), len(others)),
    )


def _key(name: str) -> str:
    return (
        name.casefold()
        if name.isascii()
        else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def _is_file(path: str) -> bool:
    return _mode(path, stat.S_ISREG)


def _mode(path: str, is_kind: Callable[[int], bool]) -> bool:
    try:
        return is_kind(os.stat(path).st_mode)
    except (OSError, ValueError):  # missing, too long for the file system, or an invalid name
        return False
