"""Kills a feature run with -9 at random moments, again and again, and compares what it ends with.
`python bench/kill_store.py --help`

The run encodes pictures of its own making with a small random CLIP. Every life is killed: every
other one after a random time, the rest as soon as a half-written file lies in the folder. The last
one ends by itself. Half of the kills are of runs that make a store, half of runs that add to a
finished one: after each of these, what was finished must be read as it was. In the end the store
must be the one that an uninterrupted run writes, byte for byte, and nothing half-written may lie
there. The control keeps one half-written shard under its final name, and must be found out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from lives import LIVES, begin, in_a_life
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from phisense.conversations import ImageFinder
from phisense.errors import ArtifactError
from phisense.vision.encoders.encode import Encoder
from phisense.vision.store import FeatureStore, encode_images

SIDE, PATCHES = 96, 12 * 12


def make(folder: Path, pictures: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(pictures):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(
            folder / "images" / f"{i:04d}.png"
        )
    half = {
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**half, "vocab_size": 64},
        vision_config={**half, "image_size": SIDE, "patch_size": 8},
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False
    ).save_pretrained(folder / "clip")


def names_of(folder: Path, *, half: bool = False) -> list[str]:
    names = sorted(path.name for path in (folder / "images").iterdir())
    return names[: len(names) // 2] if half else names


def write(folder: Path, out: Path, half: bool = False) -> None:
    """One life: shards of 32 pictures, some 1.2 MB each."""
    names = names_of(folder, half=half)
    pictures = ImageFinder([folder / "images"])
    encode_images(
        out,
        Encoder(str(folder / "clip")),
        names,
        pictures,
        dtype="int8",
        batch=8,
        shard=32,
        on_event=lambda event: None,
    )


def stored(folder: Path) -> dict[str, bytes]:
    """All that lies there, leftovers too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_as(folder: Path, out: Path, wanted: Path) -> bool:
    """Whether the store `out` gives what the finished store `wanted` does, for all names of
    that.
    """
    store, right = FeatureStore(out, images=ImageFinder([folder / "images"])), FeatureStore(wanted)
    return all(
        torch.equal(store.batch(names), right.batch(names))
        for names in (right.names[i : i + 64] for i in range(0, len(right), 64))
    )


def half_written(out: Path) -> list[Path]:
    return list(out.glob(".*partial"))


def wait_for_a_write(process: BaseProcess, out: Path, rng: random.Random) -> None:
    """Until a file that was not there before is half written; not always the first."""
    old = set(half_written(out))
    for _ in range(rng.randint(1, 3)):
        while process.is_alive() and not set(half_written(out)) - old:
            pass
        if rng.random() < 0.5:
            return
        while process.is_alive() and set(half_written(out)) - old:
            pass
    while process.is_alive() and not set(half_written(out)) - old:
        pass


def control(folder: Path, out: Path) -> bool:
    """A shard cut in the middle, as a plain write would leave it, is found and not kept."""
    shutil.copytree(out, folder / "cut")
    shard = sorted((folder / "cut").glob("features-*"))[1]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    try:
        write(folder, folder / "cut")
    except ArtifactError:
        return True
    return False


def killed_again_and_again(
    folder: Path, kills: int, seconds: float, *, finished: bool
) -> dict[str, int | bool]:
    """Of runs that make a store, or add to a `finished` one."""
    rng = random.Random(finished)
    counts = {"lives": 0, "kills": 0, "while_writing": 0, "leftovers": 0}
    wanted, out = folder / ("extended" if finished else "whole"), folder / "killed"
    good = former = True
    begun = False
    while counts["kills"] < kills:
        if not begun and finished:
            shutil.copytree(folder / "half", out)
        begun = True
        process = begin(write, folder, out)
        if counts["kills"] % 2:
            wait_for_a_write(process, out, rng)
        else:
            process.join(rng.uniform(0, seconds / 4))
        process.kill()
        process.join()
        counts["lives"] += 1
        counts["kills"] += process.exitcode == -9
        counts["while_writing"] += process.exitcode == -9 and bool(half_written(out))
        if finished:
            with LIVES.Pool(1) as pool:
                former &= pool.apply(read_as, (folder, out, folder / "half"))
        # it ended first: begin again, or later kills would hit a finished store
        if process.exitcode == 0:
            good &= stored(out) == stored(wanted)
            shutil.rmtree(out)
            begun = False
    in_a_life(write, folder, out)
    counts["leftovers"] = len(half_written(out))
    good &= stored(out) == stored(wanted)
    shutil.rmtree(out)
    return {
        **counts,
        "byte_identical": good,
        **({"former_read_right_after_each": former} if finished else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=1600)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        in_a_life(make, folder, asked.pictures)
        started = time.monotonic()
        in_a_life(write, folder, folder / "whole")
        seconds = time.monotonic() - started
        in_a_life(write, folder, folder / "half", True)
        shutil.copytree(folder / "half", folder / "extended")
        in_a_life(write, folder, folder / "extended")
        figures = {
            "made": killed_again_and_again(
                folder, asked.kills - asked.kills // 2, seconds, finished=False
            ),
            "added_to": killed_again_and_again(
                folder, asked.kills // 2, seconds / 2, finished=True
            ),
            "control_found_out": LIVES.Pool(1).apply(control, (folder, folder / "whole")),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
