"""One file of a store. Each row has its image's digest and a checksum, so it is verified or
rejected independently of everything else.

Metadata of a shard: the encoder's facts, the format, the compute dtype, and for each row the digest
of its image file and a checksum over all of this and the row's bytes. A row that was moved to
another position, another shard, or another image's digest does not match its checksum.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...errors import ArtifactError
from ...malloc import unmap_pages
from ..encoders.encode import facts_fingerprint
from .formats import TENSORS

ENCODE_AGAIN_HINT = "Remove it and run phisense features again"
MOVE_HINT = "Move it elsewhere and run phisense features again"
#: Remedy for a store that this recipe cannot extend.
REPLACE_HINT = (
    "Name another folder with features.folder, or replace the store with phisense features"
    " --overwrite"
)
_NAME = re.compile(r"features-(\d{5,9})\.safetensors")


#: Metadata keys of a shard before rows had checksums.
_EARLIER = {"encoder", "format", "digests"}


class _ShardMetadata(BaseModel):
    """Metadata of a shard."""

    model_config = ConfigDict(strict=True, frozen=True)

    encoder: dict[str, Any]
    format: str
    computed_in: str
    digests: list[str]
    checksums: list[str]


class Shard:
    """An open shard; `digests` are those of the image files, one per row."""

    def __init__(self, path: Path) -> None:
        """Read the header only.

        Raises ArtifactError if the file is not a shard, is damaged, or has rows without checksums.
        """
        self.path = path
        if not is_regular_file(path):
            raise ArtifactError(
                f"{path} is no file", wanted="a shard of a feature store", do=MOVE_HINT
            )
        with translate_read_errors(path):
            self._file = safe_open(path, "pt")
            said = (self._file.metadata() or {}).get("phisense")
            if said is None:
                raise ArtifactError(
                    f"{path} is no shard of a feature store",
                    got="a file of that name",
                    do=MOVE_HINT,
                )
            raw = orjson.loads(said)
            if isinstance(raw, dict) and raw.keys() == _EARLIER:
                raise ArtifactError(
                    f"{path} was written by an earlier version, without checksums", do=REPLACE_HINT
                )
            self._said = _ShardMetadata.model_validate(raw)
            keys = list(self._file.keys())  # it is no mapping
            self._slices = {key: self._file.get_slice(key) for key in keys}
            found = {key: held.get_dtype() for key, held in self._slices.items()}
            rows = {
                len(self._said.digests),
                len(self._said.checksums),
                *(held.get_shape()[0] for held in self._slices.values()),
            }
            if found != TENSORS.get(self._said.format) or len(rows) != 1:
                raise ArtifactError(
                    f"{path} is damaged",
                    got="tensors that are not those of its pictures",
                    do=ENCODE_AGAIN_HINT,
                )
        self.encoder = self._said.encoder
        self.format = self._said.format
        self.computed_in = self._said.computed_in
        self.digests, self.checksums = self._said.digests, self._said.checksums
        self._fingerprint = facts_fingerprint(self.encoder)
        self._verified = bytearray(len(self.digests))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's row: `(P, D)`, or `(3, S, S)` for pixels."""
        return tuple(
            self._slices["pixels" if self.format == "pixels" else "features"].get_shape()[1:]
        )

    def row(self, number: int) -> dict[str, torch.Tensor]:
        """The tensors of one image, verified on first read.

        Raises ArtifactError if they differ from what was written.
        """
        with translate_read_errors(self.path):
            tensors = {key: _copy_row(held[number]) for key, held in self._slices.items()}
        if not self._verified[number]:
            if (
                row_checksum(self._fingerprint, self.format, self.digests[number], tensors)
                != self.checksums[number]
            ):
                raise ArtifactError(
                    f"{self.path} is damaged",
                    got=f"another row {number} than was written",
                    do=ENCODE_AGAIN_HINT,
                )
            self._verified[number] = True
        return tensors

    def verify(self) -> None:
        """Verify every row. Raises ArtifactError for one that differs from what was written."""
        for number in range(len(self.digests)):
            self.row(number)


def _copy_row(mapped: torch.Tensor) -> torch.Tensor:
    """A row, copied out of the file's mapping, of which nothing stays resident: an epoch would add
    the whole store to the process.
    """
    row = mapped.clone()
    unmap_pages(mapped.data_ptr(), mapped.numel() * mapped.element_size())
    return row


def row_checksum(
    fingerprint: str, format_: str, digest: str, tensors: dict[str, torch.Tensor]
) -> str:
    """Checksum over an image's digest, the encoder, the format and the bytes of its row."""
    keys = sorted(tensors)
    header = orjson.dumps(
        [
            fingerprint,
            format_,
            digest,
            [[key, str(tensors[key].dtype), list(tensors[key].shape)] for key in keys],
        ]
    )
    found = hashlib.sha256(header)
    for key in keys:
        found.update(tensors[key].contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def shard_bytes(
    tensors: dict[str, torch.Tensor],
    digests: list[str],
    *,
    encoder: dict[str, Any],
    format_: str,
    computed_in: str,
) -> bytes:
    """Serialize a shard from the packed rows of the images with these digests."""
    fingerprint = facts_fingerprint(encoder)
    sums = [
        row_checksum(fingerprint, format_, digest, {key: rows[i] for key, rows in tensors.items()})
        for i, digest in enumerate(digests)
    ]
    said = _ShardMetadata(
        encoder=encoder, format=format_, computed_in=computed_in, digests=digests, checksums=sums
    )
    # One key: safetensors writes several in no fixed order, and equal shards should be equal bytes.
    data: bytes = save(tensors, metadata={"phisense": orjson.dumps(said.model_dump()).decode()})
    return data


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"features-{number:05d}.safetensors"


def shard_number(name: str) -> int | None:
    """Number of the shard with this file name; None for another file."""
    matched = _NAME.fullmatch(name)
    return int(matched[1]) if matched and shard_name(int(matched[1])) == name else None


def is_regular_file(path: Path) -> bool:
    """Whether `path` is a regular file: opening a pipe would block forever."""
    with translate_read_errors(path):
        return path.is_file()


@contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
    """Translate any error of reading a file into one ArtifactError."""
    try:
        yield
    except (SafetensorError, ValidationError, orjson.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path} is damaged", got=first_error_line(error), do=ENCODE_AGAIN_HINT
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}",
            got=error.strerror or str(error),
            do="Check what it is, and that you may read it",
        ) from error


def first_error_line(error: Exception) -> str:
    """The error in one line of at most 160 characters; for pydantic, its first error."""
    if isinstance(error, ValidationError):
        one = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ")[:160]
    return " ".join(str(error).split())[:160]


__all__ = [
    "ENCODE_AGAIN_HINT",
    "MOVE_HINT",
    "REPLACE_HINT",
    "Shard",
    "first_error_line",
    "is_regular_file",
    "row_checksum",
    "shard_bytes",
    "shard_name",
    "shard_number",
    "translate_read_errors",
]
