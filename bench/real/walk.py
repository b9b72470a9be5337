"""Runs each step in a process of its own, so that its peak memory is its own; remembers what is
done, so that an interrupted walk goes on.

    OUT/walk.json            what was asked for; a walk is resumed only with the same
    OUT/figures/STEP.json    a finished step: its figures, seconds, and peak memory in bytes
    OUT/logs/STEP.log        what the step said
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from phisense.errors import PhisenseError, UsageError

Figures = Mapping[str, object]
ENTRY = Path(__file__).parents[1] / "real_parts.py"


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk is asked for. Paths are absolute; `changes` are `key=value` changes of both
    recipes, `sections` what is walked.
    """

    out: str
    cache: str
    photographs: str | None
    recording: str | None
    sections: tuple[str, ...]
    tiny: bool = False
    changes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.out)

    def save(self) -> None:
        """Write walk.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "walk.json").write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> Walk:
        """Read walk.json."""
        found = json.loads((folder / "walk.json").read_text())
        return cls(**{**found, **{name: tuple(found[name]) for name in ("sections", "changes")}})


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished step."""

    step: str
    figures: Figures
    seconds: float
    peak_bytes: int

    @classmethod
    def load(cls, walk: Walk, step: str) -> Finished | None:
        """The step of that name; None if it is not finished."""
        path = _figures_file(walk, step)
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    @classmethod
    def before(cls, walk: Walk, step: str) -> Finished:
        """The step of that name, which comes before."""
        found = cls.load(walk, step)
        assert found is not None, f"{step} comes before"
        return found

    def save(self, walk: Walk) -> None:
        """Write the step's file, whole or not at all."""
        path = _figures_file(walk, self.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(asdict(self), indent=2))
        aside.replace(path)


def _figures_file(walk: Walk, step: str) -> Path:
    return walk.folder / "figures" / f"{step}.json"


def begin(walk: Walk, *, resume: bool) -> None:
    """Check that the walk may write where it is asked to, before anything is written.

    Raises UsageError if `walk.out` exists and the walk is not resumed, or is another walk's.
    """
    if walk.folder.exists() and any(walk.folder.iterdir()):
        if not resume:
            raise UsageError(
                f"{walk.out} exists", do="Name another --out, or go on with it by --resume"
            )
        if not (walk.folder / "walk.json").is_file():
            raise UsageError(f"{walk.out} is no walk with real parts", got="no walk.json in it")
        if (before := Walk.load(walk.folder)) != walk:
            changed = [key for key, value in asdict(walk).items() if asdict(before)[key] != value]
            raise UsageError(
                f"{walk.out} was begun with other arguments",
                got=f"another {', '.join(changed)}",
                do="Name another --out, or the same arguments as before",
            )
    walk.save()


def run_steps(walk: Walk, steps: Sequence[str], say: Callable[[str], None]) -> list[Finished]:
    """Run each step that is not finished, and return all of them.

    Raises PhisenseError with the end of a step's log if it fails.
    """
    done = []
    for step in steps:
        before = Finished.load(walk, step)
        found = before if before is not None else _run_in_process(walk, step)
        done.append(found)
        told = ", ".join(f"{name} {_brief(value)}" for name, value in found.figures.items())
        again = " (finished before)" if before is not None else ""
        say(f"{step}: {told}; {found.seconds:.0f} s, {found.peak_bytes / 1e9:.2f} GB{again}")
    return done


def _run_in_process(walk: Walk, step: str) -> Finished:
    log = walk.folder / "logs" / f"{step}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ENTRY), "--out", walk.out, "--step", step]
    with log.open("w") as file:
        ran = subprocess.run(command, stdout=file, stderr=file)
    found = Finished.load(walk, step)
    if ran.returncode or found is None:
        said = log.read_text(errors="replace").strip().splitlines()
        raise PhisenseError(
            f"the step {step} failed",
            got=said[-1] if said else f"exit code {ran.returncode}",
            do=f"{log} has all that it said. Run it again with --resume",
        )
    return found


def run_step(walk: Walk, step: str, function: Callable[[Walk], Figures]) -> None:
    """Run one step in this process and write its file."""
    begun = time.monotonic()
    figures = function(walk)
    Finished(step, figures, time.monotonic() - begun, peak_memory()).save(walk)


def peak_memory() -> int:
    """Most bytes that this process ever had in memory."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_brief(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_brief, value)) + "]"
    return str(value)
