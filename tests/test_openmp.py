"""Waiting threads of OpenMP sleep. In processes of their own: it reads its settings once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phisense import openmp
from phisense.openmp import PASSIVE, choose_wait_policy

OURS = (*PASSIVE, "OMP_NUM_THREADS", "OMP_DISPLAY_ENV")
PRINT = "print(openmp.wait_policy().told, openmp.is_loaded(), sep='\\n')"


def python(code: str, **environment: str) -> tuple[list[str], str]:
    """The lines of the standard output, and the standard error, of a new process without any of the
    variables but those given.
    """
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


def displayed(stderr: str) -> dict[str, str]:
    """What OpenMP's library says of itself under OMP_DISPLAY_ENV=verbose."""
    pairs = (line.strip().removeprefix("[host] ").partition(" = ") for line in stderr.splitlines())
    return {name: value.strip("'") for name, _, value in pairs if value}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "_ACCELERATORS", ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loads",
    [
        "import phisense, torch",
        "from phisense.model import arithmetic",
        "from phisense.cli import app; import phisense.pipeline.features as f; import torch",
    ],
)
def test_the_library_is_loaded_with_them(loads: str) -> None:
    """Whatever of phisense is imported first: OpenMP itself says how its threads wait."""
    _, said = python(loads, OMP_DISPLAY_ENV="verbose")
    found = displayed(said)
    if "GOMP_SPINCOUNT" not in found:
        pytest.skip("torch's OpenMP is not GNU's, which would tell")
    assert (found["OMP_WAIT_POLICY"], found["GOMP_SPINCOUNT"]) == (
        "PASSIVE",
        PASSIVE["GOMP_SPINCOUNT"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1234"}, {"KMP_BLOCKTIME": "7"}]
)
def test_a_users_own_setting_wins(own: dict[str, str]) -> None:
    code = f"import os; from phisense import openmp; import torch; {PRINT}"
    (told, _), said = python(code, OMP_DISPLAY_ENV="verbose", **own)
    ((name, value),) = own.items()
    assert told == f"as you have set it: {name}={value}"
    found = displayed(said)
    if name in found:
        assert found[name] == value
    # nothing else was set beside it
    env = {**own}
    assert choose_wait_policy(env).made == ()
    assert env == own


@pytest.mark.slow
def test_after_torch_it_is_said_that_it_is_too_late() -> None:
    (told, loaded), said = python(f"import torch; from phisense import openmp; {PRINT}")
    if loaded != "True":
        pytest.skip("this system does not tell which libraries are loaded")
    assert told.startswith("spinning: torch was imported before phisense")
    assert "Import phisense first" in said
    advised = {name: PASSIVE[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    (told, _), said = python(f"import torch; from phisense import openmp; {PRINT}", **advised)
    assert (told, said) == ("asleep, as the environment says", ""), "who followed the advice"
    (told, _), said = python(f"from phisense import openmp; import torch; {PRINT}")
    assert told.startswith("asleep after a brief spin, by OMP_WAIT_POLICY=PASSIVE")
    assert said == ""


def test_no_more_threads_than_a_container_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmp, "is_loaded", lambda: False)
    monkeypatch.setattr("phisense.cpu_limits._CGROUP", tmp_path)
    monkeypatch.setattr(openmp, "_affinity", lambda: set(range(8)))
    for quota, threads in (("300000 100000", "3"), ("50000 100000", "1"), ("max 100000", None)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        env: dict[str, str] = {}
        choose_wait_policy(env)
        assert env.get("OMP_NUM_THREADS") == threads
        assert {name: env[name] for name in PASSIVE} == PASSIVE
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    env = {"OMP_NUM_THREADS": "6"}
    choose_wait_policy(env)
    assert env["OMP_NUM_THREADS"] == "6"


def test_where_a_gpu_computes_nothing_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmp, "is_loaded", lambda: False)
    monkeypatch.setattr(openmp, "_ACCELERATORS", (str(tmp_path),))
    env: dict[str, str] = {}
    assert choose_wait_policy(env).made == ()
    assert env == {}
    env = {"CUDA_VISIBLE_DEVICES": ""}
    assert set(choose_wait_policy(env).made) == set(PASSIVE)
