"""Ownership of files: a visitor may name only files that the visitor uploaded or was given."""

from __future__ import annotations

import os
import secrets
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

from PIL.Image import Image

from ..errors import UsageError

#: The same message for every rejected path, so that it does not reveal which files exist.
NOT_AN_UPLOAD = (
    "that is no upload of yours",
    "Upload the file itself; uploads are forgotten after an hour",
)


class Uploads:
    """Registry of uploads: `owner` is a visitor's secret, `folder` is Gradio's upload folder.

    Paths are compared as the strings that were handed out; an unregistered path never reaches the
    file system.
    """

    def __init__(self, folder: Path, limit: int, seconds: float) -> None:
        self.folder, self.limit, self.seconds = folder.resolve(), limit, seconds
        self._owners: dict[str, dict[str, float]] = {}  # by path: owner -> time of its last use
        self._shared: set[str] = set()
        self._saved: dict[str, Path] = {}  # by owner: the image last generated for it
        self._lock = threading.Lock()

    def add(self, owner: str, path: str) -> None:
        """Register an upload. Visitors who upload the same file share a path, which Gradio derives
        from the content.
        """
        with self._lock:
            self._owners.setdefault(path, {})[owner] = time.monotonic()

    def share(self, path: str) -> None:
        """Register a file that every visitor may name: an example."""
        self._shared.add(path)

    def save_image(self, owner: str, image: Image) -> Path:
        """Save an image generated for one visitor, replacing the previous one. The file name is
        new, or a browser would show its cached copy.
        """
        with self._lock:
            before = self._saved.get(owner)
            folder = self.folder / secrets.token_hex(16) if before is None else before.parent
            path = folder / f"{secrets.token_hex(8)}.png"
            folder.mkdir(parents=True, exist_ok=True)
            if before is not None:
                self._owners.pop(str(before), None)
                with suppress(FileNotFoundError):
                    os.replace(before, path)
            self._saved[owner] = path
        image.save(path)  # outside the lock, on which every request waits
        self.add(owner, str(path))
        return path

    def owns(self, owner: str, path: object) -> bool:
        """Whether `owner` may name `path`; no file system access."""
        if not isinstance(path, str):
            return False
        if path in self._shared:
            return True
        with self._lock:
            owners = self._owners.get(path, {})
            if owner in owners:
                owners[owner] = time.monotonic()
            return owner in owners

    def resolve(self, owner: str, path: object) -> Path:
        """Return the file at `path` for a handler to open.

        Raises UsageError, always with the same message, unless it is a regular file in `folder`
        (symbolic links followed), within the size limit, that the visitor uploaded or was given.
        """
        if isinstance(path, str) and self.owns(owner, path) and self._regular(path):
            return Path(path)
        what, do = NOT_AN_UPLOAD
        raise UsageError(what, do=do)

    def _regular(self, path: str) -> bool:
        try:
            found = Path(path).resolve(strict=True)
            told = os.lstat(path)
        except (OSError, ValueError, RuntimeError):
            return False
        return (
            found.is_relative_to(self.folder)
            and stat.S_ISREG(told.st_mode)
            and told.st_size <= self.limit
        )

    def expire(self) -> None:
        """Forget registrations not used for `seconds`. Gradio deletes its own files; nothing else
        in its folder belongs to the page.
        """
        oldest = time.monotonic() - self.seconds
        with self._lock:
            for path, owners in list(self._owners.items()):
                for owner in [owner for owner, named in owners.items() if named < oldest]:
                    del owners[owner]
                if not owners:
                    del self._owners[path]
            self._saved = {
                owner: path
                for owner, path in self._saved.items()
                if str(path) in self._owners or path.exists()
            }
