"""Every way of damaging a feature store, its pictures, or both, that could be thought of: what
`damage_store.py` draws from.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phisense import artifacts
from phisense.errors import PhisenseError
from phisense.vision.encoders.encode import Encoder
from phisense.vision.image_io import open_image

FORMATS = ("float32", "float16", "int8", "pixels")


@dataclass
class World:
    """The encoder, its fresh features by a picture's bytes, and stores that are whole: `own`,
    `others` pictures', `foreign` encoder's.
    """

    at: Path
    encoder: Encoder
    fresh: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def store(self, which: str, dtype: str) -> Path:
        return self.at / "stores" / f"{which}-{dtype}"

    def of(self, path: Path) -> torch.Tensor | None:
        """Fresh features of what lies there; None if that is no picture."""
        data = path.read_bytes()
        if data not in self.fresh:
            try:
                self.fresh[data] = self.encoder.encode([open_image(path)])[0]
            except PhisenseError:
                return None
        return self.fresh[data]


@dataclass
class Case:
    store: Path
    images: Path
    dtype: str
    world: World
    rng: random.Random

    @property
    def shards(self) -> list[Path]:
        return sorted(path for path in self.store.glob("features-*.safetensors") if path.is_file())

    def one(self) -> Path:
        return self.rng.choice(self.shards)

    def two(self) -> list[Path]:
        return self.rng.sample(self.shards, 2)

    @property
    def index(self) -> Path:
        return self.store / "pictures.json"

    @property
    def manifest(self) -> Path:
        return self.store / "manifest.json"

    def picture(self) -> Path:
        return self.rng.choice(sorted(path for path in self.images.iterdir() if path.is_file()))


DAMAGES: dict[str, Callable[[Case], None]] = {}


def damage(work: Callable[[Case], None]) -> Callable[[Case], None]:
    DAMAGES[work.__name__] = work
    return work


# Shards as files.


@damage
def shard_dropped(case: Case) -> None:
    case.one().unlink()


@damage
def several_shards_dropped(case: Case) -> None:
    for path in case.two():
        path.unlink()


@damage
def first_shard_dropped(case: Case) -> None:
    case.shards[0].unlink()


@damage
def shard_truncated(case: Case) -> None:
    os.truncate((path := case.one()), case.rng.randrange(path.stat().st_size))


@damage
def shard_empty(case: Case) -> None:
    case.one().write_bytes(b"")


@damage
def shard_longer(case: Case) -> None:
    with case.one().open("ab") as file:
        file.write(case.rng.randbytes(case.rng.randint(1, 64)))


def flip(path: Path, rng: random.Random, start: float, times: int) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(times):
        data[rng.randrange(int(len(data) * start), len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@damage
def bit_flipped_in_a_row(case: Case) -> None:
    flip(case.one(), case.rng, 0.6, 1)


@damage
def bits_flipped_anywhere(case: Case) -> None:
    flip(case.one(), case.rng, 0.0, case.rng.randint(1, 40))


@damage
def bit_flipped_in_the_header(case: Case) -> None:
    path = case.one()
    data = bytearray(path.read_bytes())
    data[case.rng.randrange(8 + int.from_bytes(data[:8], "little"))] ^= 1 << case.rng.randrange(8)
    path.write_bytes(data)


@damage
def block_zeroed(case: Case) -> None:
    path = case.one()
    data = bytearray(path.read_bytes())
    start = case.rng.randrange(len(data))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


@damage
def shards_swapped(case: Case) -> None:
    one, other = case.two()
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@damage
def shards_rotated(case: Case) -> None:
    files = [path.read_bytes() for path in case.shards]
    for path, data in zip(case.shards, files[1:] + files[:1], strict=True):
        path.write_bytes(data)


@damage
def shards_moved_up_by_one(case: Case) -> None:
    case.shards[0].unlink()
    for number, path in enumerate(case.shards):
        path.rename(case.store / f"features-{number:05d}.safetensors")


@damage
def shard_renamed(case: Case) -> None:
    case.one().rename(
        case.store
        / case.rng.choice(
            ["features-00077.safetensors", "features-7.safetensors", "old.safetensors"]
        )
    )


@damage
def shard_doubled(case: Case) -> None:
    shutil.copy(case.one(), case.store / "features-00050.safetensors")


@damage
def shard_over_another(case: Case) -> None:
    one, other = case.two()
    shutil.copy(one, other)


@damage
def shard_of_other_pictures(case: Case) -> None:
    path = case.one()
    shutil.copy(case.world.store("others", case.dtype) / path.name, path)


@damage
def shard_of_another_encoder(case: Case) -> None:
    path = case.one()
    shutil.copy(case.world.store("foreign", case.dtype) / path.name, path)


@damage
def shard_of_another_format(case: Case) -> None:
    path = case.one()
    other = case.rng.choice([one for one in FORMATS if one != case.dtype])
    shutil.copy(case.world.store("own", other) / path.name, path)


# What a shard says and holds, written anew as a whole file.


def rewritten(
    path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["phisense"])
    change(tensors, said)
    path.unlink()
    save_file(
        {key: rows.contiguous() for key, rows in tensors.items()},
        path,
        metadata={"phisense": json.dumps(said)},
    )


def turned(case: Case, *keys: str, rows: bool = False) -> None:
    def change(tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        for key in keys:
            said[key] = said[key][1:] + said[key][:1]
        for key in tensors if rows else ():
            tensors[key] = tensors[key].roll(1, 0)

    rewritten(case.one(), change)


@damage
def rows_rotated(case: Case) -> None:
    turned(case, rows=True)


@damage
def digests_rotated(case: Case) -> None:
    turned(case, "digests")


@damage
def digests_and_checksums_rotated(case: Case) -> None:
    turned(case, "digests", "checksums")


@damage
def checksums_rotated(case: Case) -> None:
    turned(case, "checksums")


@damage
def one_row_over_another(case: Case) -> None:
    def change(tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        for rows in tensors.values():
            rows[0] = rows[-1]

    rewritten(case.shards[0], change)


@damage
def half_a_row(case: Case) -> None:
    """One of the two tensors alone, where there are two."""

    def change(tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        key = sorted(tensors)[-1]
        tensors[key] = tensors[key].roll(1, 0)

    rewritten(case.one(), change)


@damage
def other_facts_in_a_shard(case: Case) -> None:
    rewritten(case.one(), lambda tensors, said: said["encoder"].update(layer=-1))


@damage
def tensors_of_another_type(case: Case) -> None:
    def change(tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        key = sorted(tensors)[0]
        tensors[key] = tensors[key].view(
            {1: torch.bool, 2: torch.int16, 4: torch.int32}[tensors[key].element_size()]
        )

    rewritten(case.one(), change)


@damage
def tensors_of_another_shape(case: Case) -> None:
    def change(tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        for key, rows in tensors.items():
            tensors[key] = rows.transpose(1, 2) if case.rng.random() < 0.5 else rows[:, :1]

    rewritten(case.one(), change)


@damage
def rows_cut_off(case: Case) -> None:
    def change(tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        for key, rows in tensors.items():
            tensors[key] = rows[1:]

    rewritten(case.one(), change)


@damage
def nothing_said(case: Case) -> None:
    rewritten(case.one(), lambda tensors, said: said.clear())


@damage
def shard_of_the_former_version(case: Case) -> None:
    rewritten(
        case.one(),
        lambda tensors, said: [said.pop(key) for key in ("checksums", "computed_in")] and None,
    )


# The index.


def reindexed(case: Case, change: Callable[[dict[str, Any]], Any]) -> None:
    if not case.index.is_file():
        return
    try:
        index = json.loads(case.index.read_bytes())
    except (ValueError, RecursionError):
        return
    if not isinstance(index, dict):
        return
    changed = change(index)
    case.index.write_text(json.dumps(index if changed is None else changed))


def exchanged(case: Case, what: slice) -> None:
    """Two names' entries, or parts of them."""

    def change(index: dict[str, Any]) -> None:
        one, other = case.rng.sample(sorted(index), 2)
        if all(isinstance(index[name], list) for name in (one, other)):
            index[one][what], index[other][what] = index[other][what], index[one][what]

    reindexed(case, change)


