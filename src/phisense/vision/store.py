"""The feature store: every picture encoded once, on disk.

    features-00000.safetensors   "features" (N, P, D); its metadata names the N pictures and the encoder
    ...
    manifest.json                written last: the encoder's fingerprint, shapes, and the sha256 of every shard

A shard is complete or absent, and says itself what it holds, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import artefact
from ..conversations import Pictures
from ..errors import ArtefactError
from .encoders import Encoder
from .pictures import open_picture

KIND = "feature store"
Progress = Callable[[int, int], None]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def encode_pictures(
    folder: Path, encoder: Encoder, names: Sequence[str], images: Pictures, *, dtype: str, batch: int, shard: int, progress: Progress
) -> dict[str, Any]:
    """Writes the store of `names` (found in `images`), keeping the shards a former run finished; returns its facts."""
    wanted = sorted(set(names))
    folder.mkdir(parents=True, exist_ok=True)
    done = _finished(folder, encoder.fingerprint, set(wanted))
    held = {name for names_done in done.values() for name in names_done}
    left = [name for name in wanted if name not in held]
    progress(len(held), len(wanted))
    number = 0
    for start in range(0, len(left), shard):
        while (path := folder / f"features-{number:05d}.safetensors") in done:
            number += 1
        members = left[start : start + shard]
        rows = list(_encode(encoder, members, images, batch, lambda n: progress(len(held) + n, len(wanted))))
        # One key: safetensors writes several in no fixed order, and equal shards should be equal bytes.
        facts = {"phisense": orjson.dumps({"encoder": encoder.fingerprint, "names": members}).decode()}
        artefact.write_bytes(path, save({"features": torch.cat(rows).to(_DTYPES[dtype]).contiguous()}, metadata=facts))
        done[path] = members
        held.update(members)
    about = {"encoder": encoder.fingerprint, "pictures": len(wanted), "tokens": encoder.patches, "width": encoder.width, "dtype": dtype}
    artefact.write_manifest(folder, kind=KIND, about=about)
    return about


def _encode(encoder: Encoder, names: list[str], images: Pictures, batch: int, progress: Callable[[int], None]) -> Iterator[torch.Tensor]:
    """Reads ahead in threads while the encoder works."""
    with ThreadPoolExecutor(4) as pool:
        batches = [names[i : i + batch] for i in range(0, len(names), batch)]
        reading = [pool.submit(_open_all, images, batches[0])]
        for i in range(len(batches)):
            if i + 1 < len(batches):
                reading.append(pool.submit(_open_all, images, batches[i + 1]))
            yield encoder.encode(reading[i].result()).cpu()
            progress(i * batch + len(batches[i]))


def _open_all(images: Pictures, names: list[str]) -> list[Any]:
    return [open_picture(images.path(name), name=name) for name in names]


def _finished(folder: Path, fingerprint: str, wanted: set[str]) -> dict[Path, list[str]]:
    """Shards of a former run that can stay. Those of another encoder are an error, those of pictures no longer asked for go."""
    (folder / artefact.MANIFEST).unlink(missing_ok=True)
    kept: dict[Path, list[str]] = {}
    for path in sorted(folder.glob("features-*.safetensors")):
        made_by, names = _shard_facts(path)
        if made_by != fingerprint:
            raise ArtefactError(
                f"the feature store {folder} was made by another encoder",
                got=f"encoder {made_by[:12]}",
                wanted=f"encoder {fingerprint[:12]}",
                do=f"Remove {folder} to encode again, or give the recipe another name",
            )
        if wanted.issuperset(names):
            kept[path] = names
        else:
            path.unlink()
    return kept


def _shard_facts(path: Path) -> tuple[str, list[str]]:
    try:
        with safe_open(path, "pt") as shard:
            facts = orjson.loads((shard.metadata() or {}).get("phisense", "{}"))
    except SafetensorError as error:
        raise ArtefactError(f"{path} is damaged", got=str(error), do="Remove it and run phisense features again") from error
    return facts.get("encoder", "unknown"), facts.get("names", [])


class FeatureStore:
    """Reads a finished store. `features(name)` is `(P, D)`."""

    def __init__(self, folder: Path, *, encoder: str | None = None) -> None:
        """`encoder` is the fingerprint that the store must have been made by."""
        about = artefact.read_manifest(folder, kind=KIND, verify=False)
        if encoder is not None and about["encoder"] != encoder:
            raise ArtefactError(
                f"the feature store {folder} was made by another encoder",
                got=f"encoder {about['encoder'][:12]}",
                wanted=f"encoder {encoder[:12]}",
                do="Run phisense features with this recipe",
            )
        self.folder = folder
        self.encoder = str(about["encoder"])
        self.tokens, self.width = int(about["tokens"]), int(about["width"])
        self._shards: list[Any] = []
        self._where: dict[str, tuple[int, int]] = {}
        for number, path in enumerate(sorted(folder.glob("features-*.safetensors"))):
            _, names = _shard_facts(path)
            shard = safe_open(path, "pt")
            self._shards.append(shard.get_slice("features"))
            self._where.update((name, (number, row)) for row, name in enumerate(names))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._where)

    @property
    def names(self) -> list[str]:
        return sorted(self._where)

    def features(self, name: str) -> torch.Tensor:
        """`(P, D)` in the store's dtype. Raises ArtefactError if the picture was not encoded."""
        if name not in self._where:
            raise ArtefactError(f"the feature store {self.folder} has no picture {name}", do="Run phisense features again with this recipe")
        shard, row = self._where[name]
        rows: torch.Tensor = self._shards[shard][row]
        return rows
