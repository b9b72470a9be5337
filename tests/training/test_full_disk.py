"""A disk that refuses, at whichever write: one sentence, and a run that goes on to the same end
once there is room.
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ..killable import start_process
from ..tiny import make_root

pytestmark = pytest.mark.slow

CHANGES = (
    "--set",
    "train.align.max_steps=25",
    "--set",
    "train.instruct.max_steps=25",
    "--set",
    "train.log_every=1",
)


def limited(told: Connection, most: int | None, *words: str) -> None:
    """The command line, in a process whose files cannot grow past `most` bytes; hands back its exit
    code and errors.
    """
    from phisense.cli import main

    sys.argv, sys.stderr = ["phisense", *words], io.StringIO()
    if most is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except Exception as error:  # what the command line would have shown as a traceback
        code = f"{type(error).__name__}: {error}"
    told.send((code, sys.stderr.getvalue()))


def life(root: Path, most: int | None, *more: str) -> tuple[Any, str]:
    here, there = multiprocessing.Pipe()
    process = start_process(limited, there, most, "train", str(root / "tiny.yaml"), *CHANGES, *more)
    assert here.poll(200)
    process.join()
    told: tuple[Any, str] = here.recv()
    return told


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "runs" / "tiny" / "adapter" / "adapter_model.safetensors")


def test_the_disk_is_full_at_each_write(tmp_path: Path, verb: Any) -> None:
    make_root(tmp_path)
    verb("features", tmp_path / "tiny.yaml")
    code, errors = life(tmp_path, None)
    assert code == 0, errors
    run = tmp_path / "runs" / "tiny"
    wanted = weights(tmp_path)
    sizes = sorted({path.stat().st_size for path in run.rglob("*") if path.is_file()})
    shutil.rmtree(run)
    refused = []
    for most in sizes[:: max(1, len(sizes) // 5)]:  # each lets more of the files be written
        code, errors = life(
            tmp_path, most - 1, *(["--resume"] if (run / "recipe.yaml").is_file() else [])
        )
        if code == 0:
            break
        assert code == 1, f"{most}: {code} {errors}"
        assert "cannot write" in errors or "The system refused" in errors
        said = " ".join(errors.split())  # wherever a line ends
        assert "File too large" in said or "could not be written to its end" in said
        refused.append(errors)
    assert len(set(refused)) > 2, "other files each time"
    code, errors = life(tmp_path, None, "--resume")
    assert code == 0, errors
    made = weights(tmp_path)
    assert all(torch.equal(wanted[name], made[name]) for name in wanted)


def test_a_write_that_fails_for_another_reason_is_no_full_disk(tmp_path: Path) -> None:
    from phisense import artifacts

    with pytest.raises(KeyError), artifacts.translate_disk_errors(tmp_path):
        raise KeyError("a fault of ours")
