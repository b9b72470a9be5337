"""Files from public bug reports, rebuilt small: paths of elsewhere, nothing, archives, dialects of
CSV, bytes that are no text.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import CheckReport, check, read_conversations
from phisense.conversations.convert import convert
from phisense.conversations.image_finder import ImageFinder
from phisense.errors import ConversationError, PhisenseError
from phisense.vision.image_checks import check_image


@pytest.fixture(scope="module")
def reported(fixtures: Path) -> Path:
    if not (fixtures / "reported").is_dir():
        pytest.skip(f"no reported situations in {fixtures}")
    return fixtures / "reported"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look_through(path: Path) -> CheckReport:
    return check(path, [path.parent.parent / "img"], check_image=partial(check_image, decode=True))


def test_paths_of_elsewhere_are_found_by_their_tail(reported: Path, tmp_path: Path) -> None:
    data, images = reported / "12-paths-of-elsewhere" / "data.json", reported / "img"
    found = look_through(data)
    assert (found.rows, found.good, [one.code for one in found.findings]) == (
        8,
        8,
        ["found-by-tail"],
    )
    at = [
        ImageFinder([images]).path(name).name
        for row in read_conversations(data)
        for name in row.images
    ]
    assert at == [
        "a.jpg",
        "b.jpg",
        "a.jpg",
        "a.jpg",
        "a.jpg",
        "my cat (1).jpg",
        "my cat (1).jpg",
        "café ñ 猫.jpg",
    ]
    convert(data, tmp_path / "out", found, [images])
    assert check(tmp_path / "out", check_image=partial(check_image, decode=True)).good == 8


@pytest.mark.parametrize("name", ["nothing.json", "nothing.jsonl"])
@pytest.mark.parametrize(
    "words", [("check",), ("check", "--json"), ("convert", "--out", "out")], ids=" ".join
)
def test_nothing_is_an_error(
    reported: Path, here: Path, verb: Any, name: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(PhisenseError, match=f"{name} holds no row") as caught:
        verb(words[0], reported / "13-empties" / name, *words[1:])
    assert caught.value.exit_code == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "set.json.gz",
            r"got a gzip archive; wanted .*\. Unpack it \(gunzip\), and name what is inside",
        ),
        ("set.zip", r"got a zip archive; wanted .*\. Unpack it \(unzip\)"),
        ("shard-000000.tar", r"got a tar archive; wanted .*\. Unpack it \(tar -xf\)"),
    ],
)
def test_archives_are_named_with_the_way_out(reported: Path, name: str, words: str) -> None:
    with pytest.raises(ConversationError, match=words):
        look_through(reported / "19-archives-as-data" / name)


@pytest.mark.parametrize(
    ("name", "rows", "notes"),
    [("one-row.json", 1, []), ("wrapped.json", 2, ["wrapped"]), ("set.json", 2, [])],
)
def test_one_row_and_rows_in_an_object_are_read(
    reported: Path, name: str, rows: int, notes: list[str]
) -> None:
    found = look_through(reported / "19-archives-as-data" / name)
    assert (found.rows, found.good, [one.code for one in found.findings]) == (rows, rows, notes)


@pytest.mark.parametrize(
    ("name", "notes"), [("semicolon", []), ("spaces", []), ("utf16", ["other-encoding"])]
)
def test_dialects_of_csv_are_read(reported: Path, name: str, notes: list[str]) -> None:
    path = reported / "23-csv-dialects" / f"{name}.csv"
    found = look_through(path)
    assert (found.rows, found.good, [one.code for one in found.findings]) == (1, 1, notes)
    [row] = read_conversations(path)
    assert (row.images, row.messages[1].text) == (("a.jpg",), "A star")
    assert row.messages[0].text.startswith("<image>\nWhat")


def test_a_table_of_windows_is_read_and_said(reported: Path) -> None:
    path = reported / "25-bytes-that-are-no-text" / "cp1252-cells.csv"
    found = look_through(path)
    assert (found.good, [one.code for one in found.findings]) == (1, ["other-encoding"])
    assert "cp1252" in found.findings[0].what
    assert [message.text for message in read_conversations(path)[0].messages] == [
        "<image>\nWelche Größe?",
        "groß",
    ]


@pytest.mark.parametrize("name", ["cp1252-name.csv", "cp1252-abs.csv"])
def test_names_of_windows_are_read_and_said(reported: Path, name: str) -> None:
    found = look_through(reported / "25-bytes-that-are-no-text" / name)
    assert [one.code for one in found.findings] == ["other-encoding", "missing-picture"]
    assert "für.jpg" in found.findings[1].what


@pytest.mark.parametrize(
    "name", ["role.json", "turn.json", "surrogate-id.jsonl", "surrogate-text.jsonl"]
)
def test_bytes_that_are_no_text_are_a_defect_of_their_row(
    reported: Path, here: Path, verb: Any, name: str
) -> None:
    path = reported / "25-bytes-that-are-no-text" / name
    assert [(one.row, one.code) for one in look_through(path).rejects] == [(1, "not-utf8")]
    with pytest.raises(PhisenseError, match="has 1 rows of 1 that cannot be used"):
        verb("check", path, "--images", reported / "img")
    assert '"code":"not-utf8"' in (here / "rejects.jsonl").read_text(encoding="utf-8")
