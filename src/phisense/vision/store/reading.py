"""Reads a finished store, row by row through a memory map. A shard is verified when it is first used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ... import artefact
from ...errors import ArtefactError
from ..encoders import Encoder, check_same_encoder
from .formats import Format, unpack
from .writing import INDEX, KIND, shard_paths


class FeatureStore:
    """`features(name)` is `(P, D)`. `encoder` is the fingerprint of what made it."""

    def __init__(self, folder: Path, *, facts: dict[str, Any] | None = None, dtype: str | None = None, live: Encoder | None = None) -> None:
        """`facts` are those of the encoder that must have made the store, `dtype` the format it must have.

        A store of pixels is read through `live`, the encoder itself. Raises ArtefactError for a store of another kind.
        """
        about = artefact.read_manifest(folder, kind=KIND, verify=False)
        if facts is not None:
            check_same_encoder(folder, got=about["facts"], wanted=facts, do="Run phisense features with this recipe")
        if dtype is not None and about["dtype"] != dtype:
            raise ArtefactError(
                f"the feature store {folder} is of another format", got=about["dtype"], wanted=dtype,
                do="Set features.dtype, or remove the store and run phisense features",
            )  # fmt: skip
        if about["dtype"] == "pixels" and live is None:
            raise ArtefactError(f"the feature store {folder} holds pixels", wanted="an encoder to read it with")
        self.folder = folder
        self.encoder = str(about["encoder"])
        self.digest = artefact.sha256(folder / artefact.MANIFEST)  # which names the sha256 of every file
        self.tokens, self.width = int(about["tokens"]), int(about["width"])
        self.format: Format = about["dtype"]
        self.live = live
        self._where: dict[str, tuple[int, int]] = artefact.read_json(folder / INDEX)
        self._paths = shard_paths(folder)
        self._files: dict[str, dict[str, Any]] = artefact.read_json(folder / artefact.MANIFEST)["files"]
        self._open: dict[int, dict[str, Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._where)

    @property
    def names(self) -> list[str]:
        return sorted(self._where)

    def features(self, name: str) -> torch.Tensor:
        """`(P, D)`. Raises ArtefactError if the picture was not encoded, or its shard was changed since."""
        return self.batch([name])[0]

    def batch(self, names: list[str]) -> torch.Tensor:
        """`(B, P, D)`, in the store's dtype (int8 as float16, pixels as the encoder gives them)."""
        rows = self._rows(names)
        return self.live.encode_prepared(rows).cpu() if self.live is not None and self.format == "pixels" else rows

    def pixels(self, names: list[str]) -> torch.Tensor:
        """What a store of pixels holds, as its encoder's model takes it: `(B, 3, S, S)`, normalised."""
        assert self.live is not None, "a store of features has no pixels"
        return self.live.normalise(self._rows(names))

    def _rows(self, names: list[str]) -> torch.Tensor:
        """Copied into one tensor rather than stacked: a CPU's autocast, under which somebody may read, cannot stack float16."""
        first = self._row(names[0])
        rows = torch.empty(len(names), *first.shape, dtype=first.dtype)
        for place, name in enumerate(names):
            rows[place] = first if place == 0 else self._row(name)
        return rows

    def _row(self, name: str) -> torch.Tensor:
        if name not in self._where:
            raise ArtefactError(f"the feature store {self.folder} has no picture {name}", do="Run phisense features again with this recipe")
        number, row = self._where[name]
        return unpack({key: held[row] for key, held in self._shard(number).items()}, self.format)

    def _shard(self, number: int) -> dict[str, Any]:
        """Slices of the shard's tensors, opened and verified once."""
        if number not in self._open:
            path = self._paths[number]
            artefact.verify_file(path, self._files.get(path.name), do="Remove it and run phisense features again")
            file = safe_open(path, "pt")
            self._open[number] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
        return self._open[number]


__all__ = ["FeatureStore"]
