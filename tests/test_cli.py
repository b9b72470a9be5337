"""The command line from outside: instant help, exit codes, and one sentence for everything that
goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .killable import run_cli

HEAVY = ("torch", "transformers", "gradio", "numpy", "PIL")


WIDE = {"COLUMNS": "300", "NO_COLOR": "1"}


def forked(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As `phisense`, where the time that imports take is not the question."""
    return run_cli(*map(str, words), cwd=cwd, env=WIDE)


def phisense(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **WIDE}
    return subprocess.run(
        [sys.executable, "-m", "phisense", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "module",
    ["phisense.cli", "phisense.recipe", "phisense.conversations", "phisense.errors", "phisense"],
)
def test_what_must_be_light_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_help_names_every_verb_and_every_verb_has_help() -> None:
    from phisense.cli import app

    text = phisense("--help").stdout
    names = [
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    ]
    assert {
        "check",
        "convert",
        "show",
        "features",
        "train",
        "merge",
        "evaluate",
        "chat",
        "app",
        "ask",
        "doctor",
        "demo",
    } <= set(names)
    for name in names:
        assert name in text
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__doc__


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["train", "nope"], 2, "there is no recipe nope; wanted a YAML file or one of"),
        (["train", "practice", "--set", "trian.x=1"], 2, "unknown key trian"),
        (
            ["train", "practice", "--set", "root=/nowhere"],
            1,
            "there is no data file /nowhere/data/align.json",
        ),
        (["features", "practice", "--set", "root=/nowhere"], 1, "there is no data file"),
        (["features", "phi3.5-clip-l336", "--set", "root=/nowhere"], 1, "there is no data file"),
        (["merge", "nope"], 1, "nope is not a finished run; got no such folder"),
        (["ask", "nope"], 2, "ask needs one question; got none"),
        (["ask", "nope", "-q", " "], 1, "the question is empty"),
        (["ask", "nope", "-q", "Hi", "--image", "nope.png"], 1, "there is no picture nope.png"),
        (["ask", "nope", "-q", "Hi"], 1, "nope is not a model folder"),
        (["chat", "nope"], 1, "nope is not a model folder"),
        (["app", "nope", "--examples", "x.jsonl"], 2, "examples need both"),
        (["check", "nope.json"], 1, "there is no data file nope.json"),
        (["check", "nope.json", "--images", "nowhere"], 2, "there is no folder nowhere"),
        (
            ["evaluate", "nope", "--data", "x", "--images", "y", "--condition", "z"],
            2,
            "unknown --condition; got z",
        ),
        (["serve", "nope"], 1, "nope is not a model folder"),
        (["serve", "nope", "--engine", "ollama"], 2, "there is no such engine; got ollama"),
        (
            ["deploy", "nope", "--space", "you/it", "--dry-run", "out"],
            1,
            "nope is not a finished model folder",
        ),
        (
            ["deploy", "nope", "--space", "it", "--dry-run", "out"],
            2,
            "no name of a Space on the hub",
        ),
        (["deploy", "nope"], 2, "Missing option '--space'"),
        (["doctor", "practice", "--sett"], 2, "No such option"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_each_mistake_is_one_sentence_with_its_exit_code(
    words: list[str], code: int, sentence: str, tmp_path: Path
) -> None:
    ran = forked(*words, cwd=tmp_path)
    assert sentence in ran.stderr.replace("\n", " ")
    assert ran.returncode == code
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir()), "nothing half-written"


@pytest.mark.slow
def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in phisense("--debug", "train", "nope").stderr


