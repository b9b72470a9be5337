"""Random access to a finished store through a memory map; an image's name returns its own features
or an error.

name in the data -> image file -> digest -> row, from the index -> the row's digest in the shard ->
its checksum
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import torch

from ...conversations import ImageFinder
from ...errors import ArtifactError
from ..encoders.encode import Encoder, check_same_encoder, facts_fingerprint
from .contents import check_locations, open_shards, read_index, read_store_manifest
from .digests import image_digest
from .formats import StoreFormat, unpack_rows
from .shards import REPLACE_HINT

ENCODE_HINT = "Run phisense features again with this recipe"


class FeatureStore:
    """A finished store; `encoder` is the fingerprint of the encoder that made it."""

    def __init__(
        self,
        folder: Path,
        *,
        facts: dict[str, Any] | None = None,
        dtype: str | None = None,
        live: Encoder | None = None,
        images: ImageFinder | None = None,
    ) -> None:
        """Open a store and require encoder `facts` and format `dtype`, if given.

        A store of pixels needs the encoder `live`. An image that is found in `images` must be the
        one that was encoded; for a missing image file the index is trusted.

        Raises ArtifactError for a store of another kind, and for a modified index, shard or row
        digest. Rows are verified when they are first read.
        """
        manifest = read_store_manifest(folder, do=f"{ENCODE_HINT} and --overwrite")
        about = manifest.about
        if facts is not None:
            check_same_encoder(
                folder,
                got=about.facts,
                wanted=facts,
                do=f"Run phisense features with this recipe. {REPLACE_HINT}",
            )
        if dtype is not None and about.dtype != dtype:
            raise ArtifactError(
                f"the feature store {folder} is of another format",
                got=about.dtype,
                wanted=dtype,
                do=f"Set features.dtype. {REPLACE_HINT}",
            )
        if about.dtype == "pixels" and live is None:
            raise ArtifactError(
                f"the feature store {folder} holds pixels", wanted="an encoder to read it with"
            )
        self.folder = folder
        self.encoder = facts_fingerprint(about.facts)
        self.tokens, self.width = about.tokens, about.width
        self.format: StoreFormat = about.dtype
        self.live = live
        self._images = images
        self._same: set[str] = set()  # names whose image files are verified
        self._where = read_index(folder, manifest)
        self._shards = open_shards(folder, manifest)
        check_locations(folder, manifest, self._where, self._shards)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._where)

    @property
    def names(self) -> list[str]:
        """Names of the stored images, sorted."""
        return sorted(self._where)

    def features(self, name: str) -> torch.Tensor:
        """Features `(P, D)` of an image.

        Raises ArtifactError if the image was not encoded, or it or its row has changed since.
        """
        return self.batch([name])[0]

    def batch(self, names: list[str]) -> torch.Tensor:
        """Features `(B, P, D)` in the store's dtype (int8 as float16, pixels encoded by `live`)."""
        rows = self._rows(names)
        return (
            self.live.encode_prepared(rows).cpu()
            if self.live is not None and self.format == "pixels"
            else rows
        )

    def pixels(self, names: list[str]) -> torch.Tensor:
        """Normalized model input `(B, 3, S, S)` from a store of pixels."""
        assert self.live is not None, "a store of features has no pixels"
        return self.live.normalize(self._rows(names))

    def check(self, names: Iterable[str]) -> None:
        """Verify the images of these names.

        Raises ArtifactError for an image that has changed or was not encoded. Without it, an image
        is verified when it is read; called before training, it prevents failures during training.
        """
        new = sorted(set(names) - self._same)
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(self._check, new):
                pass

    def digest(self, names: Iterable[str]) -> str:
        """Digest of the features of these names, from their rows' checksums.

        It does not depend on other rows of the store.
        """
        rows = [
            (name, self._shards[number].checksums[row])
            for name in sorted(set(names))
            for number, row, _ in [self._where[name]]
        ]
        return hashlib.sha256(orjson.dumps(rows)).hexdigest()

    def _check(self, name: str) -> None:
        if name not in self._where:
            raise ArtifactError(
                f"the feature store {self.folder} has no picture {name}", do=ENCODE_HINT
            )
        path = self._images.find(name) if self._images is not None else None
        if path is not None and image_digest(path, name) != self._where[name][2]:
            raise ArtifactError(
                f"the picture {name} is another than the one in the feature store",
                got=path,
                do=ENCODE_HINT,
            )
        self._same.add(name)

    def _rows(self, names: list[str]) -> torch.Tensor:
        """Copy the rows into one tensor; under CPU autocast, `torch.stack` cannot stack float16."""
        first = self._row(names[0])
        rows = torch.empty(len(names), *first.shape, dtype=first.dtype)
        for place, name in enumerate(names):
            rows[place] = first if place == 0 else self._row(name)
        return rows

    def _row(self, name: str) -> torch.Tensor:
        if name not in self._same:
            self._check(name)
        number, row, _ = self._where[name]
        return unpack_rows(self._shards[number].row(row), self.format)


__all__ = ["FeatureStore"]
