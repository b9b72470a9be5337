"""What many tests share: tiny parts with random weights, a little practice world, and one run that
was really trained and merged.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from .leftovers import pytest_testnodedown, pytest_xdist_newgateway  # noqa: F401, pytest calls them

# threads that spin while they wait take the cores of other workers
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# each worker keeps to a core of its own: models this small gain little from a second one
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).parent.parent
#: Every case of the matrices of cases, of which a run takes otherwise one for each mechanism
#: (`make soak`).
LONG = bool(os.environ.get("PHISENSE_LONG"))
FIXTURES = Path(os.environ.get("PHISENSE_FIXTURES", ROOT.parent / "shared" / "fixtures"))


@pytest.hookimpl(tryfirst=True)  # before pytest itself drops what `-m` does not select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that look at the trained road are slow, and come first: one worker begins with it, the
    others with the rest.
    """
    for item in items:
        if on_the_road(item) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not on_the_road(item))


def pytest_collection_finish() -> None:
    """What makes a tiny training cheap: the trainer collects garbage in each stage, so the
    libraries' objects, which stay, are taken out of it; and curves are drawn on the road alone.
    """
    gc.collect()
    gc.freeze()
    if stages := sys.modules.get("phisense.training.stages"):
        stages.plot_losses = write_plain_plot  # type: ignore[attr-defined]


def write_plain_plot(metrics: Path, out: Path) -> None:
    """In the place of `plot_losses`, which takes a quarter of a tiny training and has tests."""
    from phisense import artifacts

    assert metrics.is_file()
    artifacts.write_bytes(out, b"\x89PNG")


