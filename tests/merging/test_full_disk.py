"""A disk that refuses while `merge` writes: one sentence, nothing left behind, and nothing written
anywhere but beside the output.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ..killable import start_process
from ..tiny import make_root
from ..training.test_full_disk import limited

pytestmark = pytest.mark.slow


def without_tmpdir(told: Connection, most: int | None, *words: str) -> None:
    """As `limited`, in a process that has no folder for temporary files."""
    tempfile.tempdir = "/nowhere"
    limited(told, most, *words)


def life(most: int | None, *words: str) -> tuple[Any, str]:
    here, there = multiprocessing.Pipe()
    process = start_process(without_tmpdir, there, most, *words)
    assert here.poll(200)
    process.join()
    told: tuple[Any, str] = here.recv()
    return told


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_disk_is_full_at_each_write_of_a_merge(tmp_path: Path, verb: Any, kind: str) -> None:
    make_root(tmp_path)
    verb("features", tmp_path / "tiny.yaml")
    full = ("--set", "train.lora=null", "--set", "train.quantize=false") if kind == "full" else ()
    run = verb("train", tmp_path / "tiny.yaml", "--set", "train.eval.questions=0", *full)["run"]
    whole = tmp_path / "models" / "whole"
    code, errors = life(None, "merge", run, "--out", str(whole))
    assert code == 0, errors
    sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()})
    refused = 0
    for most in sizes[:: max(1, len(sizes) // 4)] + sizes[-1:]:
        code, errors = life(most - 1, "merge", run)
        assert code == 1, f"{most}: {code} {errors}"
        assert "Traceback" not in errors
        said = "".join(errors.split())  # wherever a line ends
        assert f"cannotwrite{tmp_path / 'models' / 'tiny'};gotFiletoolarge" in said
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["whole"]
        refused += 1
    assert refused >= 4
    code, errors = life(None, "merge", run)
    assert code == 0, errors
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "models" / "tiny" / path.name).read_bytes()