@damage
def index_rotated(case: Case) -> None:
    def change(index: dict[str, Any]) -> dict[str, Any]:
        values = list(index.values())
        return dict(zip(index, values[1:] + values[:1], strict=True))

    reindexed(case, change)


@damage
def places_rotated(case: Case) -> None:
    """The digests stay, so that only what the shard says of a row tells."""

    def change(index: dict[str, Any]) -> None:
        values = [list(value) for value in index.values()]
        for value, other in zip(index.values(), values[1:] + values[:1], strict=True):
            value[:2] = other[:2]

    reindexed(case, change)


@damage
def names_exchanged(case: Case) -> None:
    exchanged(case, slice(None))


@damage
def digests_exchanged(case: Case) -> None:
    exchanged(case, slice(2, None))


@damage
def rows_exchanged(case: Case) -> None:
    exchanged(case, slice(1, 2))


@damage
def shard_numbers_exchanged(case: Case) -> None:
    exchanged(case, slice(0, 1))


@damage
def name_dropped(case: Case) -> None:
    reindexed(case, lambda index: index.pop(case.rng.choice(sorted(index))) and None)


@damage
def name_added(case: Case) -> None:
    reindexed(case, lambda index: index.update({"99.bmp": case.rng.choice(list(index.values()))}))


@damage
def name_misspelt(case: Case) -> None:
    reindexed(
        case,
        lambda index: {
            (name.upper() if i == 3 else name): value
            for i, (name, value) in enumerate(index.items())
        },
    )