def on_the_road(item: pytest.Item) -> bool:
    return "road" in getattr(item, "fixturenames", ())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where slow tests are left out, one that trains all the same fails: it lacks the marker."""
    trainer = sys.modules.get("transformers.trainer")
    if trainer is not None and "not slow" in item.config.getoption("markexpr"):
        trainer.Trainer.train = refuse_training  # type: ignore[attr-defined]


def refuse_training(*_: Any, **__: Any) -> None:
    pytest.fail("a test that trains must carry the marker slow")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """On which class of machine this ran, and what could not be covered on it: no question where
    slow tests are left out.
    """
    for line in [] if "not slow" in config.getoption("markexpr") else machine_class():
        terminalreporter.write_line(line)


def machine_class() -> list[str]:
    import torch

    from phisense.model.arithmetic import choose_arithmetic
    from phisense.model.device import describe_machine

    cpu = torch.device("cpu")
    here, auto = describe_machine(cpu), choose_arithmetic("train", cpu)
    has = set(here.instructions)
    missing = {
        "products in bfloat16 by instructions: they were emulated, or the instructions are"
        " hidden": auto.format == "bfloat16",
        "training in float32 by default, as without such instructions: it was asked for in"
        " tests": auto.format == "float32",
        "bitsandbytes' layout for inference: what it does to a gradient was put in by hand": (
            "avx512_bf16" in has
        ),
        "llama.cpp's kernels for AMX": "amx_int8" in has and find_spec("llama_cpp") is not None,
        "llama.cpp, which is not installed": find_spec("llama_cpp") is not None,
        "a GPU's kernels": torch.cuda.is_available(),
        "the page in a browser: there is no chromium": shutil.which("chromium") is not None,
        f"real data: {FIXTURES} is not there": FIXTURES.is_dir(),
    }
    return [
        (
            f"machine: {here.processor};"
            f" {', '.join(here.instructions) or 'no instructions that matter'}; auto computes in"
            f" {auto.format}"
        ),
        *(f"not covered on it: {what}" for what, covered in missing.items() if not covered),
    ]


@pytest.fixture(autouse=True, scope="session")
def shown_log() -> None:
    """What the library logs is shown as the command line shows it, whichever test comes first."""
    from phisense import console

    console.show_log()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache alone, and each worker has its own folder of uploads: a page
    that is closed deletes what was uploaded to it, and Gradio names an upload by its content.
    """
    os.environ["PHISENSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not FIXTURES.is_dir():
        pytest.skip(f"no fixtures: {FIXTURES} does not exist (set PHISENSE_FIXTURES)")
    return FIXTURES


@pytest.fixture(params=("float32", "bfloat16"))
def compute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The number format that `auto` takes in this test, whatever the processor has; one without the
    instructions emulates it.
    """
    monkeypatch.setattr(
        "phisense.model.arithmetic.supports_bfloat16",
        lambda device: request.param == "bfloat16",
    )
    return str(request.param)


@pytest.fixture(scope="session")
def verb(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a verb as the command line does. Every refusal that any test meets is held to this: what
    was there is as it was.
    """
    from phisense.cli import run_verb
    from phisense.errors import PhisenseError

    def watched(*words: object) -> Any:
        tops = named_folders([str(word) for word in words], tmp_path_factory.getbasetemp())
        before = {top: states(top) for top in tops}
        try:
            return run_verb(*words)
        except PhisenseError as error:
            changed = [
                path for top in tops for path in differences(before[top], states(top), error)
            ]
            assert not changed, f"a refusal changed {changed[:5]}; it said: {error}"
            raise

    return watched


def named_folders(words: list[str], base: Path) -> list[Path]:
    """The folders just below the one for temporary files that the words name, and the one a test is
    in.
    """
    paths = [
        Path.cwd(),
        *(Path(found) for word in words for found in re.findall(r"/[^\s\"']+", word)),
    ]
    return sorted(
        {
            base / path.relative_to(base).parts[0]
            for path in paths
            if path.is_relative_to(base) and path != base
        }
    )


def states(top: Path) -> dict[Path, tuple[int, int, int]]:
    """Size, time and number of every file: by them a change shows without reading."""
    found = {}
    for path in top.rglob("*"):
        if path.is_symlink() or path.is_file():
            state = path.lstat()
            found[path] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def differences(before: dict[Path, Any], after: dict[Path, Any], error: Exception) -> list[Path]:
    """What a refusal changed. A wrong request adds nothing either; what was begun may leave a log,
    or a list of rejects, and a rejected merge its report, which the run's manifest then names.
    """
    from phisense.errors import MergeError, TrainingError, UsageError

    if isinstance(error, TrainingError):  # training had begun, and its run is there to be looked at
        return []
    changed = [
        path
        for path, state in before.items()
        if after.get(path) != state
        and path.suffix != ".lock"
        and not (isinstance(error, MergeError) and names_merge_report(path))
    ]
    return changed + (
        [path for path in after if path not in before] if isinstance(error, UsageError) else []
    )


def names_merge_report(path: Path) -> bool:
    """Whether a file is the report of a rejected merge in a run's folder, or the manifest there."""
    if not path.with_name("train.json").is_file():
        return False
    reports = [
        one for one in path.parent.glob("merge_report*.json") if '"rejected"' in one.read_text()
    ]
    return path in reports or (path.name == "manifest.json" and bool(reports))


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Language and vision parts with random weights, of the real classes."""
    from .tiny import make_language, make_vision

    folder = tmp_path_factory.mktemp("parts")
    return str(make_language(folder / "language")), str(make_vision(folder / "vision"))


@pytest.fixture(scope="session")
def parts_of(
    tmp_path_factory: pytest.TempPathFactory, parts: tuple[str, str]
) -> Callable[[str], tuple[str, str]]:
    """The same, with a language part of the family that is named; Phi-3's is that of `parts`."""
    from .families.made import make_language

    made = {"phi3": parts}

    def of(family: str) -> tuple[str, str]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = (str(make_language(folder / "language", family)), parts[1])
        return made[family]

    return of


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> tuple[Path, dict[str, Any]]:
    """The demo, walked once with fewer scenes: its folder and its summary. What many tests look at,
    whichever worker they run on.

    PHISENSE_ROAD names one walked before (`phisense demo --no-app --out DIR`), for one who runs a
    single test again and again.
    """
    if walked := os.environ.get("PHISENSE_ROAD"):
        return Path(walked), json.loads((Path(walked) / "summary.json").read_text())
    workers = "PYTEST_XDIST_WORKER" in os.environ
    root = (
        tmp_path_factory.getbasetemp().parent if workers else tmp_path_factory.getbasetemp()
    ) / "road"
    with FileLock(root.with_suffix(".lock")):
        if not (root / "summary.json").is_file():
            from phisense.training import plot, stages

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stages, "plot_losses", plot.plot_losses)
                verb("demo", "--out", root, "--no-app", "--scenes", 1300, "--seed", 5)
    return root, json.loads((root / "summary.json").read_text())


@pytest.fixture(scope="session")
def world(road: tuple[Path, dict[str, Any]]) -> Path:
    """A root with `data/` of the practice world, and its `features/`."""
    return road[0]


@pytest.fixture(scope="session")
def trained(world: Path) -> dict[str, Any]:
    """The run's facts, and its folder under `run`."""
    run = world / "runs" / "practice"
    return {"run": str(run), **json.loads((run / "train.json").read_text())}


@pytest.fixture(scope="session")
def merged(model: Path) -> dict[str, Any]:
    """The merge's report, and the model folder under `model`."""
    return {"model": str(model), **json.loads((model / "merge_report.json").read_text())}


@pytest.fixture(scope="session")
def model(world: Path) -> Path:
    return world / "models" / "practice"


@pytest.fixture(scope="session")
def exported(world: Path, model: Path, verb: Any) -> Path:
    """The practice model as llama.cpp's files in float16, measured on its held-out questions."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    folder = world / "exported"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "manifest.json").is_file():
            data, images = world / "data" / "heldout.jsonl", world / "data" / "images"
            verb(
                "export",
                model,
                "--quant",
                "f16",
                "--out",
                folder,
                "--data",
                data,
                "--images",
                images,
                "--limit",
                40,
            )
    return folder
