"""Reads and validates the contents of a store's folder. Nothing here writes.

Only the manifest is ever replaced; the files that it names are never overwritten. New shards get
new numbers, and a new index uses the other of two file names. So a store that is being extended
remains the valid previous one, whenever its writer is killed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ... import artifacts
from ...errors import ArtifactError
from ..encoders.encode import check_same_encoder
from .formats import StoreFormat
from .shards import (
    ENCODE_AGAIN_HINT,
    MOVE_HINT,
    REPLACE_HINT,
    Shard,
    first_error_line,
    is_regular_file,
    shard_name,
    shard_number,
    translate_read_errors,
)

STORE_KIND = "feature store"
#: Format 1 had no digests in its index and no checksums in its shards.
STORE_FORMAT = 2
INDEX_FILES = ("pictures.json", "pictures.next.json")
#: Location of an image's features: shard number, row, and digest of the image file.
RowLocation = tuple[int, int, str]
_OTHER_FOLDER_HINT = "Name another folder with features.folder"


class StoreMetadata(BaseModel):
    """The manifest's description of the store; `names` is `names_digest` of all names."""

    model_config = ConfigDict(strict=True, frozen=True)

    store_format: int
    encoder: str
    facts: dict[str, Any]
    part: str | None = None
    dtype: StoreFormat
    tokens: int
    width: int
    computed_in: str
    pictures: int
    distinct: int
    names: str


class StoreFile(BaseModel):
    """Size in bytes and SHA-256 of a file that the manifest names."""

    model_config = ConfigDict(strict=True, frozen=True)

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """Manifest of a finished store: `index` is one of INDEX_FILES, `shards` are shard numbers."""

    about: StoreMetadata
    files: dict[str, StoreFile]
    index: str
    shards: list[int]


@dataclass(frozen=True, slots=True)
class ExistingStore:
    """What earlier runs left in a folder.

    `names` maps names to image digests; `missing` are files of the manifest that are absent.
    """

    manifest: StoreManifest | None = None
    names: dict[str, str] = field(default_factory=dict)
    shards: dict[int, Shard] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def locations(self) -> dict[str, tuple[int, int]]:
        """Shard and row of each digest; shards in the manifest take precedence over others."""
        own = set(self.manifest.shards) if self.manifest else set()
        found: dict[str, tuple[int, int]] = {}
        for number in sorted(self.shards, key=lambda number: (number not in own, number)):
            for row, digest in enumerate(self.shards[number].digests):
                found.setdefault(digest, (number, row))
        return found


_NAMED = TypeAdapter(dict[str, RowLocation])
_FILES = TypeAdapter(dict[str, StoreFile])


def read_store_manifest(folder: Path, *, do: str = ENCODE_AGAIN_HINT) -> StoreManifest:
    """Read the manifest of a finished store.

    Raises ArtifactError if `folder` is no finished store of this format, or its manifest is
    invalid.
    """
    path = folder / artifacts.MANIFEST
    if not is_regular_file(path):
        artifacts.read_manifest(folder, kind=STORE_KIND, verify=False)  # raises the specific error
    raw = _json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("about"), dict):
        raise ArtifactError(f"{path} is damaged", got="no manifest", do=ENCODE_AGAIN_HINT)
    if raw.get("kind") != STORE_KIND:
        raise ArtifactError(
            f"{folder} is something else",
            got=f"a {raw.get('kind')}",
            wanted=f"a {STORE_KIND}",
            do=_OTHER_FOLDER_HINT,
        )
    found = raw["about"].get("store_format", 1)
    if found != STORE_FORMAT:
        raise ArtifactError(
            f"the feature store {folder} was written by another version",
            got=f"format {found}",
            wanted=STORE_FORMAT,
            do=do,
        )
    try:
        about, files = (
            StoreMetadata.model_validate(raw["about"]),
            _FILES.validate_python(raw.get("files")),
        )
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is damaged", got=first_error_line(error), do=ENCODE_AGAIN_HINT
        ) from error
    indexes = [name for name in files if name in INDEX_FILES]
    shards = {name: shard_number(name) for name in files if name not in INDEX_FILES}
    strange = [name for name, number in shards.items() if number is None]
    if strange or len(indexes) != 1:
        raise ArtifactError(
            f"{path} is damaged",
            got=f"{strange[0]} among its files" if strange else "no index",
            do=ENCODE_AGAIN_HINT,
        )
    return StoreManifest(
        about, files, indexes[0], sorted(number for number in shards.values() if number is not None)
    )


def read_index(folder: Path, manifest: StoreManifest) -> dict[str, RowLocation]:
    """Read the index; its hash is verified against the manifest before parsing."""
    path = folder / manifest.index
    _require(folder, manifest.index)
    with translate_read_errors(path):
        data = path.read_bytes()
    facts = manifest.files[manifest.index]
    if len(data) != facts.bytes or hashlib.sha256(data).hexdigest() != facts.sha256:
        raise ArtifactError(
            f"{path} is damaged", got="other content than its manifest names", do=ENCODE_AGAIN_HINT
        )
    try:
        places = _NAMED.validate_json(data, strict=True)
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is damaged", got=first_error_line(error), do=ENCODE_AGAIN_HINT
        ) from error
    if (
        names_digest({name: digest for name, (_, _, digest) in places.items()})
        != manifest.about.names
    ):
        raise ArtifactError(
            f"{path} is damaged",
            got="other names or pictures than its manifest tells",
            do=ENCODE_AGAIN_HINT,
        )
    return places


