"""What the verbs print and write, recorded before a change of the code and compared after it.

    python bench/golden.py record BEFORE      walks the demo, then the other verbs; some minutes
    python bench/golden.py compare BEFORE AFTER

`record` runs the phisense that it is run with, so a second checkout is recorded with its own
`PYTHONPATH`. Losses and answers are compared to the bit, so both must be recorded on one machine.
Left out: times, rates, memory, digests of files that hold those, and where the folders lie.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMES = re.compile(
    r"seconds|per_second|memory|_ms$|^(time|date|created|began|ended|pid|host|bytes_free|free|rss|"
    r"cores|phisense|version|sha256|fingerprint|digest|files|torch|transformers|duration|elapsed)"
)


def verbs(road: Path) -> dict[str, list[str]]:
    """Name of a record -> the words of its command, without `phisense`."""
    data, model = road / "data", road / "models" / "practice"
    heldout, images = str(data / "heldout.jsonl"), ["--images", str(data / "images")]
    return {
        "check": ["check", heldout, *images, "--json"],
        "convert": ["convert", heldout, *images, "--out", str(road / "converted"), "--json"],
        "show": ["show", heldout, "-n", "2"],
        "plan": ["features", "practice", "--set", f"root={road}", "--plan", "--json"],
        "runs": ["runs", str(road), "--json"],
        "ask": ["ask", str(model), "--image", str(next((data / "images").iterdir())), "-q",
                "What is in the picture?", "--json"],
        "report": ["report", str(road / "reports" / "heldout"), str(road / "reports" / "digits"),
                   "--out", str(road / "reports" / "both"), "--json"],
    }  # fmt: skip


def record(folder: Path, scenes: int) -> None:
    """Writes `road/`, and `NAME.out`, `NAME.code` for each verb."""
    road = folder / "road"
    folder.mkdir(parents=True)
    walk = ["demo", "--out", str(road), "--no-app", "--scenes", str(scenes), "--seed", "5"]
    _run("demo", walk, folder)
    for name, words in verbs(road).items():
        _run(name, words, folder)


def _run(name: str, words: list[str], folder: Path) -> None:
    print(f"{name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "phisense", *words], capture_output=True, text=True
    )
    (folder / f"{name}.out").write_text(done.stdout)
    (folder / f"{name}.code").write_text(str(done.returncode))
    if done.returncode:
        print(f"{name} exits with {done.returncode}: {done.stderr[-500:]}", file=sys.stderr)


def facts(folder: Path) -> dict[str, Any]:
    """Dotted name -> value of everything that is compared."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".code":
            found[name] = path.read_text()
        elif path.suffix in (".json", ".out") and path.stat().st_size < 2**24:
            text = path.read_text()
            try:
                _flat(name, json.loads(text), found, folder)
            except ValueError:
                if name == "show.out":
                    found[name] = text.replace(str(folder), "FOLDER")
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                _flat(f"{name}:{number}", json.loads(line), found, folder)
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def _flat(name: str, value: Any, found: dict[str, Any], folder: Path) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            if not TIMES.search(key):
                _flat(f"{name}.{key}", one, found, folder)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _flat(f"{name}[{number}]", one, found, folder)
    else:
        found[name] = value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


def compare(before: Path, after: Path) -> int:
    """Prints what differs; returns the exit code."""
    old, new = facts(before), facts(after)
    differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    for name in differ[:200]:
        was, now = (repr(one.get(name, "nothing"))[:80] for one in (old, new))
        print(f"{name}: {was} -> {now}")
    print(f"{len(old):,} values before, {len(new):,} after, {len(differ):,} differ")
    return int(bool(differ))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="what", required=True)
    one = parts.add_parser("record", help="walk the verbs into a new folder")
    one.add_argument("folder", type=Path)
    one.add_argument("--scenes", type=int, default=1300)
    two = parts.add_parser("compare", help="exit with 1 if anything differs")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.what == "compare":
        return compare(asked.before, asked.after)
    record(asked.folder.absolute(), asked.scenes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
