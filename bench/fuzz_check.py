"""Mutated pictures, JSON and JSON lines through the check: nothing may crash, hang or leak. `python bench/fuzz_check.py --help`

Each input is a good file with bytes flipped, cut out, doubled, or replaced by what breaks parsers. Whatever comes of it, the
check returns its findings or raises one of phisense's own errors, within a second. Ends with one line of JSON.
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

from PIL import Image

from phisense import console
from phisense.conversations import check, read_conversations, read_questions
from phisense.errors import PhisenseError
from phisense.vision.looking import look_at
from phisense.vision.pictures import open_picture

_NASTY = (
    b"\x00", b"\xff" * 8, b"\xed\xa0\x80", b"\\ud800", b"NaN", b"Infinity", b"1e999", b"[" * 2000, b'{"a":' * 2000, b'"', b"\\", b"<image>",
    b"<|end|>", b"null", b"true", b"-", b"1" * 5000, b"../../", b"http://", b"data:image/png;base64,", b"\r", b"\n", b"\xef\xbb\xbf",
    b"]", b"}",
)  # fmt: skip


def seeds() -> dict[str, list[bytes]]:
    """Good files of each kind."""
    picture = Image.effect_noise((48, 40), 80).convert("RGB")
    pictures = []
    for kind, image in (
        ("JPEG", picture), ("PNG", picture), ("GIF", picture.quantize(16)), ("WEBP", picture), ("BMP", picture), ("TIFF", picture),
        ("JPEG", picture.convert("CMYK")), ("PNG", picture.quantize(8)), ("PNG", picture.convert("RGBA")),
    ):  # fmt: skip
        data = io.BytesIO()
        image.save(data, kind)
        pictures.append(data.getvalue())
    llava = [
        {"id": str(i), "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A é."}]}
        for i in range(4)
    ]
    openai = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hm?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
            },
            {"role": "assistant", "content": "No."},
        ]
    }
    pope = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    rows = [
        *llava,
        openai,
        pope,
        {"images": ["a.jpg"], "texts": [{"user": "a", "assistant": "b"}]},
        {"image": "a.jpg", "captions": ["x", "y"]},
    ]
    return {
        "picture": pictures,
        "json": [json.dumps(llava).encode(), json.dumps(rows, indent=1, ensure_ascii=False).encode()],
        "jsonl": [b"\n".join(json.dumps(row).encode() for row in rows)],
        "csv": [b"file_name,question,answer\na.jpg,What?,This.\n\"b.jpg\",\"Two\nlines\",\"x\"\n"],
    }  # fmt: skip


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
                cut = rng.randrange(len(other))
                out[at:] = other[cut:]
            case _:
                out[at:at] = out[at : at + rng.randrange(1, 64)]
    return bytes(out)


def try_one(kind: str, data: bytes, folder: Path) -> str:
    """What came of it: `found`, `refused` (one of phisense's errors), or `clean`."""
    look = partial(look_at, decode=True)
    if kind == "picture":
        faults = look(data, "a.jpg")
        try:
            open_picture(data).load()
        except PhisenseError:
            return "refused"
        return "found" if faults else "clean"
    path = folder / f"data.{kind}"
    path.write_bytes(data)
    found = check(path, [folder], look=look)
    for read in (read_conversations, read_questions):
        try:
            read(path)
        except PhisenseError:
            return "refused"
    return "found" if found.findings else "clean"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    console.quiet()
    print(json.dumps(fuzz(asked.inputs, asked.seed)))


def fuzz(inputs: int, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    good = seeds()
    came: collections.Counter[str] = collections.Counter()
    slowest, faults = 0.0, []
    before = 0.0
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        (folder / "a.jpg").write_bytes(good["picture"][0])
        for i in range(inputs):
            kind = rng.choice(("picture", "picture", "json", "jsonl", "csv"))
            data = mutate(rng.choice(good[kind]), rng, good[kind])
            started = time.perf_counter()
            try:
                came[try_one(kind, data, folder)] += 1
            except Exception as error:
                faults.append(f"{kind} {i}: {type(error).__name__}: {error}"[:300])
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
