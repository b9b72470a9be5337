"""Mutated pictures, JSON, CSV and their readers: nothing may crash, hang or leak. `python
bench/fuzz_check.py --help`

Each input is a good file, made as people make them (bench/fuzz_files.py: other encodings,
separators and wrappings, archives, paths of other machines, keys renamed, dropped or nested), then
with bytes flipped, cut out, doubled, or replaced by what breaks parsers. Whatever comes of it,
check, training's reader, the questions' and the answers' return what they found or raise one of
phisense's own errors, within a second, and what they say can be written as UTF-8. Ends with one
line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import random
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

from fuzz_files import good_file
from PIL import Image

from phisense import console
from phisense.console import json_bytes
from phisense.conversations import check, read_conversations, read_questions
from phisense.errors import PhisenseError
from phisense.evaluation.predictions_io import read_answers
from phisense.evaluation.tasks import TASKS
from phisense.vision.image_checks import check_image
from phisense.vision.image_io import open_image

_NASTY = (
    b"\x00",
    b"\xff" * 8,
    b"\xed\xa0\x80",
    b"\\ud800",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[" * 2000,
    b'{"a":' * 2000,
    b'"',
    b"\\",
    b"<image>",
    b"<|end|>",
    b"null",
    b"true",
    b"-",
    b"1" * 5000,
    b"../../",
    b"http://",
    b"data:image/png;base64,",
    b"\r",
    b"\n",
    b"\xef\xbb\xbf",
    b"]",
    b"}",
)


def seeds() -> list[bytes]:
    """Good pictures of each kind."""
    picture = Image.effect_noise((48, 40), 80).convert("RGB")
    pictures = []
    for kind, image in (
        ("JPEG", picture),
        ("PNG", picture),
        ("GIF", picture.quantize(16)),
        ("WEBP", picture),
        ("BMP", picture),
        ("TIFF", picture),
        ("JPEG", picture.convert("CMYK")),
        ("PNG", picture.quantize(8)),
        ("PNG", picture.convert("RGBA")),
    ):
        data = io.BytesIO()
        image.save(data, kind)
        pictures.append(data.getvalue())
    return pictures


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] = rng.randrange(256)
            case 1 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + rng.randrange(1, 64)]
            case 3:
                out[at:at] = rng.choice(_NASTY)
            case 4:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                out[at:] = other[cut:]
            case _:
                out[at:at] = out[at : at + rng.randrange(1, 64)]
    return bytes(out)


def try_picture(data: bytes) -> str:
    """What came of it: `found`, `refused` (one of phisense's errors), or `clean`."""
    faults = check_image(data, "a.jpg", decode=True)
    try:
        open_image(data).load()
    except PhisenseError:
        return "refused"
    return "found" if faults else "clean"


def try_file(path: Path) -> str:
    """As `try_picture`, of a data set. Everything that is said of it must be something that can be
    written.
    """
    came = "clean"
    try:
        found = check(path, [path.parent], check_image=partial(check_image, decode=False))
        json_bytes(found.to_result().to_dict()).decode()
        "".join(map(str, found.findings)).encode()
        came = "found" if found.findings else "clean"
    except PhisenseError as error:
        str(error).encode()
        return "refused"
    for read in (
        read_conversations,
        read_questions,
        lambda path: read_answers(path, TASKS["own"], []),
    ):
        try:
            read(path)
        except PhisenseError as error:
            str(error).encode()
    return came


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    console.silence_libraries()
    print(json.dumps(fuzz(asked.inputs, asked.seed)))


def fuzz(inputs: int, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    console.err.quiet = True  # the notes of files
    pictures = seeds()
    came: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, []
    before = 0.0
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        (folder / "a.jpg").write_bytes(pictures[0])
        for i in range(inputs):
            name, data = ("a.jpg", rng.choice(pictures)) if rng.random() < 0.3 else good_file(rng)
            if rng.random() < 0.7:  # the others are as somebody made them
                data = mutate(data, rng, pictures if name == "a.jpg" else [data, good_file(rng)[1]])
            path = folder / f"data{Path(name).suffix}"
            if name != "a.jpg":
                path.write_bytes(data)
            started = time.perf_counter()
            try:
                came[try_picture(data) if name == "a.jpg" else try_file(path)] += 1
            except Exception as error:
                faults.append(f"{name} {i}: {type(error).__name__}: {error}"[:300])
            slowest = max(slowest, time.perf_counter() - started)
            if i == min(500, inputs // 10):  # what libraries load on first use is not growth
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return {
        "inputs": inputs,
        **came,
        "untyped_errors": len(faults),
        "first": faults[:5],
        "slowest_s": round(slowest, 3),
        "grown_mb": round(grown),
    }


if __name__ == "__main__":
    main()
