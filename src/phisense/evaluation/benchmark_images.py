"""Images embedded in the files of a benchmark, unpacked into a folder, each once, under names
derived from their content.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .. import artifacts, console
from ..conversations.rows import content_name
from ..errors import DataError
from ..vision.image_io import MAX_IMAGE_BYTES, open_image
from .benchmark_io import Row


class ImageUnpacker:
    """Unpacks images embedded in a file. Without a folder it only names them: scoring existing
    answers does not need the images.
    """

    def __init__(self, folder: Path | None, sources: Sequence[str], stack: ExitStack) -> None:
        self._folder, self._sources, self._stack = folder, sources, stack
        self._seen = 0
        self._total: int | None = None
        self._bars: console.ProgressBars | None = None

    def name(self, picture: Any, of: str) -> str:
        """The file name of an image given as bytes, as {"bytes": ...}, or in base64. Raises
        ImageError if it is not an image.
        """
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if isinstance(data, str):
            data = _decoded(data, of)
        if not isinstance(data, bytes):
            raise DataError(
                f"{of} has a picture that is not inside the file",
                got=type(data).__name__,
                wanted="its bytes, or base64",
            )
        name = content_name(data)
        if self._folder is not None:
            if not (self._folder / name).exists():
                open_image(data, name=f"a picture of {of}")
                artifacts.write_bytes(self._folder / name, data)
            self._tell()
        return name

    def _tell(self) -> None:
        if self._bars is None:
            self._bars = self._stack.enter_context(console.progress_bars())
            counts = [_count(Path(source)) for source in self._sources]
            self._total = None if None in counts else sum(n for n in counts if n is not None)
        self._seen += 1
        self._bars("unpacking pictures", self._seen, self._total)


def _count(path: Path) -> int | None:
    """The number of rows of a file, each of which has an image; None where counting is
    expensive.
    """
    if path.suffix == ".tsv" and path.is_file():
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b"")) - 1
    if path.suffix == ".parquet" and path.is_file():
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    return None


@contextmanager
def unpack_images(folder: Path | None, sources: Sequence[str]) -> Iterator[ImageUnpacker]:
    """Context manager: an unpacker that shows its progress until the end of the block."""
    with ExitStack() as stack:
        yield ImageUnpacker(folder, sources, stack)


def _decoded(text: str, of: str) -> bytes:
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise DataError(
            f"{of} has a picture that is too large",
            got=f"{len(text) * 3 // 4 / 2**20:.0f} MB",
            wanted=f"{MAX_IMAGE_BYTES // 2**20} MB",
        )
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, and non-ASCII characters
        raise DataError(f"{of} has a picture that is not base64", got=str(error)) from error


def picture_name(
    row: Row,
    pictures: ImageUnpacker,
    of: str,
    otherwise: str | None = None,
    names: Sequence[str] = ("image",),
) -> str | None:
    """The image of a row, which is the first of the fields `names` that it has: its name, or the
    name that `pictures` gives embedded bytes; `otherwise` if it has none.
    """
    image = next((row[name] for name in names if row.get(name) is not None), None)
    if image is None:
        return otherwise
    return image if isinstance(image, str) else pictures.name(image, of)
