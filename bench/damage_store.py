"""Feature stores damaged in every way that could be thought of, then read as training reads them.
`python bench/damage_store.py --help`

Each draw damages a store, its pictures, or both, one to three times (`store_damages.py`). For every
picture the features must be those of what lies under its name now, beside freshly encoded ones, or
there must be a refusal that is one of phisense's errors. Then the advice is followed: `phisense
features` runs, what it says to remove or move is removed or moved, it is told to overwrite where it
says so, and all must be right, with every file that was not removed as it was. The controls read
the same stores with checks left out, and must be found out. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from store_damages import DAMAGES, FORMATS, Case, World, agree
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from phisense.conversations import ImageFinder
from phisense.errors import PhisenseError
from phisense.vision.encoders.encode import Encoder
from phisense.vision.store import FeatureStore, contents, encode_images, reading, shards

#: The largest difference from fresh features, as a share of a token's largest value.
APART = {"float32": 1e-5, "float16": 1e-3, "int8": 4.5e-3, "pixels": 1e-5}
NAMES = [f"{i:02d}.bmp" for i in range(23)]
SHARD = 5
CHECKS = ("picture", "checksum", "index", "places", "any")


# How a store is read, and what must come of it.


def outcomes(case: Case, wanted: dict[str, torch.Tensor]) -> dict[str, str]:
    """For each name: right, refused, wrong, or the name of an exception that is none of
    phisense's.
    """
    encoder = case.world.encoder
    names = case.rng.sample(NAMES, len(NAMES))
    try:
        store = FeatureStore(
            case.store,
            facts=encoder.facts,
            dtype=case.dtype,
            live=encoder if case.dtype == "pixels" else None,
            images=ImageFinder([case.images]),
        )
    except PhisenseError:
        return dict.fromkeys(names, "refused")
    except Exception as error:
        return dict.fromkeys(names, f"open: {type(error).__name__}: {error}"[:200])
    found = {}
    for start in range(0, len(names), 4):
        some = names[start : start + 4]
        try:
            rows = store.batch(some)
        except PhisenseError:
            rows = None
        except Exception as error:
            found |= dict.fromkeys(some, f"batch: {type(error).__name__}: {error}"[:200])
            continue
        for i, name in enumerate(some):
            try:
                row = store.features(name) if rows is None else rows[i]
                found[name] = "right" if same(row, wanted.get(name), case.dtype) else "wrong"
            except PhisenseError:
                found[name] = "refused"
            except Exception as error:
                found[name] = f"row: {type(error).__name__}: {error}"[:200]
    return found


def same(row: torch.Tensor, wanted: torch.Tensor | None, dtype: str) -> bool:
    if wanted is None or row.shape != wanted.shape:
        return False
    return bool(
        ((row.float() - wanted).abs() <= APART[dtype] * wanted.abs().amax(-1, keepdim=True)).all()
    )


def expected(case: Case) -> dict[str, torch.Tensor]:
    """Of what lies under each name now; of a picture that is gone, those of the one that was
    encoded.
    """
    found = {}
    for name in NAMES:
        path = case.images / name
        features = case.world.of(path if path.is_file() else case.world.at / "images" / name)
        if features is not None:
            found[name] = features
    return found


def write(case: Case, **more: Any) -> None:
    names = [name for name in NAMES if (case.images / name).is_file()]
    encode_images(
        case.store,
        case.world.encoder,
        names,
        ImageFinder([case.images]),
        dtype=case.dtype,
        batch=4,
        shard=SHARD,
        on_event=lambda event: None,
        **more,
    )


def repair(case: Case) -> tuple[str, set[str]]:
    """`phisense features`, its advice followed: how it ended, and which files were removed or moved
    on the way.
    """
    gone: set[str] = set()
    overwrite = False
    for _ in range(20):
        before = contents_of(case.store)
        try:
            write(case, overwrite=overwrite)
            return "whole by --overwrite" if overwrite else "whole", gone
        except PhisenseError as error:
            after, said = contents_of(case.store), str(error)
            if any(after.get(name, "gone") != data for name, data in before.items()):
                return f"refused, yet changed: {said}", gone
            named = re.match(
                r"(\S+) (?:is damaged|is not of this store|is not JSON|is no file|is no"
                r" shard).*(?:Remove|Move) it",
                said,
            )
            if named is not None:
                gone.add(Path(named[1]).name)
                Path(named[1]).rename(case.store.parent / f"moved-{len(gone)}")
            elif "--overwrite" in said:
                overwrite = True
            else:
                return f"refused: {type(error).__name__}: {re.sub(r'/[^ ;]+/', '', said)}", gone
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:200], gone
    return "never ended", gone


def contents_of(folder: Path) -> dict[str, Any]:
    """Every file's bytes, links as links."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(folder.rglob("*"))
    }


# The controls: what would be found if one check were not there.


@contextmanager
def without(check: str) -> Iterator[None]:
    """Reading without one check: of the picture's bytes, of a row's checksum, of the index, of the
    places; or without any of them.
    """
    patches: dict[str, list[Callable[[], Any]]] = {
        "picture": [lambda: mock.patch.object(reading, "image_digest", return_value=_Anything())],
        "checksum": [lambda: mock.patch.object(shards, "row_checksum", return_value=_Anything())],
        "index": [
            lambda: mock.patch.object(contents, "names_digest", return_value=_Anything()),
            lambda: mock.patch.object(
                contents, "hashlib", mock.Mock(sha256=lambda data: mock.Mock(hexdigest=_Anything))
            ),
        ],
        "places": [lambda: mock.patch.object(reading, "check_locations")],
    }
    with ExitStack() as stack:
        for patch in (
            one for name, some in patches.items() if check in (name, "any") for one in some
        ):
            stack.enter_context(patch())
        yield


