"""The weights of a model folder, one at a time: a 7.6 GB model passes through a few hundred megabytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ArtefactError
from ..parts import weight_files

_LANGUAGE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(.+)$")


def language_name(name: str) -> str | None:
    """The name that a weight of the whole model has within the language part; None for one that is not in it."""
    inner = _LANGUAGE.match(name)
    return inner[1] if inner else name if name == "lm_head.weight" else None


class Weights:
    """The language part's weights are called as within it, `layers.0.mlp.down_proj.weight` and `lm_head.weight`; the others as in LLaVA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.language: dict[str, tuple[Path, str]] = {}
        self.vision: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder):
            with self._opened(path) as file:
                for name in file.keys():  # noqa: SIM118, it is no dict
                    inner = language_name(name)
                    (self.vision if inner is None else self.language)[inner or name.removeprefix("model.")] = (path, name)

    def shape(self, name: str) -> list[int]:
        """Raises ArtefactError for a weight that is not there."""
        path, stored = self._find(name)
        with self._opened(path) as file:
            return list(file.get_slice(stored).get_shape())

    def read(self, name: str) -> torch.Tensor:
        path, stored = self._find(name)
        with self._opened(path) as file:
            found: torch.Tensor = file.get_tensor(stored)
        return found

    def seeing(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The vision tower and the projector, under the names that the folder has for them."""
        for name, (_, stored) in self.vision.items():
            yield stored, self.read(name)

    def _find(self, name: str) -> tuple[Path, str]:
        found = self.language.get(name) or self.vision.get(name)
        if found is None:
            raise ArtefactError(f"{self.folder} lacks a weight", got=f"no {name}", do="Run phisense merge again")
        return found

    def _opened(self, path: Path) -> Any:
        try:
            return safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{path} cannot be opened", got=str(error).splitlines()[0], do="Run phisense merge again") from error
