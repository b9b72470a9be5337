"""Foreign text in every field, through every writer: no traceback, and what is written is UTF-8
that a terminal does not obey.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image

from phisense import artifacts, console, errors, safe_parsing
from phisense.console import json_bytes
from phisense.conversations import check, defects, read_conversations, read_questions
from phisense.conversations.convert import _write_rejects
from phisense.conversations.defects import Defect
from phisense.conversations.sources import open_data_source
from phisense.errors import PhisenseError
from phisense.evaluation import benchmark_io
from phisense.evaluation.predictions_io import read_answers
from phisense.evaluation.tasks import TASKS
from phisense.safe_parsing import escape, quote

#: As Python holds them; those that UTF-8 cannot write stand in JSON as escapes.
NASTY = {
    "half of a pair": "x\ud83d",
    "other half": "\udc00x",
    "byte": "f\udcfcr",
    "NUL": "a\x00b",
    "escape": "\x1b[2J\x1b]0;title\x07",
    "long": "y" * 5000,
    "long word of halves": "\ud800" * 5000,
    "bidi": "\u202etxt.exe\u2066",
    "line break": "a\nrow 9 is fine",
    "carriage": "a\rb",
    "mark": "\ufeffa",
    "C1": "\x9b31m",
    "tags": "\U000e0041",
    "paragraph": "a\u2029b",
    "markup": "[red]a[/red]",
    "quotes": "'\"\\",
    "percent": "%s{0}%(x)s",
    "empty": "",
}
GOOD: dict[str, Any] = {
    "id": "a",
    "image": "a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}],
}


def turns(question: Any, answer: Any = "a") -> list[Any]:
    return [
        question if not isinstance(question, str) else {"from": "human", "value": question},
        {"from": "gpt", "value": answer},
    ]


def messages(part: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}],
    }


#: The good row with a text in one place.
FIELDS: dict[str, Callable[[str], Any]] = {
    "id": lambda text: {**GOOD, "id": text},
    "image": lambda text: {**GOOD, "image": text},
    "system": lambda text: {**GOOD, "system": text},
    "role": lambda text: {**GOOD, "conversations": turns({"from": text, "value": "<image>q"})},
    "question": lambda text: {**GOOD, "conversations": turns(f"<image>{text}")},
    "answer": lambda text: {**GOOD, "conversations": turns("<image>q", text)},
    "control token": lambda text: {**GOOD, "conversations": turns("<image>q", f"<|{text}|>")},
    "key": lambda text: {**GOOD, text: text},
    "only key": lambda text: {text: text},
    "turn": lambda text: {**GOOD, "conversations": [text, *turns("<image>q")]},
    "key of a turn": lambda text: {**GOOD, "conversations": turns({text: text})},
    "picture": lambda text: {**GOOD, "image": {text: text}},
    "picture path": lambda text: {**GOOD, "image": {"path": text}},
    "url": lambda text: {**GOOD, "image": f"https://{text}"},
    "data url": lambda text: {**GOOD, "image": f"data:image/png;base64,{text}"},
    "kind of a part": lambda text: messages({"type": text, text: text}),
    "part": messages,
    "pair": lambda text: {"id": text, "image": f"{text}.jpg", "question": text, "answer": text},
    "texts": lambda text: {
        "images": ["a.jpg"],
        "texts": [{"user": text, "assistant": {text: text}}],
    },
}


def is_plain(text: str) -> bool:
    """Whether a terminal shows it and every writer takes it."""
    return console.escape_controls(text, lines=False) == text and safe_parsing.is_encodable(text)


def readers(path: Path) -> list[Any]:
    usual = benchmark_io.HubDefaults("test")
    return [
        lambda: read_conversations(path),
        lambda: read_questions(path),
        lambda: read_answers(path, TASKS["own"], []),
        lambda: list(benchmark_io.rows_of(benchmark_io.read_source(str(path), usual), str(path))),
        lambda: TASKS["pope"].load([str(path)], None),
        lambda: TASKS["gqa"].load([str(path)], None),
    ]


def can_be_said(error: Exception) -> bool:
    """Whether every writer takes it; the marks that a terminal obeys besides are written out where
    it is printed.
    """
    return safe_parsing.is_encodable(str(error)) and not {
        "\x1b",
        "\x00",
        "\x9b",
        "\r",
        "\x07",
    } & set(str(error))


def hold(path: Path, verb: Any, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Everything that is written about the data set at `path` can be written; with `verb` by the
    command line, too.
    """
    images = path.parent / "img"
    found = check(path, [images], check_image=lambda source, name: [])
    assert all(is_plain(finding.what) for finding in found.findings)
    assert all(is_plain(str(finding)) for finding in found.findings)
    assert all(len(str(finding)) < 1500 for finding in found.findings)
    listed = path.parent / "rejects.jsonl"
    _write_rejects(listed, found)
    assert [
        json.loads(line)["code"] for line in listed.read_text(encoding="utf-8").split("\n")[:-1]
    ] == [one.code for one in found.rejects]
    for words in (
        ()
        if verb is None
        else (
            ("check", path, "--images", images, "--json", "--rejects", listed),
            ("check", path, "--images", images),
        )
    ):
        listed.unlink(missing_ok=True)
        capfdbinary.readouterr()
        try:
            verb(*words)
        except PhisenseError as error:
            assert can_be_said(error)
        told = capfdbinary.readouterr().out.decode("utf-8")
        assert is_plain(told.replace("\n", ""))
        if "--json" in words and told:
            assert json.loads(told)["rows"] == found.rows
    if found.good and verb is not None:
        verb("convert", path, "--images", images, "--out", path.parent / "out", "--overwrite")
        for line in (
            (path.parent / "out" / "metadata.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        ):
            json.loads(line)
    for read in readers(path):
        try:
            read()
        except PhisenseError as error:
            assert can_be_said(error)
            assert len(str(error)) < 2500


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "img").mkdir()
    Image.new("RGB", (24, 16), "red").save(tmp_path / "img" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_every_text_in_every_field(
    place: Path, field: str, verb: Any, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    rows = [FIELDS[field](text) for text in NASTY.values()]
    (place / "data.json").write_text(json.dumps(rows))
    hold(place / "data.json", verb, capfdbinary)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_bytes_that_are_no_text_in_every_format(
    place: Path, ending: str, verb: Any, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    mark = "\t" if ending == "tsv" else ","
    for broken in (
        b"f\xfcr",
        b"\xff" * 8,
        b"\x81\x8d",
        b"\xed\xa0\x80",
        b"caf\xc3",
        b"\xc3\x28",
        b"\x00",
        b"\x1b[2J\xfc",
    ):
        for field in ("id", "image", "conversations", "answer", "heading", "key"):
            row = {**GOOD, "@" if field in ("heading", "key") else field: "@"}
            if ending in ("csv", "tsv"):
                heading = ["@" if field == "heading" else "id", "image", "question", "answer"]
                cells = [
                    "@" if field == name else "a.jpg"
                    for name in ("id", "image", "question", "answer")
                ]
                text = f"{mark.join(heading)}\n{mark.join(cells)}\nb{mark}a.jpg{mark}q?{mark}yes\n"
            else:
                told = json.dumps([row, GOOD])
                text = told if ending == "json" else "\n".join(map(json.dumps, [row, GOOD]))
            (place / f"data.{ending}").write_bytes(text.encode().replace(b"@", broken))
            try:
                hold(place / f"data.{ending}", verb if broken == b"f\xfcr" else None, capfdbinary)
            except PhisenseError as error:
                assert can_be_said(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "f\udcfcr.json",
        "a\nb.json",
        "\x1b[2J.json",
        "\u202egpj.json",
        "y" * 200 + ".json",
        "'\".json",
    ],
)
def test_a_data_file_of_any_name(
    place: Path, name: str, verb: Any, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    try:
        (place / name).write_text(json.dumps([GOOD, FIELDS["role"]("robot")]))
    except OSError:
        pytest.skip("this file system has no such names")
    hold(place / name, verb, capfdbinary)
    with pytest.raises(PhisenseError) as caught:
        open_data_source(place / f"{name}.not")
    assert safe_parsing.is_encodable(str(caught.value))


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_quoted_is_plain_short_and_what_python_writes(text: str) -> None:
    assert is_plain(quote(text))
    assert len(quote(text)) <= 60 * 10 + 5
    if len(text) <= 60:
        assert quote(text) == repr(text)
        assert escape(text) == repr(text)[1:-1]
    assert quote("y" * 61) == repr("y" * 60 + "...")


def test_quoted_never_raises_and_is_no_slower_for_what_is_large() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (
        10**6000,
        deep,
        {"a": "\ud800" * 10**6},
        [list(range(10**6))],
        b"\xff" * 10**7,
        None,
        True,
        1e308,
        {1: 2, "a": 3},
        Path("a"),
        ("x",) * 99,
    ):
        assert is_plain(quote(value))
        assert len(quote(value)) < 200
    assert (quote(7), quote(None), quote(Path("a")), quote([1, "a"])) == (
        "'7'",
        "'None'",
        "'a'",
        "\"[1, 'a']\"",
    )


def test_json_of_any_text_is_written_and_read_again(tmp_path: Path) -> None:
    for text in NASTY.values():
        artifacts.write_json(tmp_path / "a.json", {"a": [text], text: 1})
        again = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
        assert (
            again["a"] == [text]
            if safe_parsing.is_encodable(text)
            else safe_parsing.is_encodable(again["a"][0])
        )
        assert orjson.loads(json_bytes({text: {text: (text,)}}))


def test_an_error_says_any_text_plainly() -> None:
    for text in NASTY.values():
        error = PhisenseError(text, got=text, wanted=text, do=text)
        assert can_be_said(error)
    assert str(PhisenseError("a\n\tb is é猫")) == "a\n\tb is é猫."


def test_the_control_a_finding_as_it_was_made_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defects.Defect, "__post_init__", lambda self: None)
    finding = Defect(1, "a", "unknown-role", "has turn 1 from 'x\ud83d'")
    with pytest.raises(UnicodeEncodeError):
        str(finding).encode()
    monkeypatch.undo()
    assert (
        str(Defect(1, "x\ud83d", "unknown-role", "has turn 1 from x\ud83d")).encode()
        == rb"row 1 (id x\ud83d) has turn 1 from x\ud83d"
    )


def test_the_control_an_error_without_the_guard_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errors, "_UNFIT", __import__("re").compile("(?!)"))
    with pytest.raises(UnicodeEncodeError):
        io.TextIOWrapper(io.BytesIO(), "utf-8").write(
            str(PhisenseError("there is no file f\udcfcr"))
        )