def names_digest(names: dict[str, str]) -> str:
    """SHA-256 of all names with the digests of their images.

    It reveals an edited index even if the index's sha256 in the manifest was edited, too.
    """
    return hashlib.sha256(orjson.dumps(sorted(names.items()))).hexdigest()


def open_shards(folder: Path, manifest: StoreManifest) -> dict[int, Shard]:
    """Every shard of a finished store, by number.

    Raises ArtifactError if one is missing, of another length, or from another store.
    """
    shards = {}
    for number in manifest.shards:
        path = folder / shard_name(number)
        _require(folder, path.name)
        with translate_read_errors(path):
            size = path.stat().st_size
        if size != manifest.files[path.name].bytes:
            raise ArtifactError(
                f"{path} is damaged",
                got=f"{size:,} bytes",
                wanted=f"{manifest.files[path.name].bytes:,}",
                do=ENCODE_AGAIN_HINT,
            )
        shards[number] = shard = Shard(path)
        about = manifest.about
        same = (shard.encoder, shard.format) == (
            about.facts,
            about.dtype,
        ) and shard.computed_in in about.computed_in.split(", ")
        if not same or (about.dtype != "pixels" and shard.shape != (about.tokens, about.width)):
            raise ArtifactError(
                f"{path} is not of this store",
                got="another encoder, format or shape than its manifest names",
                do=ENCODE_AGAIN_HINT,
            )
    return shards


def check_locations(
    folder: Path, manifest: StoreManifest, places: dict[str, RowLocation], shards: dict[int, Shard]
) -> None:
    """Raise ArtifactError unless each name maps to a row of its image."""
    for name, (number, row, digest) in places.items():
        if (
            number not in shards
            or not 0 <= row < len(shards[number].digests)
            or shards[number].digests[row] != digest
        ):
            raise ArtifactError(
                f"{folder / manifest.index} is damaged",
                got=f"another row than that of {name}",
                do=ENCODE_AGAIN_HINT,
            )


def _require(folder: Path, name: str) -> None:
    path = folder / name
    if not is_regular_file(path):
        if os.path.lexists(path):
            raise ArtifactError(
                f"{path} is no file", wanted="one of the feature store's", do=MOVE_HINT
            )
        raise ArtifactError(
            f"the feature store {folder} lacks {name}",
            do="Run phisense features again, which makes what is missing",
        )


def inspect_store(folder: Path, facts: dict[str, Any], format_: StoreFormat) -> ExistingStore:
    """What an encoder with these `facts` can reuse of a folder, by the shards' headers.

    Rows are not read yet. Raises ArtifactError if something is damaged, is of another encoder,
    format or version, or if the folder holds something else.
    """
    if not os.path.lexists(folder):
        return ExistingStore()
    manifest: StoreManifest | None = None
    places: dict[str, RowLocation] = {}
    with translate_read_errors(folder):
        names = sorted(path.name for path in folder.iterdir())
    for name in {artifacts.MANIFEST, *INDEX_FILES} & set(names):
        _require(folder, name)
    if artifacts.MANIFEST in names:
        manifest = read_store_manifest(folder, do=REPLACE_HINT)
        _check_same(folder, manifest.about.facts, manifest.about.dtype, facts, format_)
        if manifest.index in names:
            places = read_index(folder, manifest)
    shards: dict[int, Shard] = {}
    for name in names:
        number = shard_number(name)
        if number is not None:
            shards[number] = shard = Shard(folder / name)
            _check_same(folder, shard.encoder, shard.format, facts, format_)
    visible = [name for name in names if not name.startswith(".") and name not in INDEX_FILES]
    if manifest is None and not shards and visible:
        raise ArtifactError(
            f"{folder} is no feature store",
            got=f"{visible[0]} in it",
            wanted="a feature store, or nothing",
            do=_OTHER_FOLDER_HINT,
        )
    lacking = [name for name in (manifest.files if manifest else ()) if name not in names]
    return ExistingStore(
        manifest, {name: digest for name, (_, _, digest) in places.items()}, shards, lacking
    )


def _check_same(
    folder: Path, got: dict[str, Any], got_format: str, wanted: dict[str, Any], wanted_format: str
) -> None:
    check_same_encoder(folder, got=got, wanted=wanted, do=REPLACE_HINT)
    if got_format != wanted_format:
        raise ArtifactError(
            f"the feature store {folder} is of another format",
            got=got_format,
            wanted=wanted_format,
            do=REPLACE_HINT,
        )


def _json(path: Path) -> Any:
    with translate_read_errors(path):
        try:
            return orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise ArtifactError(
                f"{path} is not JSON", got=str(error), do=ENCODE_AGAIN_HINT
            ) from error