@damage
def strange_places(case: Case) -> None:
    strange = [
        [-1, 0],
        [0, -1],
        [0, 99],
        [99, 0],
        [0, 0.5],
        ["0", "0"],
        [True, False],
        [None, None],
        [],
        {},
        "0",
        None,
        [10**30, 0],
        [0],
    ]

    def change(index: dict[str, Any]) -> None:
        name = case.rng.choice(sorted(index))
        value = case.rng.choice(strange)
        index[name] = (
            [*value, *index[name][2:]]
            if isinstance(value, list) and isinstance(index[name], list)
            else value
        )

    reindexed(case, change)


@damage
def index_of_the_former_version(case: Case) -> None:
    reindexed(
        case,
        lambda index: {
            name: value[:2] if isinstance(value, list) else value for name, value in index.items()
        },
    )


@damage
def index_is_something_else(case: Case) -> None:
    if case.index.is_file():
        case.index.write_bytes(
            case.rng.choice(
                [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 5000, b'{"a": 1}', b"{}"]
            )
        )


@damage
def index_of_a_smaller_store(case: Case) -> None:
    shutil.copy(case.world.store("smaller", case.dtype) / "pictures.json", case.index)


@damage
def index_of_other_pictures(case: Case) -> None:
    shutil.copy(case.world.store("others", case.dtype) / "pictures.json", case.index)


@damage
def index_dropped(case: Case) -> None:
    case.index.unlink(missing_ok=True)


# The manifest.


def restated(case: Case, change: Callable[[dict[str, Any]], Any]) -> None:
    try:
        manifest = json.loads(case.manifest.read_bytes())
    except (ValueError, OSError, RecursionError):
        return
    if (
        isinstance(manifest, dict)
        and isinstance(manifest.get("files"), dict)
        and isinstance(manifest.get("about"), dict)
    ):
        change(manifest)
        case.manifest.write_text(json.dumps(manifest))


