"""Writes the store. A shard is complete or absent, and says itself what it holds, so an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ... import artefact
from ...conversations import Pictures
from ...errors import ArtefactError, PictureError
from ...processes import Processes
from ..encoders import Encoder, check_same_encoder
from ..pictures import open_picture
from .formats import Format, pack

KIND = "feature store"
INDEX = "pictures.json"
#: What is being done, how far it is, how far it goes.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Shard:
    """What a shard's own metadata says: the encoder's facts, the format, and the digests of its pictures, a row each."""

    encoder: dict[str, Any]
    format: str
    digests: list[str]


def encode_pictures(
    folder: Path, encoder: Encoder, names: Sequence[str], images: Pictures, *, dtype: Format, batch: int, shard: int, progress: Progress,
    processes: Processes | None = None, computed_in: str = "float32",
) -> dict[str, Any]:  # fmt: skip
    """Writes the store of `names` (found in `images`), keeping the shards a former run finished; returns its facts.

    Equal pictures are encoded once. Which pictures a shard holds depends on the names and their content alone, so that
    an interrupted run and several processes write the same bytes as one uninterrupted process.
    """
    processes = processes or Processes()
    digests = _digests(sorted(set(names)), images, progress)
    firsts: dict[str, str] = {}
    for name, digest in digests.items():
        firsts.setdefault(digest, name)
    folder.mkdir(parents=True, exist_ok=True)
    done = _finished(folder, encoder, dtype, set(firsts), clear=processes.first)
    processes.wait()  # nobody writes while somebody still looks
    held = {digest for shard_ in done.values() for digest in shard_.digests}
    todo = _todo([digest for digest in firsts if digest not in held], shard, set(done), folder)
    count = len(held)
    progress("encoding pictures", count, len(firsts))
    for path, members in todo[processes.rank :: processes.count]:
        packed = []  # batch by batch: a shard of float32 rows would take gigabytes
        for some in _encode(encoder, [firsts[digest] for digest in members], images, batch, dtype):
            packed.append(pack(some, dtype))
            count += len(some)
            progress("encoding pictures", count, len(firsts))
        # One key: safetensors writes several in no fixed order, and equal shards should be equal bytes.
        facts = {"phisense": orjson.dumps({"encoder": encoder.facts, "format": dtype, "digests": members}).decode()}
        artefact.write_bytes(path, save({key: torch.cat([rows[key] for rows in packed]) for key in packed[0]}, metadata=facts))
    processes.wait()
    about = {
        "encoder": encoder.fingerprint, "facts": encoder.facts, "pictures": len(digests), "distinct": len(firsts),
        "tokens": encoder.patches, "width": encoder.width, "dtype": dtype, "computed_in": computed_in,
    }  # fmt: skip
    if processes.first:
        _write_index(folder, digests)
        artefact.write_manifest(folder, kind=KIND, about=about)
    processes.wait()
    return about


def _digests(names: Sequence[str], images: Pictures, progress: Progress) -> dict[str, str]:
    """The content of each picture, by a hash of its bytes."""

    def digest(name: str) -> str:
        try:
            with images.path(name).open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            raise PictureError(f"the picture {name} cannot be read", got=error.strerror) from error

    found = {}
    with ThreadPoolExecutor(4) as pool:
        for done, (name, value) in enumerate(zip(names, pool.map(digest, names), strict=True), 1):
            found[name] = value
            if not done % 256 or done == len(names):
                progress("finding pictures", done, len(names))
    return found


def _todo(left: list[str], shard: int, taken: set[Path], folder: Path) -> list[tuple[Path, list[str]]]:
    """Free file names for what is left, `shard` pictures in each."""
    jobs = []
    number = 0
    for start in range(0, len(left), shard):
        while (path := shard_path(folder, number)) in taken:
            number += 1
        jobs.append((path, left[start : start + shard]))
        number += 1
    return jobs


def _encode(encoder: Encoder, names: list[str], images: Pictures, batch: int, format_: Format) -> Iterator[torch.Tensor]:
    """Reads ahead in threads while the encoder works."""
    work = encoder.prepare if format_ == "pixels" else encoder.encode
    with ThreadPoolExecutor(4) as pool:
        batches = [names[i : i + batch] for i in range(0, len(names), batch)]
        reading = [pool.submit(_open_all, images, batches[0])]
        for i in range(len(batches)):
            if i + 1 < len(batches):
                reading.append(pool.submit(_open_all, images, batches[i + 1]))
            yield work(reading[i].result()).cpu()


def _open_all(images: Pictures, names: list[str]) -> list[Any]:
    return [open_picture(images.path(name), name=name) for name in names]


def _finished(folder: Path, encoder: Encoder, format_: Format, wanted: set[str], *, clear: bool) -> dict[Path, Shard]:
    """Shards of a former run that can stay. Those of another encoder or format are an error; those of pictures no longer asked for go."""
    if clear:
        (folder / artefact.MANIFEST).unlink(missing_ok=True)
        for leftover in folder.glob(".*.partial"):  # of a run that was killed
            leftover.unlink()
    kept: dict[Path, Shard] = {}
    for path in sorted(folder.glob("features-*.safetensors")):
        shard = shard_facts(path)
        remove = f"Remove {folder} to encode again, or give the recipe another name"
        check_same_encoder(folder, got=shard.encoder, wanted=encoder.facts, do=remove)
        if shard.format != format_:
            raise ArtefactError(f"the feature store {folder} is of another format", got=shard.format, wanted=format_, do=remove)
        if wanted.issuperset(shard.digests):
            kept[path] = shard
        elif clear:
            path.unlink()
    return kept


def _write_index(folder: Path, digests: dict[str, str]) -> None:
    where = {d: [n, row] for n, path in enumerate(shard_paths(folder)) for row, d in enumerate(shard_facts(path).digests)}
    artefact.write_bytes(folder / INDEX, orjson.dumps({name: where[digest] for name, digest in digests.items()}))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.safetensors"


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("features-*.safetensors"))


def shard_facts(path: Path) -> Shard:
    try:
        with safe_open(path, "pt") as shard:
            facts = orjson.loads((shard.metadata() or {}).get("phisense", "{}"))
    except SafetensorError as error:
        raise ArtefactError(f"{path} is damaged", got=str(error), do="Remove it and run phisense features again") from error
    return Shard(facts.get("encoder", {}), facts.get("format", "unknown"), facts.get("digests", []))
