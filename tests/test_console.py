"""What data says is printed and never obeyed: no byte of it that a terminal acts on arrives at
one.
"""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phisense import console
from phisense.chat import terminal
from phisense.cli import main
from phisense.console import SafeConsole, escape_controls, json_bytes
from phisense.errors import DataError

#: What would be obeyed, each with a word behind it by which it is found again.
PAYLOADS = {
    "clears the screen": "\x1b[2J",
    "sets the title": "\x1b]0;",
    "writes the clipboard": "\x1b]52;c;",
    "a link": "\x1b]8;;http://x/\a",
    "colours": "\x1b[31;5m",
    "8-bit control sequence": "\x9b31m",
    "8-bit operating system command": "\x9d0;",
    "a device's name": "\x1bZ",
    "the bell": "\a",
    "steps back": "\b\b\b",
    "the line's beginning": "\r",
    "other breaks": "\v\f\x85\u2028",
    "right to left": "\u202e",
    "isolates": "\u2066\u2069",
    "marks": "\u200f\u061c",
    "not seen": "\ufeff\U000e0041",
    "rubs out": "\x7f",
}
EVIL = (
    "".join(f"{payload}W{number}" for number, payload in enumerate(PAYLOADS.values()))
    + "[red]MARKED[/red] [/no] :warning:"
)
#: What rich itself writes: colours, and the cursor that progress bars move.
OWN = re.compile(r"\x1b\[[0-9;]*[mAK]|\x1b\[\?25[lh]|\r(?=\x1b\[)|\r?\n")
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"
    "\ufeff\U000e0000-\U000e007f]"
)


@pytest.mark.parametrize("name", PAYLOADS)
def test_each_is_made_visible(name: str) -> None:
    payload = PAYLOADS[name]
    assert not OBEYED.search(escape_controls(payload))
    assert ascii(payload)[1:-1] == escape_controls(payload)
    for forced in (False, True):
        file = io.StringIO()
        made = SafeConsole(
            file=file, force_terminal=forced, width=400, highlight=False, markup=False, emoji=False
        )
        made.print(f"a{payload}b", style="red")
        made.out(f"a{payload}b")
        made.rule(f"a{payload}b")
        made.print([f"a{payload}b"])
        assert not OBEYED.search(OWN.sub("", file.getvalue()))
        assert file.getvalue().count(f"a{ascii(payload)[1:-1]}b") >= 3


def test_every_character_is_written_or_shown() -> None:
    """All of Unicode: letters, emoji and joiners as they are, line breaks and tabs as they are,
    nothing a terminal obeys.
    """
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = escape_controls(text)
    assert not OBEYED.search(shown)
    shown.encode()
    assert all(
        escape_controls(kept) == kept
        for kept in (
            "größer",
            "日本語",
            "مرحبا",
            "שלום",
            "👩‍👩‍👧",
            "नमस्ते",
            "a\tb\nc",
            "é",
            "[red]",
        )
    )
    assert escape_controls("a\tb\nc", lines=False) == r"a\tb\nc"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set whose every text holds the payloads; its rows are good, bad, and name pictures
    that are not there.
    """
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": f"What {EVIL}?"}, {"from": "gpt", "value": f"That {EVIL}."}]
    made = [
        {"id": EVIL, "conversations": turns},
        {
            "id": EVIL,
            "image": f"{EVIL}.png",
            "conversations": [{"from": "human", "value": f"<image>{EVIL}"}, turns[1]],
        },
        {"id": "a\nrow 3 is good", "conversations": [{"from": EVIL, "value": "x"}]},
        {"id": "b", "conversations": EVIL},
        {"id": "c", "conversations": [{"role": EVIL, "content": [{"type": EVIL}]}]},
        {EVIL: EVIL},
        {"id": "d", "image": f"http://{EVIL}", "conversations": turns},
        {"id": "\ud800", "conversations": turns},
        {"id": "e", "image": f"../{EVIL}", "conversations": turns},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, made)))
    (tmp_path / "good.jsonl").write_text(json.dumps(made[0]))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture(params=(False, True), ids=("piped", "terminal"))
def printed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> Any:
    """Runs a verb, and gives what came out: on the standard output, and on both."""
    if request.param:
        how: dict[str, Any] = {
            "force_terminal": True,
            "highlight": False,
            "markup": False,
            "emoji": False,
            "width": 300,
        }
        monkeypatch.setattr(console, "out", SafeConsole(**how))
        monkeypatch.setattr(console, "err", SafeConsole(stderr=True, **how))

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["phisense", *words])
        with pytest.raises(SystemExit):
            main()
        out, err = capfdbinary.readouterr()
        return out.decode(errors="surrogateescape"), (out + err).decode(errors="surrogateescape")

    return run


COMMANDS = (
    ("check", "rows.jsonl", "--images", "empty"),
    ("check", "rows.jsonl", "--images", "empty", "--json"),
    ("check", EVIL),
    ("check", "rows.jsonl", "--images", f"nowhere/{EVIL}"),
    ("convert", "rows.jsonl", "--out", f"{EVIL}", "--max-rejects", "0"),
    ("convert", "rows.jsonl", "--out", "made"),
    ("show", "good.jsonl"),
    ("show", "good.jsonl", "--json"),
    ("show", "rows.jsonl", "-n", "9"),
    ("train", f"{EVIL}.yaml"),
    ("train", "practice", "--set", f"{EVIL}=1"),
    ("train", "practice", "--set", f"name.{EVIL}=1"),
    ("merge", EVIL),
    ("runs", EVIL),
    ("score", "pope", EVIL, EVIL),
    ("report", EVIL),
    ("tune", "practice", "--vary", EVIL),
    ("ask", EVIL, "-q", "a"),
    (EVIL,),
    ("check", "rows.jsonl", f"--{EVIL}"),
)


@pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: " ".join(one if len(one) < 30 else "EVIL" for one in words)
)
def test_no_verb_passes_it_on(rows: Path, printed: Any, words: tuple[str, ...]) -> None:
    out, both = printed(*words)
    assert not OBEYED.search(OWN.sub("", both))
    assert both.strip(), "something is said"
    if "--json" in words:
        said = json.loads(out)
        if words[0] == "check":
            assert any(defect["id"] == EVIL for defect in said["defects"]), (
                "a program reads what there is"
            )
    elif words[0] in ("check", "show") and len(words) > 2:
        assert "W0" in both
    assert "\n" + "row 3 is good" not in both


def test_the_control_without_it_the_terminal_obeys(
    rows: Path, printed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `check` and errors say is quoted before it comes here;
    tests/conversations/test_foreign_text.py has the controls of that.
    """
    monkeypatch.setattr(console, "_CONTROL", re.compile("(?!)"))
    for words in (COMMANDS[6], ("show", "good.jsonl", "--json")):
        _, both = printed(*words)
        assert OBEYED.search(OWN.sub("", both)), words


