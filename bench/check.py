"""How fast the check is, beside `json.load` on the same file in the same run. `python
bench/check.py --help`

Writes a set with LLaVA-Instruct-150K's shape (157,712 rows, 81,479 picture names, about 229 MB of
JSON), then alternates `json.load` and `phisense check` without pictures, each in a process of its
own, and takes medians. With pictures: writes as many small JPEGs and looks at their headers.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import orjson
from PIL import Image

ROWS, PICTURES = 157_712, 81_479
_WORDS = """
the a of in is on with and to are there picture image man woman people standing sitting near
table large small two red white street kitchen dog playing while holding background appears
their scene which various additional visible
""".split()  # noqa: SIM905


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words)).capitalize() + "."


def write_rows(path: Path, rows: int, pictures: int) -> None:
    """A third conversations of three exchanges, a third details, a third reasoning, as the
    published set has them.
    """
    rng = random.Random(0)
    with path.open("wb") as file:
        for i in range(rows):
            exchanges, length = ((3, 26), (1, 225), (1, 225))[i % 3]
            turns = []
            for _ in range(exchanges):
                turns.append(
                    {
                        "from": "human",
                        "value": ("<image>\n" if not turns else "") + sentence(rng, 10),
                    }
                )
                turns.append({"from": "gpt", "value": sentence(rng, length)})
            row = {
                "id": f"{i % pictures:012d}-{i}",
                "image": f"{i % pictures:012d}.jpg",
                "conversations": turns,
            }
            file.write((b"[" if i == 0 else b",\n") + orjson.dumps(row))
        file.write(b"]")


def write_pictures(folder: Path, count: int) -> None:
    data = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(data, "JPEG", quality=80)
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:012d}.jpg").write_bytes(data.getvalue())


def measure_load(path: Path) -> dict[str, float]:
    started = time.perf_counter()
    with path.open(encoding="utf-8") as file:
        rows = len(json.load(file))
    return {"seconds": time.perf_counter() - started, "rows": rows}


def measure_check(path: Path, images: Path | None) -> dict[str, float]:
    from phisense.conversations import check
    from phisense.pipeline.progress import Event, Progress
    from phisense.vision.image_checks import check_image

    started = time.perf_counter()
    look = partial(check_image, decode=False) if images else None
    pictures_began = 0.0

    def on_event(event: Event) -> None:
        nonlocal pictures_began
        if isinstance(event, Progress) and event.unit == "images" and not pictures_began:
            pictures_began = time.perf_counter()

    found = check(path, [images] if images else [], check_image=look, on_event=on_event)
    ended = time.perf_counter()
    assert not found.findings, found.findings[:3]
    result = {"seconds": ended - started, "rows": found.rows, "pictures": found.pictures}
    return (
        {**result, "pictures_per_second": found.pictures / (ended - pictures_began)}
        if images
        else result
    )


def apart(*arguments: str) -> dict[str, float]:
    """One measurement in a fresh process, with its peak memory."""
    ran = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--times", type=int, default=5, help="repetitions of each side")
    parser.add_argument("--side", choices=["load", "check"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        figures = (
            measure_load(asked.path)
            if asked.side == "load"
            else measure_check(asked.path, asked.images)
        )
        print(
            json.dumps(
                {**figures, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
            )
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder) / "rows.json", Path(folder) / "images"
        write_rows(path, asked.rows, asked.pictures)
        print(f"{asked.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        sides: dict[str, list[dict[str, float]]] = {"load": [], "check": []}
        for _ in range(asked.times):
            for side, runs in sides.items():
                runs.append(apart("--side", side, "--path", str(path)))
        write_pictures(images, asked.pictures)
        looked = [
            apart("--side", "check", "--path", str(path), "--images", str(images))
            for _ in range(max(1, asked.times // 2))
        ]
    seconds = {side: [run["seconds"] for run in runs] for side, runs in sides.items()}
    ratios = [check / load for check, load in zip(seconds["check"], seconds["load"], strict=True)]
    print(json.dumps({
        "json_load_s": round(statistics.median(seconds["load"]), 2),
        "check_s": round(statistics.median(seconds["check"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "check_peak_mb": round(max(run["peak_mb"] for run in sides["check"])),
        "json_load_peak_mb": round(max(run["peak_mb"] for run in sides["load"])),
        "pictures_per_s": round(statistics.median(run["pictures_per_second"] for run in looked)),
        "with_pictures_peak_mb": round(max(run["peak_mb"] for run in looked)),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
