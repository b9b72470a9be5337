"""What a store holds is not lost: refusals change no byte, recipes add to each other, killed
writers leave what was finished as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phisense import artifacts
from phisense.conversations import ImageFinder
from phisense.distributed import ProcessGroup
from phisense.errors import ArtifactError, ImageError, PhisenseError, UsageError
from phisense.pipeline.progress import Event, Progress, ignore
from phisense.vision.encoders.encode import Encoder
from phisense.vision.image_io import open_image
from phisense.vision.store import FeatureStore, encode_images
from phisense.vision.store.locking import exclusive_writer

from ..killable import start_process
from ..tiny import make_vision
from .conftest import NAMES
from .test_store import encode

SOME, OTHERS = NAMES[:4], NAMES[3:]


def everything(folder: Path) -> dict[str, Any]:
    """Every byte below a folder, what is a link, and when it was last written."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mtime_ns,
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    } | {path.relative_to(folder).as_posix(): None for path in folder.rglob("*") if path.is_dir()}


def shards(folder: Path) -> dict[str, Any]:
    return {name: what for name, what in everything(folder).items() if name.startswith("features-")}


def assert_right(folder: Path, names: list[str], images: Path, encoder: Encoder) -> None:
    store = FeatureStore(folder, facts=encoder.facts, images=ImageFinder([images]))
    for name in names:
        fresh = encoder.encode([open_image(images / name)])[0]
        torch.testing.assert_close(store.features(name), fresh, rtol=1e-5, atol=1e-5)