def test_check_reports_and_fails(world: Path, tmp_path: Path) -> None:
    good = forked(
        "check", world / "data" / "instruct.json", "--images", world / "data" / "images", "--json"
    )
    assert good.returncode == 0
    counts = json.loads(good.stdout)
    assert counts["good"] == counts["rows"] > 1500
    (tmp_path / "bad.json").write_text(
        json.dumps([{"id": "x", "conversations": [{"from": "gpt", "value": "Hi."}]}])
    )
    bad = forked("check", tmp_path / "bad.json", cwd=tmp_path)
    assert bad.returncode == 1
    assert "row 1 (id x) has turn 1 from 'gpt', wanted a question" in bad.stdout
    assert "Reorder or join the turns" in bad.stdout, "what to do next"
    assert "has 1 rows of 1 that cannot be used" in bad.stderr
    [told] = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert (told["row"], told["id"], told["code"]) == (1, "x", "wrong-order")
    assert forked("check", tmp_path / "bad.json", "--max-rejects", 1, cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_check_measures_against_a_recipe(tmp_path: Path) -> None:
    long = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "circle " * 600}]
    (tmp_path / "long.json").write_text(json.dumps([{"id": "x", "conversations": long}]))
    assert forked("check", tmp_path / "long.json", cwd=tmp_path).returncode == 0, (
        "without a recipe nobody knows how long is too long"
    )
    ran = forked("check", tmp_path / "long.json", "--recipe", "practice", cwd=tmp_path)
    assert ran.returncode == 1
    assert "is too long; got" in ran.stdout
    assert "wanted at most 512" in ran.stdout