@damage
def manifest_dropped(case: Case) -> None:
    case.manifest.unlink(missing_ok=True)


@damage
def manifest_is_something_else(case: Case) -> None:
    case.manifest.write_bytes(
        case.rng.choice(
            [
                b"",
                b"[]",
                b"null",
                b"{",
                b"\xff\xfe",
                b"[" * 5000,
                b'{"kind": "feature store"}',
                b"{}",
            ]
        )
    )


@damage
def manifest_truncated(case: Case) -> None:
    if case.manifest.is_file():
        os.truncate(case.manifest, case.rng.randrange(case.manifest.stat().st_size + 1))


@damage
def manifest_says_otherwise(case: Case) -> None:
    values = [None, 0, -1, 10**30, "x", [], {}, True, 1.5]

    def change(manifest: dict[str, Any]) -> None:
        at = case.rng.choice(
            [manifest, manifest["about"], manifest["files"], *manifest["files"].values()]
        )
        if isinstance(at, dict) and at:
            key = case.rng.choice(sorted(at))
            at[key] = case.rng.choice(values)
            if case.rng.random() < 0.3:
                del at[key]

    restated(case, change)


@damage
def manifest_tells_another_shape(case: Case) -> None:
    restated(
        case,
        lambda manifest: manifest["about"].update(
            tokens=case.rng.randint(1, 64), width=case.rng.choice([16, 32, 64])
        ),
    )


@damage
def manifest_tells_another_format(case: Case) -> None:
    restated(case, lambda manifest: manifest["about"].update(dtype=case.rng.choice(FORMATS)))


@damage
def manifest_tells_other_facts(case: Case) -> None:
    restated(
        case,
        lambda manifest: manifest["about"].update(
            facts={**(manifest["about"].get("facts") or {}), "layer": -1}
        ),
    )


@damage
def manifest_names_less(case: Case) -> None:
    restated(
        case,
        lambda manifest: manifest["files"].pop(case.rng.choice(sorted(manifest["files"])), None),
    )


@damage
def manifest_names_more(case: Case) -> None:
    more = case.rng.choice(
        ["../x", "notes.txt", "features-00099.safetensors", "/etc/passwd", "pictures.next.json", ""]
    )
    restated(
        case, lambda manifest: manifest["files"].update({more: {"bytes": 3, "sha256": "0" * 64}})
    )


@damage
def manifest_of_another_store(case: Case) -> None:
    which = case.rng.choice(["others", "foreign", "smaller"])
    shutil.copy(case.world.store(which, case.dtype) / "manifest.json", case.manifest)


@damage
def manifest_of_another_kind(case: Case) -> None:
    restated(case, lambda manifest: manifest.update(kind="model"))


@damage
def manifest_of_another_version(case: Case) -> None:
    restated(
        case,
        lambda manifest: manifest["about"].update(store_format=case.rng.choice([1, 3, "2", None])),
    )


# Whole stores.


@damage
def files_of_two_stores(case: Case) -> None:
    other = case.world.store(case.rng.choice(["others", "foreign", "smaller"]), case.dtype)
    for path in sorted(other.iterdir()):
        if case.rng.random() < 0.5:
            shutil.copy(path, case.store / path.name)


@damage
def the_store_of_other_pictures(case: Case) -> None:
    shutil.rmtree(case.store)
    shutil.copytree(case.world.store("others", case.dtype), case.store)


@damage
def the_store_of_another_encoder(case: Case) -> None:
    shutil.rmtree(case.store)
    shutil.copytree(case.world.store("foreign", case.dtype), case.store)


@damage
def another_encoders_store_under_this_ones_name(case: Case) -> None:
    """The facts changed wherever a store tells them."""
    facts = case.world.encoder.facts
    the_store_of_another_encoder(case)
    for path in case.shards:
        rewritten(path, lambda tensors, said: said.update(encoder=facts))
    restated(
        case,
        lambda manifest: manifest["about"].update(
            facts=facts, encoder=case.world.encoder.fingerprint
        ),
    )


