"""Reads a model folder's weights one at a time: 7.6 GB pass through a few hundred megabytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ArtifactError
from ..opening import validate_folder

_LANGUAGE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(.+)$")


def name_in_language_part(name: str) -> str | None:
    """Name of a weight within the language model; None if it belongs to another part."""
    inner = _LANGUAGE.match(name)
    return inner[1] if inner else name if name == "lm_head.weight" else None


class WeightReader:
    """Reads single weights of a folder.

    Names of the language model are relative to it, such as `layers.0.mlp.down_proj.weight` and
    `lm_head.weight`; the others are LLaVA's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.language: dict[str, tuple[Path, str]] = {}
        self.vision: dict[str, tuple[Path, str]] = {}
        for name, stored in validate_folder(folder).headers.items():
            inner = name_in_language_part(name)
            (self.vision if inner is None else self.language)[
                inner or name.removeprefix("model.")
            ] = (stored.file, name)

    def shape(self, name: str) -> list[int]:
        """Shape of a weight. Raises ArtifactError if it is missing."""
        path, stored = self._find(name)
        with self._opened(path) as file:
            return list(file.get_slice(stored).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor by its name in the model."""
        path, stored = self._find(name)
        with self._opened(path) as file:
            found: torch.Tensor = file.get_tensor(stored)
        return found

    def read_vision(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the vision tower's and projector's tensors under their names in the folder."""
        for name, (_, stored) in self.vision.items():
            yield stored, self.read(name)

    def _find(self, name: str) -> tuple[Path, str]:
        found = self.language.get(name) or self.vision.get(name)
        if found is None:
            raise ArtifactError(
                f"{self.folder} lacks a weight", got=f"no {name}", do="Run phisense merge again"
            )
        return found

    def _opened(self, path: Path) -> Any:
        try:
            return safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{path} cannot be opened",
                got=str(error).splitlines()[0],
                do="Run phisense merge again",
            ) from error
