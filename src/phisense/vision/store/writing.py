"""Writes the store. A shard is complete or absent, and describes its own content, so an interrupted
run resumes.

    inspect (read-only) -> shards under unused numbers -> index under its other name -> manifest,
    the only file that is replaced

Until the manifest is replaced the store is byte for byte the previous one, plus shards that no
manifest names yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import torch

from ... import artifacts, safe_replace
from ...conversations import ImageFinder
from ...distributed import ProcessGroup
from ...errors import ArtifactError, ImageError
from ...pipeline.progress import OnEvent, Progress
from ...pipeline.results import FeaturesResult
from ..encoders.encode import Encoder, facts_fingerprint
from ..image_io import open_image_with_notes
from .contents import (
    INDEX_FILES,
    STORE_FORMAT,
    STORE_KIND,
    ExistingStore,
    StoreMetadata,
    inspect_store,
    names_digest,
)
from .digests import image_digest, image_digests
from .formats import StoreFormat, pack_rows
from .locking import exclusive_writer, remove_partial_files, replace_store
from .shards import Shard, shard_bytes, shard_name

Log = Callable[[str], None]
#: The format of the shards that are there, if any, and the first images -> a format's name.
ChooseFormat = Callable[[str | None, Sequence[Any]], str]


def encode_images(
    folder: Path,
    encoder: Encoder,
    names: Sequence[str],
    images: ImageFinder,
    *,
    dtype: StoreFormat,
    batch: int,
    shard: int,
    on_event: OnEvent,
    processes: ProcessGroup | None = None,
    computed_in: str = "float32",
    choose: ChooseFormat | None = None,
    overwrite: bool = False,
    log: Log = lambda words: None,
) -> FeaturesResult:
    """Add `names` (found in `images`) to the store, which keeps its rows; returns what was added.

    Identical images are encoded once. The images of a shard depend only on the names and their
    content, so an interrupted run and several processes write the same bytes as one uninterrupted
    process. With `choose`, a new store's number format is what it returns for the first images, one
    that exists goes on in its own, and all processes take that of the first; else it is
    `computed_in`, which `encoder` computes in. With `overwrite`, a new store of these names only
    replaces the old one when it is complete. `log` receives what was removed or lost.

    Raises ArtifactError, without changing the folder, if its content cannot be extended or another
    process writes there.
    """
    processes = processes or ProcessGroup()
    digests = image_digests(sorted(set(names)), images, on_event)
    firsts: dict[str, str] = {}
    for name, digest in digests.items():
        firsts.setdefault(digest, name)
    look = partial(inspect_store, facts=encoder.facts, format_=dtype)
    with (
        replace_store(folder, processes, look) if overwrite else nullcontext(folder) as at,
        exclusive_writer(at, processes),
    ):
        existing = look(at)
        sums = _verify(existing, on_event) if processes.is_main else {}
        processes.barrier()  # no rank writes while another still inspects
        if processes.is_main:
            _log_changes(at, remove_partial_files(at), existing, digests, log)
        locations = existing.locations
        blank: list[str] = []
        new = _new_shards(
            [digest for digest in firsts if digest not in locations], shard, set(existing.shards)
        )
        if new and dtype != "pixels":
            first = [firsts[digest] for digest in next(iter(new.values()))[:batch]]
            computed_in = _agree_on_format(
                at, existing, first, encoder, images, computed_in, choose, processes
            )
        done = len(firsts) - sum(map(len, new.values()))
        on_event(Progress("encoding pictures", done, len(firsts), "images"))
        for number in sorted(new)[processes.rank :: processes.world_size]:
            packed = []  # pack per batch: a shard of float32 rows would take gigabytes
            for some in _encode(
                encoder,
                {firsts[digest]: digest for digest in new[number]},
                images,
                batch,
                dtype,
                blank,
            ):
                packed.append(pack_rows(some, dtype))
                done += len(some)
                on_event(Progress("encoding pictures", done, len(firsts), "images"))
            rows = {key: torch.cat([one[key] for one in packed]) for key in packed[0]}
            data = shard_bytes(
                rows, new[number], encoder=encoder.facts, format_=dtype, computed_in=computed_in
            )
            artifacts.write_bytes(at / shard_name(number), data)
        if blank:
            log(
                f"{len(blank):,} of the pictures encoded now have nothing to see on them;"
                f" {min(blank)}. phisense check names each"
            )
        processes.barrier()
        about = _about(existing, new, digests, encoder, dtype, computed_in)
        if processes.is_main:
            _finish(at, existing, new, digests, sums, about)
    processes.barrier()
    return _added(folder, about, pictures=len(digests), distinct=len(firsts))


def _agree_on_format(
    folder: Path,
    existing: ExistingStore,
    names: Sequence[str],
    encoder: Encoder,
    images: ImageFinder,
    computed_in: str,
    choose: ChooseFormat | None,
    processes: ProcessGroup,
) -> str:
    """The number format in which all processes encode: that of the shards that are there, or else
    what `choose` returns. Raises ArtifactError if the shards were made in another one than the
    recipe asks for.
    """
    made = sorted({one.computed_in for one in existing.shards.values()})
    if choose is None:
        if made and computed_in not in made:
            raise ArtifactError(
                f"the feature store {folder} was computed in another number format",
                got=", ".join(made),
                wanted=computed_in,
                do=(
                    "Leave compute_dtype out to go on in the store's, or encode all anew with"
                    " --overwrite"
                ),
            )
        return computed_in
    chosen = ""
    if processes.is_main:
        opened = [] if made else [open_image_with_notes(images.path(n), name=n) for n in names]
        chosen = choose(made[0] if made else None, [one.image for one in opened])
    chosen = processes.all_gather([chosen])[0]
    encoder.compute_in(getattr(torch, chosen))
    return chosen


def _added(folder: Path, about: StoreMetadata, *, pictures: int, distinct: int) -> FeaturesResult:
    """The store, and how many of its images this recipe uses."""
    return FeaturesResult(
        folder=folder,
        store_format=about.store_format,
        encoder=about.encoder,
        encoder_facts=about.facts,
        part=about.part,
        dtype=about.dtype,
        tokens=about.tokens,
        width=about.width,
        computed_in=about.computed_in,
        images=pictures,
        distinct=distinct,
        names_digest=about.names,
        stored=about.pictures,
    )


def _verify(existing: ExistingStore, on_event: OnEvent) -> dict[int, str]:
    """Verify every row of every shard, since the manifest will name them; returns their sha256."""

    def verified(shard: Shard) -> str:
        shard.verify()
        return artifacts.file_sha256(shard.path)

    sums = {}
    with ThreadPoolExecutor(4) as pool:
        for number, digest in zip(
            existing.shards, pool.map(verified, existing.shards.values()), strict=True
        ):
            sums[number] = digest
            on_event(Progress("verifying features", len(sums), len(existing.shards), "shards"))
    return sums


def _log_changes(
    folder: Path, swept: list[str], existing: ExistingStore, digests: dict[str, str], log: Log
) -> None:
    """Log what was removed, and what the store had and this recipe does not restore."""
    if swept:
        log(f"{folder} held what killed processes had half-written; removed {', '.join(swept)}")
    if existing.missing:
        locations = existing.locations
        lost = sum(
            name not in digests and digest not in locations
            for name, digest in existing.names.items()
        )
        also = (
            f"; {lost:,} pictures of other recipes were in them, and come back when phisense"
            " features runs with these"
            if lost
            else ""
        )
        log(f"{folder} lacked {', '.join(existing.missing)}{also}")


def _new_shards(left: list[str], shard: int, taken: set[int]) -> dict[int, list[str]]:
    """Assign unused shard numbers to the remaining digests, `shard` per number."""
    free = (number for number in count(0) if number not in taken)
    return {next(free): left[start : start + shard] for start in range(0, len(left), shard)}


def _places(existing: ExistingStore, new: dict[int, list[str]]) -> dict[str, tuple[int, int]]:
    return existing.locations | {
        digest: (number, row)
        for number, digests in new.items()
        for row, digest in enumerate(digests)
    }


def _about(
    existing: ExistingStore,
    new: dict[int, list[str]],
    digests: dict[str, str],
    encoder: Encoder,
    dtype: StoreFormat,
    computed_in: str,
) -> StoreMetadata:
    places = _places(existing, new)
    names = _names(existing, digests, places)
    formats = {
        existing.shards[number].computed_in if number in existing.shards else computed_in
        for number, _ in places.values()
    }
    return StoreMetadata(
        store_format=STORE_FORMAT,
        encoder=facts_fingerprint(encoder.facts),
        facts=encoder.facts,
        part=encoder.part,
        dtype=dtype,
        tokens=encoder.patches,
        width=encoder.width,
        computed_in=", ".join(sorted(formats or {computed_in})),
        pictures=len(names),
        distinct=len(places),
        names=names_digest(names),
    )


def _names(
    existing: ExistingStore, digests: dict[str, str], places: dict[str, tuple[int, int]]
) -> dict[str, str]:
    """All names of the store: earlier ones that still have a row, and this recipe's."""
    return {
        name: digest
        for name, digest in sorted({**existing.names, **digests}.items())
        if digest in places
    }


