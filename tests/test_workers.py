"""The suite itself: when a test kills its worker the run ends, fails, and says which test it
was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist", reason="pytest-xdist is not installed")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DYING = """
import multiprocessing, os, signal, subprocess, time
import pytest

@pytest.mark.parametrize("i", range(20))
def test_fine(i):
    pass

def test_dies():
    {before}
    os.kill(os.getpid(), signal.SIGSEGV)
"""
ALONE = "pass"
FORKED = 'multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,)).start()'
STARTED = 'subprocess.Popen(["sleep", "3600"])'


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The suite's own options and plugin on a folder of its own; ends when nobody holds its output
    any more.
    """
    (folder / "test_it.py").write_text(text)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    words = [
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(folder),
        "-p",
        "tests.leftovers",
        "-n",
        "2",
        *options,
        str(folder),
    ]
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("before", [ALONE, FORKED, STARTED], ids=["alone", "forked", "started"])
def test_a_dead_worker_ends_the_run(before: str, tmp_path: Path) -> None:
    done = run(tmp_path, DYING.format(before=before))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running" in done.stdout
    assert "test_it.py::test_dies" in done.stdout
    assert "replacing crashed worker" not in done.stdout


def test_without_a_death_it_passes(tmp_path: Path) -> None:
    done = run(tmp_path, DYING.format(before="return"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "21 passed" in done.stdout


def test_a_test_that_never_ends_is_named(tmp_path: Path) -> None:
    """By pytest's own bound, here a shorter one; the suite's is in its options."""
    done = run(tmp_path, DYING.format(before="time.sleep(3600)"), "-o", "faulthandler_timeout=5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_it.py::test_dies" in done.stdout
    assert "faulthandler_timeout = " in (ROOT / "pyproject.toml").read_text()