def test_what_python_itself_writes(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """A log line of a library, and an error that nobody expected."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert logging.lastResort is not None
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))  # type: ignore[attr-defined]
    named = logging.getLogger("somebody's")
    named.propagate = False  # pytest's own handlers are the root's
    named.warning("before: %s", EVIL)
    assert OBEYED.search(OWN.sub("", capfd.readouterr().err)), "the control"
    console.guard_streams()
    named.warning("a server said %s", EVIL)
    try:
        raise ZeroDivisionError(EVIL)
    except ZeroDivisionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capfd.readouterr().err
    assert said.count("W0") == 2
    assert not OBEYED.search(OWN.sub("", said))


def test_what_the_library_logs(capfd: Any) -> None:
    """Each in one line, however long; information and warnings without a word more."""
    log = logging.getLogger("phisense.somewhere")
    console.show_log()
    console.show_log()
    log.debug("nobody asked")
    log.info("model: %s", "torch on cpu")
    log.warning("a path with %s and %s", EVIL, "words " * 40)
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 2, "twice installed, each is shown once"
    assert lines[0] == "model: torch on cpu"
    assert lines[1].startswith("a path with")
    assert not OBEYED.search(OWN.sub("", said.err))
    try:
        raise ZeroDivisionError(EVIL)
    except ZeroDivisionError as error:
        log.error("a request broke", exc_info=error)
    said = capfd.readouterr()
    assert said.err.startswith("a request broke\nTraceback (most recent call last):\n")
    assert "ZeroDivisionError" in said.err
    assert not OBEYED.search(OWN.sub("", said.err))


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("pass", ["rows.jsonl: "]),
        ("logging.getLogger('phisense').setLevel(logging.ERROR)", []),
        (
            "logging.basicConfig(format='%(levelname)s %(name)s %(message)s')",
            ["WARNING phisense.conversations.read rows.jsonl: "],
        ),
    ],
)
def test_a_program_that_uses_the_library_decides_what_is_shown(
    tmp_path: Path, setting: str, shown: list[str]
) -> None:
    row = {"image": "a.jpg", "question": "What?", "answer": "That.", "colour_of_the_frame": "red"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    program = (
        "import logging\nfrom pathlib import Path\n"
        "from phisense.conversations.read import read_conversations\n"
        f"{setting}\nprint(len(read_conversations(Path('rows.jsonl'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    lines = done.stderr.splitlines()
    assert len(lines) == len(shown), done.stderr
    for line, words in zip(lines, shown, strict=True):
        assert line.startswith(words)
        assert "colour_of_the_frame" in line


def test_markup_is_shown_as_it_is_written(rows: Path, printed: Any) -> None:
    _, both = printed("check", "rows.jsonl", "--images", "empty")
    assert "[red]MARKED[/red] [/no] :warning:" in re.sub(r"\x1b\[[0-9;]*m|\n", "", both)


class Evil:
    """A session whose engine is as bad as its data."""

    notice = EVIL

    engine = SimpleNamespace(name=EVIL, picture_tokens=1, window=10)

    def ask(self, question: str, stop: Any) -> Iterator[str]:
        if "fail" in question:
            raise DataError(f"failed: {EVIL}\nforged")
        yield from EVIL  # letter by letter, as a model may write them


def test_a_chat_in_the_terminal() -> None:
    file = io.StringIO()
    lines = iter(["Hello?", "fail", "/quit"])
    how: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    terminal.run_terminal_chat(
        Evil(),  # type: ignore[arg-type]
        SafeConsole(file=file, force_terminal=True, width=500, **how),
        lambda prompt: next(lines),
    )
    assert not OBEYED.search(OWN.sub("", file.getvalue()))
    assert file.getvalue().count("W0") >= 4
    assert "\nforged" not in file.getvalue()


def test_halves_of_characters_do_not_change_the_writer() -> None:
    """What orjson does with numbers that are none, with arrays and with keys is the same beside
    them.
    """
    rest = {"b": float("nan"), "c": [np.arange(2), (1, None)], 3: True}
    whole = json_bytes({"a": "x", **rest})
    assert json_bytes({"a": "\ud800", **rest}) == whole.replace(b'"x"', rb'"\\ud800"')
    assert json_bytes({"\udfff": 1}, indent=True) == b'{\n  "\\\\udfff": 1\n}\n'
    with pytest.raises(TypeError):
        json_bytes({"a": "\ud800", "b": object()})