def test_convert_writes_what_check_finds_clean(world: Path, tmp_path: Path) -> None:
    images = world / "data" / "images"
    rows = json.loads((world / "data" / "instruct.json").read_text())[:20]
    rows[3]["image"] = "gone.jpg"
    (tmp_path / "in.json").write_text(json.dumps(rows))
    ran = forked(
        "convert", tmp_path / "in.json", "--out", tmp_path / "out", "--images", images, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["written"] == 19
    assert (
        json.loads(forked("check", tmp_path / "out", "--json", cwd=tmp_path).stdout)["good"] == 19
    )
    refused = forked(
        "convert",
        tmp_path / "in.json",
        "--out",
        tmp_path / "no",
        "--images",
        images,
        "--max-rejects",
        0,
    )
    assert refused.returncode == 1
    assert "so nothing was written; wanted at most 0" in refused.stderr
    assert not (tmp_path / "no").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert forked("convert", tmp_path / "in.json", "--out", tmp_path / "mine").returncode == 2, (
        "nothing of the user's is replaced"
    )


def test_check_finds_pictures_that_are_held_out(world: Path, tmp_path: Path) -> None:
    data, images = world / "data", world / "data" / "images"
    words = (
        "check",
        data / "align.json",
        "--images",
        images,
        "--held-out",
        data / "heldout.jsonl",
        "--json",
    )
    assert forked(*words, cwd=tmp_path).returncode == 0, "the practice set keeps them apart"
    rows = json.loads((data / "align.json").read_text())[:5]
    rows[2]["image"] = "heldout-00003.jpg"
    (tmp_path / "leaks.json").write_text(json.dumps(rows))
    ran = forked("check", tmp_path / "leaks.json", *words[2:], cwd=tmp_path)
    assert ran.returncode == 1
    assert [(d["row"], d["code"]) for d in json.loads(ran.stdout)["defects"]] == [(3, "leak")]


def test_show_marks_what_is_supervised(world: Path) -> None:
    ran = forked("show", world / "data" / "instruct.json", "-n", 2, "--json")
    rows = json.loads(ran.stdout)
    assert len(rows) == 2
    for row in rows:
        assert row["supervised"] == sum(label != -100 for label in row["labels"]) > 0
    plain = forked("show", world / "data" / "instruct.json", "-n", 1).stdout
    assert "<image>x64" in plain
    assert "<|assistant|>" in plain


def test_ask_and_doctor_speak_json(model: Path, world: Path) -> None:
    ran = forked(
        "ask",
        model,
        "--image",
        world / "data" / "images" / "heldout-00001.jpg",
        "-q",
        "How many things are there?",
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["answer"].rstrip(".").isdigit()
    said = json.loads(forked("doctor", "practice", "--json", cwd=world).stdout)
    named = {finding["what"]: finding for finding in said["findings"]}
    assert {"torch", "device", "attention", "language part"} <= named.keys()
    assert [step["step"] for step in said["plans"][0]["steps"]] == [
        "align",
        "instruct",
        "merge",
        "evaluate",
        "chat",
    ]
    assert named["language part"]["state"] == "ok"


def test_ask_shows_several_pictures_in_their_order(model: Path, world: Path) -> None:
    """Of each the JSON has the name; exchanged, they get another answer in some order."""
    names = [world / "data" / "images" / f"heldout-0000{i}.jpg" for i in (1, 2)]
    answers = set()
    for one, other in (names, names[::-1]):
        ran = forked(
            "ask", model, "--image", one, "--image", other, "-q", "Describe the picture.", "--json"
        )
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert told["images"] == [str(one), str(other)]
        assert told["image"] == str(one)
        answers.add(told["answer"])
    assert len(answers) == 2


def test_ask_says_what_it_heard_and_in_which_language(model: Path) -> None:
    from phisense.practice.spoken import spoken_questions

    sound = spoken_questions()[0].path
    ran = forked("ask", model, "--sound", sound, "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["language"] == "en"
    assert said["heard"] == said["question"]
    ran = forked("ask", model, "--sound", sound, "--language", "de")
    assert ran.returncode == 1
    assert "hears English only; got translate from German" in ran.stderr


@pytest.mark.slow
def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    ran = forked("doctor", "phi3.5-clip-l336", cwd=tmp_path)
    assert ran.returncode == 1
    assert "the part microsoft/Phi-3.5-mini-instruct was not found" in ran.stdout.replace("\n", " ")
    assert "something is missing; got language part, vision part" in ran.stderr


def test_ctrl_c_exits_130(world: Path, trained: dict[str, object]) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "phisense",
            "train",
            "practice",
            "--set",
            f"root={world}",
            "--set",
            "name=interrupted",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes them, and so this process, ignore
        # Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    (world / "features" / "interrupted").symlink_to(world / "features" / "practice")
    begun, deadline = world / "runs" / "interrupted" / "metrics.jsonl", time.monotonic() + 120
    # on a busy machine the imports alone take long
    while not begun.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    (world / "features" / "interrupted").unlink()
    assert process.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.parametrize("pressed", [True, False])
def test_ctrl_c_that_a_library_turned_into_an_error_still_exits_130(
    pressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As happens while transformers' lazy modules are imported. The control: the same error without
    Ctrl-C is an error.
    """
    from phisense import cli, console

    def lazy_import() -> None:
        try:
            if pressed:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module") from error
        raise ModuleNotFoundError("There is no such module")

    monkeypatch.setattr(cli, "app", lazy_import)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit if pressed else ModuleNotFoundError) as raised:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
        console.interrupted.clear()
    assert not pressed or getattr(raised.value, "code", None) == 130


@pytest.mark.parametrize("pressed", [True, False])
def test_ctrl_c_that_a_library_swallowed_counts_at_the_next_progress(
    pressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phisense import cli, console

    def swallow() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            if pressed:
                signal.raise_signal(signal.SIGINT)
        with console.progress_bars() as bar:
            bar("going on", 1, 2)
        sys.exit(0)

    monkeypatch.setattr(cli, "app", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # which typer makes an exit with 130
        with pytest.raises(KeyboardInterrupt if pressed else SystemExit):
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
        console.interrupted.clear()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from phisense import artifacts
    from phisense.errors import ArtifactError

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("phisense.artifacts.os.fsync", full)
    with pytest.raises(
        ArtifactError,
        match=r"cannot write .*a\.json; got No space left on device\. Free some space",
    ):
        artifacts.write_json(tmp_path / "a.json", {})
    with (
        pytest.raises(ArtifactError, match="No space left"),
        artifacts.staged_artifact(tmp_path / "b", kind="x") as aside,
    ):
        artifacts.write_bytes(aside / "c", b"c")
    assert not list(tmp_path.iterdir())
