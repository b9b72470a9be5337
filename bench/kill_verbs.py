"""Kills merge, export, evaluate, convert and deploy with -9, and looks at what is left. `python
bench/kill_verbs.py --help`

Half of the kills come after a random time, half as soon as something is being written. After each,
what the verb writes must be absent or whole, verified by its manifest; where an old one was being
replaced it must be there. Then the verb runs again, and must end well, with nothing left over
beside it. The control writes in place, which must be found.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from lives import begin, in_a_life

from phisense import artifacts
from phisense.staging import STAGING_NAME

ABOUT = "--data {root}/rows.json --images {root}/images --out {out}"
VERBS = {
    "convert": (
        "converted",
        "data set",
        "convert {root}/rows.json --images {root}/images --out {out}",
    ),
    "merge": ("merged", "model folder", "merge {root}/runs/tiny --out {out} --device cpu"),
    "evaluate": ("report", "report", f"evaluate {{root}}/models/tiny --device cpu {ABOUT}"),
    "export": (
        "exported",
        "gguf folder",
        f"export {{root}}/models/tiny --quant f16 --limit 3 {ABOUT}",
    ),
    "deploy": ("space", "space", "deploy {root}/models/tiny --space me/tiny --dry-run {out}"),
}


def verb(*words: str) -> None:
    """One verb, quietly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    from phisense.cli import run_verb

    run_verb(*words)


def make(root: Path) -> None:
    from tests.tiny import make_root

    make_root(root)
    for words in (("features",), ("train",)):
        verb(*words, str(root / "tiny.yaml"), "--device", "cpu")
    verb("merge", str(root / "runs" / "tiny"), "--device", "cpu")


def in_place(out: Path) -> None:
    """The control: what a verb without asides would do."""
    out.mkdir(exist_ok=True)
    (out / artifacts.MANIFEST).unlink(missing_ok=True)
    for number in range(20):
        (out / f"file-{number}").write_bytes(bytes(1000))
        time.sleep(0.02)
    artifacts.write_manifest(out, kind="control")


def being_written(out: Path) -> bool:
    return any(STAGING_NAME.fullmatch(name) for name in os.listdir(out.parent))


def state(out: Path, kind: str) -> str:
    """absent, whole, or what is wrong."""
    if not out.exists():
        return "absent"
    try:
        artifacts.read_manifest(out, kind=kind)
    except Exception as error:  # whatever a reader would be told
        return str(error)
    extra = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {
        *artifacts.read_json(out / "manifest.json")["files"]
    }
    return (
        f"unlisted files: {extra}"
        if {name for name in extra if Path(name).name != "manifest.json"}
        else "whole"
    )


def kill_once(
    words: list[str], out: Path, seconds: float, rng: random.Random, *, at_once: bool
) -> bool:
    """Whether it was killed before its end."""
    process = begin(verb, *words)
    if at_once:
        while process.is_alive() and not being_written(out):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
    else:
        process.join(rng.uniform(0, seconds))
    process.kill()
    process.join()
    return process.exitcode == -9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="of each verb")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS))
    asked = parser.parse_args()
    import phisense.cli.train
    import phisense.evaluation.run
    import phisense.merging
    import phisense.publish.deployment  # noqa: F401

    rng = random.Random(0)
    failed = 0
    with tempfile.TemporaryDirectory() as at:
        root = Path(at)
        in_a_life(make, root)
        for name in asked.verbs:
            folder, kind, line = VERBS[name]
            out = root / name / folder
            out.parent.mkdir()
            words = line.format(root=root, out=out).split()
            started = time.monotonic()
            in_a_life(verb, *words)
            seconds = time.monotonic() - started
            found: Counter[str] = Counter()
            killed = 0
            while killed < asked.kills:
                replacing = bool(rng.getrandbits(1))
                if not replacing:
                    shutil.rmtree(out)
                killed += kill_once(
                    [*words, *(["--overwrite"] if replacing else [])],
                    out,
                    seconds,
                    rng,
                    at_once=bool(killed % 2),
                )
                found[state(out, kind)] += 1
                if replacing and not out.exists():
                    found["the old one is gone"] += 1
                again = begin(verb, *words, "--overwrite")
                again.join()
                left = [one.name for one in out.parent.iterdir() if one != out]
                if again.exitcode != 0 or state(out, kind) != "whole" or left:
                    found[f"run again: {again.exitcode}, {state(out, kind)}, left over {left}"] += 1
            print(f"{name}: {killed} kills, a run of {seconds:.1f} s; {dict(found)}", flush=True)
            failed += sum(count for what, count in found.items() if what not in ("absent", "whole"))
        control = root / "control"
        process = begin(in_place, control)
        process.join(0.2)
        process.kill()
        process.join()
        told = state(control, "control")
        print(f"control, written in place: {told}")
        failed += told in ("absent", "whole")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
