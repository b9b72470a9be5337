"""Kills a feature run with -9 at random moments, again and again, and compares what it ends with. `python bench/kill_store.py --help`

The run encodes pictures of its own making with a small random CLIP. Every life is killed: every other one after a random time, the rest
as soon as a half-written shard lies in the folder. The last one ends by itself. The store must be the one that an uninterrupted run
writes, byte for byte. The control keeps one half-written shard under its final name, and must be found out.
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
from lives import LIVES, begin, in_a_life
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from phisense.conversations import Pictures
from phisense.errors import ArtefactError
from phisense.vision.encoders import Encoder
from phisense.vision.store import encode_pictures

SIDE, PATCHES = 96, 12 * 12


def make(folder: Path, pictures: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(pictures):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / "images" / f"{i:04d}.png")
    half = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**half, "vocab_size": 64}, vision_config={**half, "image_size": SIDE, "patch_size": 8})
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False).save_pretrained(folder / "clip")


def write(folder: Path, out: Path) -> None:
    """One life: shards of 32 pictures, some 1.2 MB each."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    pictures = Pictures([folder / "images"])
    encode_pictures(out, Encoder(str(folder / "clip")), names, pictures, dtype="int8", batch=8, shard=32, progress=lambda *_: None)


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


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
    except ArtefactError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=1600)
    asked = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        in_a_life(make, folder, asked.pictures)
        started = time.monotonic()
        in_a_life(write, folder, folder / "whole")
        seconds = time.monotonic() - started
        lives, killed, writing, identical = 0, 0, 0, True
        out = folder / "killed"
        while killed < asked.kills:
            process = begin(write, folder, out)
            if killed % 2:
                wait_for_a_write(process, out, rng)
            else:
                process.join(rng.uniform(0, seconds / 4))
            process.kill()
            process.join()
            lives += 1
            killed += process.exitcode == -9
            writing += process.exitcode == -9 and bool(half_written(out))
            if process.exitcode == 0:  # it ended first: begin again, or later kills would hit a finished store
                identical &= stored(out) == stored(folder / "whole")
                shutil.rmtree(out)
        in_a_life(write, folder, out)
        identical &= stored(out) == stored(folder / "whole")
        found = LIVES.Pool(1).apply(control, (folder, out))
    figures = {
        "kills": killed,
        "lives": lives + 1,
        "killed_while_writing": writing,
        "byte_identical": identical,
        "control_found_out": found,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
