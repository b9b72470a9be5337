"""Every command of the pages is run, or marked for the reader as one that cannot be, and then at
least parsed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from phisense.errors import PhisenseError

from ..conftest import ROOT
from ..tiny import make_root
from .blocks import PAGES, SHELL, Command, check_inline, commands, inline, parse, parse_verb

#: Commands that stay, and the tests that start them, see them answer and stop them.
STARTED = {
    "app": ("tests/app/conftest.py", "url"),
    "chat": ("tests/chat/test_session.py", "test_the_terminal"),
    "demo": ("tests/practice/test_demo.py", "test_the_summary_has_every_figure"),
    "serve": ("tests/chat/test_remote_engine.py", "test_real_servers_answer_as_their_library_does"),
    "out/space/app.py": (
        "tests/publish/test_deploy.py",
        "test_the_folder_alone_opens_a_page_that_answers",
    ),
}
#: The demo as the `road` fixture walks it.
DEMO = {"with_app": False}
RUN = [page for page in PAGES if any(command.mark is None for command in commands(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page: Path) -> None:
    for command in commands(page):
        parse(command)
        if command.mark is None:
            assert command.words[0] in SHELL | {"phisense"}, (
                f"{command}: the tests cannot run it and no comment says why"
            )
        elif command.mark == "stays until Ctrl-C":
            assert started(command), f"{command}: no test starts it"
    for text in inline(page):
        check_inline(text)


def started(command: Command) -> bool:
    """Whether a test is known that starts the command."""
    program, *rest = command.words
    if program == "make":
        return rest == ["demo"]
    where, name = STARTED.get(next(word for word in rest if not word.startswith("-")), ("", ""))
    return bool(where) and f"def {name}(" in (ROOT / where).read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("phisense check data.json --imagess pictures", "No such option"),
        ("phisense train practice --resume --turbo  # needs a GPU", "No such option"),
        ("phisense train practice --set train.instruct.epoch=2  # needs a GPU", "unknown key"),
        ("phisense evaluate models/mine --data d --images i --limit few", "valid integer"),
        ("phisense lern practice", "no verb lern"),
        (
            (
                "torchrun --nproc-per-node 2 -m phisense train practice --sett a=1  # needs several"
                " GPUs"
            ),
            "No such option",
        ),
        ("accelerate launch --num_procs 2 -m phisense train practice  # needs several GPUs", "2"),
        ("pip install 'phisense[ap]'  # needs the network", "no extra ap"),
        ("make coffee  # takes minutes", "Makefile has no"),
        ("python bench/none.py  # takes minutes", "there is no bench/none.py"),
        ("frobnicate  # needs a GPU", "unknown program"),
    ],
)
def test_a_wrong_command_is_found_out(line: str, words: str) -> None:
    """The control: each of these in a page fails `test_every_command_is_one`."""
    [command] = commands(ROOT / "README.md", f"Text.\n\n    {line}\n")
    with pytest.raises((Exception, SystemExit), match=words):
        parse(command)


def test_marks_are_read_as_the_reader_reads_them() -> None:
    block = (
        "    # needs a GPU\n    phisense train a\n    phisense train b\n    # on any machine\n   "
        " phisense doctor  # fast\n\n    phisense app m  # stays until Ctrl-C\n"
    )
    assert [command.mark for command in commands(ROOT / "README.md", f"Text.\n\n{block}")] == [
        "needs a GPU",
        "needs a GPU",
        None,
        "stays until Ctrl-C",
    ]
    assert (
        commands(ROOT / "README.md", "```sh\npython - <<'E'\nprint(1)\nE\n```\n")[0].text
        == "python - <<'E'\nprint(1)\nE"
    )
    with pytest.raises(ValueError, match="no language"):
        commands(ROOT / "README.md", "```\nwhat is this\n```\n")
    with pytest.raises(ValueError, match="has no --bogus"):
        check_inline("phisense check DATA --bogus")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(
    page: Path,
    road: tuple[Path, dict[str, Any]],
    verb: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a folder of its own, in order. Verbs are called as the command line calls them; everything
    else is the shell's.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PATH",
        f"{_programs(tmp_path.parent / f'{tmp_path.name}-bin')}{os.pathsep}{os.environ['PATH']}",
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    if not page.name.startswith("tutorial"):
        _whats_yours(road[0], tmp_path)
    for command in commands(page):
        if command.mark is None:
            run(command, road[0], verb)
    if page.name in CLAIMS:
        CLAIMS[page.name]()


def run(command: Command, road: Path, verb: Any) -> None:
    program, *rest = command.words
    piped = re.search(r"[|>;&]|<<", command.text.split(" # ")[0])
    if program == "phisense" and rest[0] == "demo":
        params = parse_verb(rest)
        assert {key: params[key] for key in DEMO} == DEMO, f"{command}: the walked road is another"
        copy_of(road, Path(params["out"]))
    elif program == "phisense" and not piped:
        if rest[0] == "export":
            pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
        with pytest.raises(PhisenseError) if command.fails else nullcontext():
            verb(*rest)
    else:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.text],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


def copy_of(road: Path, folder: Path) -> None:
    """The folder that `phisense demo --no-app` writes: many tests look at it, so it is walked once,
    and each page has its own copy.
    """
    for name in ("data", "features", "runs", "models", "reports"):
        shutil.copytree(
            road / name,
            folder / name,
            copy_function=_linked if name in ("data", "features") else shutil.copy2,
        )
    shutil.copy2(road / "summary.json", folder)


def _linked(source: str, target: str) -> None:
    """Pictures and features are read only, so they need not be there twice."""
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


def _whats_yours(road: Path, folder: Path) -> None:
    """What pages call by names of the reader's own: a merged model, its data, and a recipe, here of
    parts with random weights.
    """
    shutil.copytree(road / "models" / "practice", folder / "models" / "mine")
    shutil.copytree(road / "data" / "images", folder / "data" / "train2017", copy_function=_linked)
    shutil.copy2(road / "data" / "heldout.jsonl", folder / "data")
    recipe = make_root(folder)
    (folder / "my-recipe.yaml").write_text(yaml.safe_dump(recipe))


def _programs(folder: Path) -> Path:
    """`phisense` and `python` as an installation has them on its PATH."""
    folder.mkdir()
    for name, words in {"phisense": "-m phisense ", "python": ""}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (folder / name).chmod(0o755)
    return folder


def _accuracy(scores: dict[str, Any], condition: str) -> float:
    return float(scores[condition]["figures"]["accuracy"]["value"])


def _verdict(report: str) -> str:
    return str(json.loads((Path(report) / "scores.json").read_text())["looks"]["verdict"])


def _tutorial() -> None:
    assert _verdict("demo/reports/heldout") == "looks"
    # ten steps are at the border, and the page says so
    assert _verdict("demo/reports/short") in ("blind", "looks")
    short, long = (
        json.loads(Path(f"demo/reports/{name}/scores.json").read_text())
        for name in ("short", "heldout")
    )
    assert _accuracy(short, "real") < _accuracy(long, "real") - 0.3
    assert (Path("out") / "space" / "app.py").is_file()


def _own_pictures() -> None:
    scores = json.loads(Path("reports/mine-heldout/scores.json").read_text())
    assert scores["looks"]["verdict"] == "looks"
    assert _accuracy(scores, "real") >= _accuracy(scores, "blind") + 0.15


#: What a page says that the reader will see at its end.
CLAIMS: dict[str, Callable[[], None]] = {
    "tutorial.md": _tutorial,
    "tutorial-own-pictures.md": _own_pictures,
}