# What a file system can do.


@damage
def shard_is_a_link_to_another(case: Case) -> None:
    one, other = case.two()
    one.unlink()
    one.symlink_to(other.name)


@damage
def shard_is_a_link_elsewhere(case: Case) -> None:
    path = case.one()
    aside = case.store.parent / "elsewhere"
    aside.mkdir(exist_ok=True)
    shutil.move(path, aside / path.name)
    path.symlink_to(aside / path.name)


@damage
def shard_is_a_dangling_link(case: Case) -> None:
    path = case.one()
    path.unlink()
    path.symlink_to("nowhere")


@damage
def shard_is_a_folder(case: Case) -> None:
    path = case.one()
    path.unlink()
    path.mkdir()


@damage
def shard_is_a_pipe(case: Case) -> None:
    path = case.one()
    path.unlink()
    os.mkfifo(path)


@damage
def something_is_not_to_be_read(case: Case) -> None:
    case.rng.choice([case.one(), case.index, case.manifest]).chmod(0)


@damage
def index_is_a_folder(case: Case) -> None:
    case.index.unlink(missing_ok=True)
    case.index.mkdir(exist_ok=True)


@damage
def manifest_is_a_link(case: Case) -> None:
    if case.manifest.is_file():
        case.manifest.unlink()
        case.manifest.symlink_to(
            case.world.store(case.rng.choice(["own", "others"]), case.dtype) / "manifest.json"
        )


@damage
def leftovers(case: Case) -> None:
    (case.store / ".features-00000.safetensors.999999.partial").write_bytes(case.rng.randbytes(300))
    (case.store / ".pictures.json.999999.partial").write_bytes(b"{")
    (case.store / "pictures.next.json").write_bytes(b'{"00.bmp":[0,1,"x"]}')
    (case.store / "notes.txt").write_text("mine")


# Pictures: what lies under a name now is what its features must be of.


def overwritten(path: Path, data: bytes) -> None:
    """With the size and the times it had."""
    about = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@damage
def picture_changed(case: Case) -> None:
    path = case.picture()
    data = bytearray(path.read_bytes())
    data[54:] = (
        data[54:][::-1] if case.rng.random() < 0.5 else bytes(255 - byte for byte in data[54:])
    )
    overwritten(path, bytes(data))


@damage
def pictures_exchanged(case: Case) -> None:
    one, other = case.picture(), case.picture()
    first, second = one.read_bytes(), other.read_bytes()
    overwritten(one, second)
    overwritten(other, first)


@damage
def pictures_rotated(case: Case) -> None:
    paths = sorted(path for path in case.images.iterdir() if path.is_file())
    data = [path.read_bytes() for path in paths]
    for path, one in zip(paths, data[1:] + data[:1], strict=True):
        overwritten(path, one)


@damage
def picture_of_another_name(case: Case) -> None:
    overwritten(case.picture(), case.picture().read_bytes())


@damage
def picture_gone(case: Case) -> None:
    case.picture().unlink()


@damage
def picture_truncated(case: Case) -> None:
    path = case.picture()
    os.truncate(path, path.stat().st_size // 2)


@damage
def picture_is_a_folder(case: Case) -> None:
    path = case.picture()
    path.unlink()
    path.mkdir()


def agree(case: Case) -> None:
    """The manifest brought up to date with what lies there, as one would who edits by hand and
    knows how.
    """

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"] = {
            path.name: {"bytes": path.stat().st_size, "sha256": artifacts.file_sha256(path)}
            for path in sorted(case.store.iterdir())
            if path.is_file()
            and re.fullmatch(r"features-\d{5}\.safetensors|pictures\.json", path.name)
            and os.access(path, os.R_OK)
        }

    restated(case, change)