def _finish(
    folder: Path,
    existing: ExistingStore,
    new: dict[int, list[str]],
    digests: dict[str, str],
    sums: dict[int, str],
    about: StoreMetadata,
) -> None:
    """Write the index beside the previous one, replace the manifest, and remove the previous index.

    Unchanged files are not rewritten.
    """
    places = _places(existing, new)
    data = orjson.dumps(
        {
            name: [*places[digest], digest]
            for name, digest in _names(existing, digests, places).items()
        }
    )
    former = (
        existing.manifest.index
        if existing.manifest and existing.manifest.index not in existing.missing
        else None
    )
    index = (
        former
        if former and (folder / former).read_bytes() == data
        else next(name for name in INDEX_FILES if name != former)
    )
    if index != former:
        artifacts.write_bytes(folder / index, data)
    files = {index: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    for number in sorted({number for number, _ in places.values()}):
        path = folder / shard_name(number)
        files[path.name] = {
            "bytes": path.stat().st_size,
            "sha256": sums.get(number) or artifacts.file_sha256(path),
        }
    manifest = {
        "kind": STORE_KIND,
        "format": 1,
        "about": about.model_dump(),
        "files": dict(sorted(files.items())),
    }
    path = folder / artifacts.MANIFEST
    if existing.manifest is None or artifacts.read_json(path) != manifest:
        artifacts.write_json(path, manifest)
    for other in INDEX_FILES:
        if other != index:
            safe_replace.remove_file(folder / other)


def _encode(
    encoder: Encoder,
    some: dict[str, str],
    images: ImageFinder,
    batch: int,
    format_: StoreFormat,
    blank: list[str],
) -> Iterator[torch.Tensor]:
    """Encode the images in `some`, which maps names to expected digests, batch by batch.

    The next batch is decoded in threads meanwhile. Blank images are added to `blank`.
    """
    work = encoder.prepare if format_ == "pixels" else encoder.encode
    names = list(some)
    with ThreadPoolExecutor(4) as pool:
        batches = [
            {name: some[name] for name in names[i : i + batch]} for i in range(0, len(names), batch)
        ]
        reading = [pool.submit(_open_all, images, batches[0], blank)]
        for i in range(len(batches)):
            if i + 1 < len(batches):
                reading.append(pool.submit(_open_all, images, batches[i + 1], blank))
            yield work(reading[i].result()).cpu()


def _open_all(images: ImageFinder, some: dict[str, str], blank: list[str]) -> list[Any]:
    return [_open(images.path(name), name, digest, blank) for name, digest in some.items()]


def _open(path: Path, name: str, digest: str, blank: list[str]) -> Any:
    """Open an image and check its digest.

    Raises ImageError if the file changed since the run began, as its features would be stored under
    the old digest.
    """
    opened = open_image_with_notes(path, name=name)
    if opened.blank is not None:
        blank.append(f"{name} is {opened.blank}")
    if image_digest(path, name) != digest:
        raise ImageError(
            f"the picture {name} was changed while features were made",
            do="Run phisense features again",
        )
    return opened.image


__all__ = ["encode_images"]
