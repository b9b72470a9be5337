"""Kills a feature run with -9 at random moments, again and again, and compares what it ends with. `python bench/kill_store.py --help`

The run encodes pictures of its own making with a small random CLIP. Each life is killed after a random time, half of them while a
shard is being written; the last one ends by itself. The store must be the one that an uninterrupted run writes, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from phisense.conversations import Pictures
from phisense.vision.encoders import Encoder
from phisense.vision.store import encode_pictures


def make(folder: Path, pictures: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(pictures):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(folder / "images" / f"{i:04d}.png")
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**half, "vocab_size": 64}, vision_config={**half, "image_size": 48, "patch_size": 8})
    CLIPModel(config).save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"height": 48, "width": 48}, do_center_crop=False).save_pretrained(folder / "clip")


def write(folder: Path, out: Path) -> None:
    """One life. Says when it begins to write, and works slowly enough to be killed in the middle."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    encoder = Encoder(str(folder / "clip"))
    print("ready", flush=True)
    pictures = Pictures([folder / "images"])
    encode_pictures(out, encoder, names, pictures, dtype="int8", batch=4, shard=8, progress=lambda *_: time.sleep(0.002))


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument("--write", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        write(*asked.write)
        return
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        make(folder, asked.pictures)
        one_life = [sys.executable, __file__, "--write", str(folder)]
        started = time.monotonic()
        subprocess.run([*one_life, str(folder / "whole")], check=True, capture_output=True)
        seconds = time.monotonic() - started
        lives, killed, partial = 0, 0, 0
        while killed < asked.kills:
            process = subprocess.Popen([*one_life, str(folder / "killed")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, min(1.0, seconds / 4)))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            lives += 1
            killed += process.returncode == -signal.SIGKILL
            partial += bool(list((folder / "killed").glob(".*partial")))
            if process.returncode == 0:  # it ended first: begin again, or later kills would hit a finished store
                assert stored(folder / "killed") == stored(folder / "whole")
                for path in (folder / "killed").iterdir():
                    path.unlink()
        subprocess.run([*one_life, str(folder / "killed")], check=True, capture_output=True)
        same = stored(folder / "killed") == stored(folder / "whole")
    print(json.dumps({"kills": killed, "lives": lives + 1, "killed_while_writing": partial, "byte_identical": same}))


if __name__ == "__main__":
    main()