class _Anything:
    """Equal to whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def make(at: Path) -> World:
    """Pictures that are far from each other, two encoders of one shape, and whole stores of each
    format.
    """
    rng = np.random.default_rng(0)
    for folder in ("images", "other-images"):
        (at / folder).mkdir()
        for name in NAMES:
            tiles = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(12, 0).repeat(12, 1)
            Image.fromarray(tiles).save(at / folder / name)
        # the same picture under two names
        for name, other in zip(NAMES[-3:], NAMES[:3], strict=True):
            shutil.copy(at / folder / other, at / folder / name)
    for seed, name in enumerate(("encoder", "foreign")):
        torch.manual_seed(seed)
        shape = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        }
        CLIPVisionModel(CLIPVisionConfig(intermediate_size=64, **shape)).save_pretrained(at / name)
        CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(at / name)
    world = World(at, Encoder(str(at / "encoder")))
    foreign = World(at, Encoder(str(at / "foreign")))
    for dtype in FORMATS:
        for which, by, images in (
            ("own", world, "images"),
            ("others", world, "other-images"),
            ("foreign", foreign, "images"),
        ):
            write(Case(world.store(which, dtype), at / images, dtype, by, random.Random(0)))
        half = at / "half"
        shutil.copytree(at / "images", half)
        for name in NAMES[12:]:
            (half / name).unlink()
        write(Case(world.store("smaller", dtype), half, dtype, world, random.Random(0)))
        shutil.rmtree(half)
    return world


@contextmanager
def damaged(world: World, number: int, seed: int) -> Iterator[tuple[Case, list[str]]]:
    """A draw: a store and pictures of its own, damaged one to three times, half of the time with a
    manifest that agrees.
    """
    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(dir=world.at) as at:
        dtype = rng.choice(FORMATS)
        case = Case(Path(at) / "store", Path(at) / "images", dtype, world, rng)
        shutil.copytree(world.store("own", dtype), case.store)
        shutil.copytree(world.at / "images", case.images)
        kinds = sorted(DAMAGES)
        # every kind, and what comes together
        chosen = [kinds[number % len(kinds)], *rng.sample(kinds, rng.choice([0, 0, 1, 2]))]
        done = []
        for kind in chosen:
            try:
                DAMAGES[kind](case)
                done.append(kind)
            except (
                OSError,
                ValueError,
                IndexError,
                KeyError,
                TypeError,
                AttributeError,
                RuntimeError,
                PhisenseError,
            ):
                continue  # nothing is left there to be damaged in this way
            except Exception as error:
                if "afetensor" not in type(error).__name__:
                    raise
        if rng.random() < 0.5:
            agree(case)
            done.append("manifest agrees")
        yield case, done


def try_one(world: World, number: int, seed: int) -> dict[str, Any]:
    with damaged(world, number, seed) as (case, kinds):
        wanted = expected(case)
        found = outcomes(case, wanted)
        unchecked = {}
        for check in CHECKS:
            with without(check):
                unchecked[check] = set(outcomes(case, wanted).values()) - {"right", "refused"}
        before = contents_of(case.store)
        repaired, gone = repair(case)
        whole = repaired.startswith("whole")
        after = outcomes(case, expected(case)) if whole else {}
        now = contents_of(case.store)
        kept = [
            name
            for name in before
            if name == "notes.txt"
            or (name.startswith("features-") and repaired != "whole by --overwrite")
        ]
        changed = [
            name for name in kept if name not in gone and now.get(name, "gone") != before[name]
        ]
    return {
        "kinds": kinds,
        "found": found,
        "unchecked": unchecked,
        "repaired": repaired,
        "after": after,
        "changed": changed,
    }


def separated(world: World) -> float:
    """The least difference between two pictures' features, as a share of the largest value: what
    must be far above APART.
    """
    rows = [world.of(world.at / "images" / name) for name in NAMES[:-3]]
    return min(
        float(((one - other).abs() / other.abs().amax(-1, keepdim=True)).max())
        for i, one in enumerate(rows)
        for other in rows[i + 1 :]
    )


def run(at: Path, draws: int, seed: int, *, say: bool = False) -> dict[str, Any]:
    torch.set_num_threads(1)
    world = make(at)
    counts: collections.Counter[str] = collections.Counter()
    after: collections.Counter[str] = collections.Counter()
    repaired: collections.Counter[str] = collections.Counter()
    without_it: collections.Counter[str] = collections.Counter()
    changed = 0
    for number in range(draws):
        one = try_one(world, number, seed)
        counts.update(one["found"].values())
        after.update(one["after"].values())
        repaired[one["repaired"]] += 1
        changed += len(one["changed"])
        without_it.update(check for check in CHECKS if one["unchecked"][check])
        bad = {*one["found"].values(), *one["after"].values()} - {"right", "refused"}
        if say and (bad or one["changed"] or not one["repaired"].startswith("whole")):
            print(number, one["kinds"], bad, one["repaired"], one["changed"])
    return {
        "draws": draws,
        "kinds": len(DAMAGES),
        "pictures": dict(counts),
        "right_or_refused": counts["right"] + counts["refused"],
        "of": draws * len(NAMES),
        "after_the_advice": dict(repaired),
        "then": dict(after),
        "other_files_changed": changed,
        "wrong_without": dict(without_it),
        "least_difference": round(separated(world), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--say",
        action="store_true",
        help="name every draw that is not as it must be, or whose store stays refused",
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as at:
        print(json.dumps(run(Path(at), asked.draws, asked.seed, say=asked.say)))


if __name__ == "__main__":
    main()