class Counting:
    """An encoder that counts what it encodes."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.seen = encoder, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, pictures: list[Any]) -> torch.Tensor:
        self.seen += len(pictures)
        return self.encoder.encode(pictures)


def counted(folder: Path, encoder: Encoder, images: Path, names: list[str]) -> int:
    counting: Any = Counting(encoder)
    encode(folder, counting, images, names)
    return int(counting.seen)


# Two recipes, one store.


def test_a_smaller_recipe_takes_nothing_away(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    encode(tmp_path / "store", encoder, images)
    before = everything(tmp_path / "store")
    assert counted(tmp_path / "store", encoder, images, SOME[:2]) == 0
    assert everything(tmp_path / "store") == before


def test_recipes_add_to_each_other(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images, SOME)
    before = shards(tmp_path / "store")
    assert counted(tmp_path / "store", encoder, images, OTHERS) == len(set(NAMES) - set(SOME))
    assert before.items() <= shards(tmp_path / "store").items()
    assert_right(tmp_path / "store", NAMES, images, encoder)
    encode(tmp_path / "store", encoder, images, [*SOME, *OTHERS])
    assert sorted(FeatureStore(tmp_path / "store").names) == NAMES


def test_what_a_run_is_made_of_does_not_change_with_other_recipes(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    encode(tmp_path / "store", encoder, images, SOME)
    before = FeatureStore(tmp_path / "store").digest(SOME)
    encode(tmp_path / "store", encoder, images, OTHERS)
    store = FeatureStore(tmp_path / "store")
    assert store.digest(SOME) == before
    assert store.digest(OTHERS) != before, "the control"


def test_a_changed_picture_is_refused_until_it_is_encoded(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    """Under its name and with its size, so that the bytes alone tell."""
    encode(tmp_path / "store", encoder, images)
    shutil.copy(images / "1.png", images / "0.png")
    store = FeatureStore(tmp_path / "store", images=ImageFinder([images]))
    store.check(NAMES[1:])
    for read in (lambda: store.features("0.png"), lambda: store.check(NAMES)):
        with pytest.raises(
            ArtifactError,
            match=(
                r"the picture 0\.png is another than the one in the feature store; .*features again"
            ),
        ):
            read()
    assert counted(tmp_path / "store", encoder, images, NAMES) == 0, (
        "its bytes are another picture's, which are there"
    )
    assert_right(tmp_path / "store", NAMES, images, encoder)


def test_a_picture_that_changes_meanwhile_is_not_encoded_as_what_it_was(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    def change(event: Event) -> None:
        assert isinstance(event, Progress)
        if event.task == "encoding pictures" and event.done == 0:
            shutil.copy(images / "1.png", images / "6.png")

    with pytest.raises(
        ImageError,
        match=(
            r"the picture 6\.png was changed while features were made.* Run phisense features again"
        ),
    ):
        encode(tmp_path / "store", encoder, images, on_event=change)
    encode(tmp_path / "store", encoder, images)
    assert_right(tmp_path / "store", NAMES, images, encoder)


def test_pictures_that_are_gone_may_be_read(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    """A store may be taken to another machine without them."""
    encode(tmp_path / "store", encoder, images)
    with_them = FeatureStore(tmp_path / "store", images=ImageFinder([images])).batch(NAMES)
    shutil.rmtree(images)
    assert torch.equal(
        FeatureStore(tmp_path / "store", images=ImageFinder([images])).batch(NAMES), with_them
    )


# What the messages advise.


@pytest.mark.parametrize("number", range(3))
def test_a_shard_that_was_removed_is_made_again_and_nothing_else(
    tmp_path: Path, images: Path, encoder: Encoder, number: int
) -> None:
    store = tmp_path / "store"
    encode(store, encoder, images)
    before = everything(store)
    shard = f"features-{number:05d}.safetensors"
    data = bytearray((store / shard).read_bytes())
    data[-1] ^= 1
    (store / shard).write_bytes(data)
    with pytest.raises(
        ArtifactError, match=rf"{shard} is damaged.* Remove it and run phisense features again"
    ):
        FeatureStore(store).batch(NAMES)
    with pytest.raises(
        ArtifactError, match=rf"{shard} is damaged.* Remove it and run phisense features again"
    ):
        encode(store, encoder, images)
    (store / shard).unlink()
    with pytest.raises(ArtifactError, match=rf"lacks {shard}\. Run phisense features again"):
        FeatureStore(store)
    assert counted(store, encoder, images, NAMES) == (3, 3, 1)[number]
    after = everything(store)
    assert {name: what[1] for name, what in after.items()} == {
        name: what[1] for name, what in before.items()
    }
    assert all(
        after[name] == before[name] for name in before if name not in (shard, artifacts.MANIFEST)
    ), "and the others not even touched"


@pytest.mark.parametrize("name", ["pictures.json", "manifest.json"])
def test_index_and_manifest_are_made_again_of_the_shards(
    tmp_path: Path, images: Path, encoder: Encoder, name: str
) -> None:
    encode(tmp_path / "store", encoder, images)
    before = shards(tmp_path / "store")
    (tmp_path / "store" / name).write_bytes(b"[]")
    for refused in (
        lambda: FeatureStore(tmp_path / "store"),
        lambda: encode(tmp_path / "store", encoder, images),
    ):
        with pytest.raises(
            ArtifactError, match=rf"{name} is damaged.* Remove it and run phisense features again"
        ):
            refused()
    (tmp_path / "store" / name).unlink()
    assert counted(tmp_path / "store", encoder, images, NAMES) == 0
    assert shards(tmp_path / "store") == before
    assert_right(tmp_path / "store", NAMES, images, encoder)


def test_what_of_other_recipes_was_lost_is_said(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    encode(tmp_path / "store", encoder, images)
    (tmp_path / "store" / "features-00001.safetensors").unlink()
    said: list[str] = []
    encode_images(
        tmp_path / "store",
        encoder,
        NAMES[:4],
        ImageFinder([images]),
        dtype="float32",
        batch=2,
        shard=3,
        on_event=ignore,
        log=said.append,
    )
    assert "lacked features-00001.safetensors; 2 pictures of other recipes were in them" in said[0]
    assert_right(tmp_path / "store", [*NAMES[:4], "6.png"], images, encoder)
    assert "5.png" not in FeatureStore(tmp_path / "store")


# Every refusal: not a byte is another.


def former_version(store: Path) -> None:
    """As stores were before their rows had checksums."""
    for path in store.glob("features-*"):
        with safe_open(path, "pt") as file:
            said = json.loads(file.metadata()["phisense"])
        tensors = load_file(path)
        path.unlink()
        del said["checksums"], said["computed_in"]
        save_file(tensors, path, metadata={"phisense": json.dumps(said)})
    index = json.loads((store / "pictures.json").read_bytes())
    artifacts.write_json(
        store / "pictures.json", {name: place[:2] for name, place in index.items()}
    )
    about = json.loads((store / "manifest.json").read_bytes())["about"]
    artifacts.write_manifest(
        store,
        kind="feature store",
        about={key: about[key] for key in about if key not in ("store_format", "names")},
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_kind(store: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()
    (store / "config.json").write_text("{}")
    artifacts.write_manifest(store, kind="model")


def somebodys(store: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()
    (store / "thesis.txt").write_text("years")


def of_another_making(store: Path) -> None:
    save_file({"weights": torch.zeros(3)}, store / "features-00007.safetensors")


REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "another format": (
        lambda store: None,
        {"dtype": "int8"},
        "is of another format; got float32; wanted int8.*--overwrite",
    ),
    "another encoder": (
        lambda store: None,
        {"encoder": "other"},
        "was made by another encoder.*features.folder.*--overwrite",
    ),
    "a picture that is not there": (
        lambda store: None,
        {"names": ["none.png"]},
        "there is no picture none.png",
    ),
    "a damaged shard": (
        lambda store: cut(store / "features-00001.safetensors"),
        {},
        "is damaged.*Remove it",
    ),
    "a damaged index": (lambda store: cut(store / "pictures.json"), {}, "is damaged.*Remove it"),
    "a damaged manifest": (
        lambda store: cut(store / "manifest.json"),
        {},
        "is not JSON.*Remove it",
    ),
    "a former version": (
        former_version,
        {},
        "was written by another version; got format 1; wanted 2.*--overwrite",
    ),
    "another kind": (another_kind, {}, "is something else; got a model.*features.folder"),
    "somebody's folder": (
        somebodys,
        {},
        "is no feature store; got thesis.txt in it.*features.folder",
    ),
    "somebody's file under a shard's name": (
        of_another_making,
        {},
        "is no shard of a feature store.*Move it",
    ),
    "notes, and to be replaced": (
        lambda store: (store / "notes.txt").write_text("mine"),
        {"overwrite": True},
        "got notes.txt.*Move it",
    ),
    "somebody's folder, to be replaced": (
        somebodys,
        {"overwrite": True},
        "got thesis.txt.*Move it",
    ),
    "another kind, to be replaced": (another_kind, {"overwrite": True}, "got config.json.*Move it"),
    "another kind's manifest": (
        lambda store: (another_kind(store), (store / "config.json").unlink()),
        {"overwrite": True},
        "of a model",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_changes_no_byte(
    tmp_path: Path, images: Path, encoder: Encoder, why: str
) -> None:
    prepare, asked, sentence = REFUSED[why]
    root = tmp_path / "root"
    encode(root / "store", encoder, images)
    prepare(root / "store")
    (root / "store" / ".features-00001.safetensors.999999999.partial").write_bytes(b"half")
    before = everything(root)
    with_it: Any = (
        Encoder(str(make_vision(tmp_path / "other")), layer=-1) if "encoder" in asked else encoder
    )
    more = {key: value for key, value in asked.items() if key == "overwrite"}
    with pytest.raises(PhisenseError, match=sentence):
        encode_images(
            root / "store",
            with_it,
            asked.get("names", NAMES),
            ImageFinder([images]),
            dtype=asked.get("dtype", "float32"),
            batch=2,
            shard=3,
            on_event=ignore,
            **more,
        )
    assert everything(root) == before


def test_a_former_version_is_refused_by_whoever_reads(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    encode(tmp_path / "store", encoder, images)
    former_version(tmp_path / "store")
    with pytest.raises(
        ArtifactError,
        match=(
            r"was written by another version; got format 1; wanted 2\. Run phisense features again"
        ),
    ):
        FeatureStore(tmp_path / "store")
    # as an interrupted one of that version would lie there
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(
        ArtifactError, match=r"was written by an earlier version, without checksums.*--overwrite"
    ):
        encode(tmp_path / "store", encoder, images)
    encode_again(tmp_path / "store", encoder, images, overwrite=True)
    assert_right(tmp_path / "store", NAMES, images, encoder)


def encode_again(
    folder: Path, encoder: Any, images: Path, names: list[str] = NAMES, **more: Any
) -> None:
    options: dict[str, Any] = {
        "dtype": "float32",
        "batch": 2,
        "shard": 3,
        "on_event": ignore,
        **more,
    }
    encode_images(folder, encoder, names, ImageFinder([images]), **options)


# One writer at a time.


def hold(folder: Path, held: Path) -> None:
    with exclusive_writer(folder, ProcessGroup()):
        held.touch()
        time.sleep(600)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_is_refused(
    tmp_path: Path, images: Path, encoder: Encoder, overwrite: bool
) -> None:
    encode(tmp_path / "store", encoder, images, SOME)
    other = start_process(hold, tmp_path / "store", tmp_path / "held")
    while not (tmp_path / "held").exists():
        assert other.is_alive()
        time.sleep(0.01)
    before = everything(tmp_path / "store")
    with pytest.raises(ArtifactError, match="another process writes the feature store"):
        encode_again(tmp_path / "store", encoder, images, overwrite=overwrite)
    assert everything(tmp_path / "store") == before
    assert_right(tmp_path / "store", SOME, images, encoder)  # who reads is not kept from it
    other.kill()
    other.join()
    encode_again(tmp_path / "store", encoder, images, overwrite=overwrite)
    assert_right(tmp_path / "store", NAMES, images, encoder)


# Killed while a finished store is extended.


class Killed(BaseException):
    pass


def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """The `at`-th change to the disk does not happen any more; a half-written file is left where
    one is being written.
    """
    changes = 0
    write, unlink = artifacts.write_bytes, Path.unlink

    def count() -> bool:
        nonlocal changes
        changes += 1
        return changes == at

    def write_bytes(path: Path, data: bytes) -> None:
        if count():
            path.with_name(f".{path.name}.999999999.partial").write_bytes(data[: len(data) // 2])
            raise Killed
        write(path, data)

    def remove(self: Path, missing_ok: bool = False) -> None:
        if self.exists() and self.suffix == ".json" and not self.name.startswith(".") and count():
            raise Killed
        unlink(self, missing_ok)

    monkeypatch.setattr(artifacts, "write_bytes", write_bytes)
    monkeypatch.setattr(Path, "unlink", remove)
    try:
        yield
    finally:
        monkeypatch.undo()


#: Two shards, the index, the manifest, and the former index that goes.
CHANGES = 5


@pytest.mark.parametrize("at", range(1, CHANGES + 2))
def test_killed_while_it_is_extended_it_is_the_former_or_the_new(
    tmp_path: Path, images: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    for store in ("whole", "killed"):
        encode(tmp_path / store, encoder, images, NAMES[:3])
    encode(tmp_path / "whole", encoder, images)
    killer = killing(monkeypatch, at)
    next(killer)
    killed = False
    try:
        encode(tmp_path / "killed", encoder, images)
    except Killed:
        killed = True
    killer.close()
    assert killed == (at <= CHANGES), "the control: after the last change it ends well"
    assert_right(tmp_path / "killed", NAMES if at >= CHANGES else NAMES[:3], images, encoder)
    assert len(FeatureStore(tmp_path / "killed")) == (7 if at >= CHANGES else 3)
    encode(tmp_path / "killed", encoder, images)
    assert {name: what[1] for name, what in everything(tmp_path / "killed").items()} == {
        name: what[1] for name, what in everything(tmp_path / "whole").items()
    }, "and no leftover"


def test_leftovers_of_the_dead_are_swept_and_said_and_nothing_else(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    store = tmp_path / "store"
    encode(store, encoder, images)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    swept = [
        f".features-00002.safetensors.{dead.pid}.partial",
        f".pictures.json.{dead.pid}.partial",
        f".manifest.json.{os.getpid()}.partial",
    ]
    kept = [
        f".features-00000.safetensors.{os.getppid()}.partial",
        f".thesis.txt.{dead.pid}.partial",
        "notes.txt",
        ".hidden",
        "a.partial",
    ]
    for name in (*swept, *kept):
        (store / name).write_bytes(b"x")
    said: list[str] = []
    encode_again(store, encoder, images, log=said.append)
    assert all(not (store / name).exists() and name in said[0] for name in swept)
    assert all((store / name).exists() and name not in said[0] for name in kept)
    assert_right(store, NAMES, images, encoder)
    (store / "notes.txt").write_text("changed")
    assert_right(store, NAMES, images, encoder)  # what is not the store's may change


# In another's place.


def test_another_format_takes_the_place_when_it_is_whole(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    root = tmp_path / "root"
    encode(root / "store", encoder, images)
    before = everything(root / "store")

    def stop(event: Event) -> None:
        assert isinstance(event, Progress)
        if event.task == "encoding pictures" and event.done >= 4:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        encode_again(
            root / "store", encoder, images, dtype="float16", overwrite=True, on_event=stop
        )
    assert everything(root / "store") == before
    counting: Any = Counting(encoder)
    encode_again(root / "store", counting, images, NAMES[:5], dtype="float16", overwrite=True)
    assert counting.seen < 5, "what an interrupted one encoded counts"
    assert FeatureStore(root / "store", dtype="float16").names == NAMES[:5]
    assert [path.name for path in root.iterdir()] == ["store"]


def test_a_new_one_takes_the_place_of_a_damaged_one(
    tmp_path: Path, images: Path, encoder: Encoder
) -> None:
    encode(tmp_path / "store", encoder, images)
    for path in (tmp_path / "store").iterdir():
        cut(path)
    encode_again(tmp_path / "store", encoder, images, SOME, overwrite=True)
    assert FeatureStore(tmp_path / "store").names == SOME
    assert_right(tmp_path / "store", SOME, images, encoder)


def test_the_manifest_tells_its_format(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode(tmp_path / "store", encoder, images)
    manifest = orjson.loads((tmp_path / "store" / "manifest.json").read_bytes())
    assert manifest["about"]["store_format"] == 2
    assert list(manifest["files"]) == [
        "features-00000.safetensors",
        "features-00001.safetensors",
        "features-00002.safetensors",
        "pictures.json",
    ]
    for name, facts in manifest["files"].items():
        artifacts.verify_file(tmp_path / "store" / name, facts, do="")
    assert (
        artifacts.read_manifest(tmp_path / "store", kind="feature store", verify=True)["pictures"]
        == 7
    )


def test_to_replace_nothing_is_to_make_it(tmp_path: Path, images: Path, encoder: Encoder) -> None:
    encode_again(tmp_path / "store", encoder, images, overwrite=True)
    encode(tmp_path / "plain", encoder, images)
    assert {name: what[1] for name, what in shards(tmp_path / "store").items()} == {
        name: what[1] for name, what in shards(tmp_path / "plain").items()
    }
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="would be replaced"):
        encode_again(tmp_path / "file", encoder, images, overwrite=True)
    with pytest.raises(ArtifactError, match="cannot"):
        encode_again(tmp_path / "file", encoder, images)
    assert (tmp_path / "file").read_text() == "mine"
