"""MMBench's options: every text is one, an empty cell is none, and "nan" is none only where a file
writes nothing so.
"""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import DataError

from . import samples
from .test_tasks import load

PICTURE = base64.b64encode(samples.png(9)).decode()
NOTHINGS = (
    "None",
    "none",
    "nan",
    "NaN",
    "NA",
    "N/A",
    "null",
    "NULL",
    "nil",
    "-",
    "0",
    "False",
    "<NA>",
)


def table(folder: Path, *rows: dict[str, str], columns: str = "ABCD", hint: bool = False) -> str:
    head = ["index", "question", *(["hint"] if hint else []), *columns, "answer", "image"]
    lines = ["\t".join(head)]
    for number, row in enumerate(rows, 1):
        cells: dict[str, str] = {
            "index": str(number),
            "question": "How many?",
            "image": PICTURE,
            **row,
        }
        lines.append("\t".join(cells.get(name, "") for name in head))
    return samples.write(folder / "dev.tsv", "\n".join(lines) + "\n")


@pytest.mark.parametrize("word", NOTHINGS)
@pytest.mark.parametrize("at", range(4))
def test_a_word_like_nothing_is_an_option_wherever_it_stands(
    word: str, at: int, tmp_path: Path
) -> None:
    options = ["Two", "One", "Three", "Four"]
    options[at] = word
    for answer in "ABCD":
        questions = load(
            "mmbench",
            table(tmp_path, {**dict(zip("ABCD", options, strict=True)), "answer": answer}),
        )
        assert questions[0].choices == tuple(options)
        assert len(questions) == 4


def test_empty_cells_at_the_end_are_no_options(tmp_path: Path) -> None:
    assert [
        len(
            load(
                "mmbench",
                table(tmp_path, {**dict(zip("ABCD", "wxyz"[:n], strict=False)), "answer": "A"}),
            )
        )
        for n in (1, 2, 3, 4)
    ] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "filled",
    [combination for n in range(1, 5) for combination in itertools.combinations("ABCD", n)],
)
def test_an_option_behind_a_gap_is_an_error_that_names_it(
    filled: tuple[str, ...], tmp_path: Path
) -> None:
    row = {letter: f"text {letter}" for letter in filled} | {"answer": filled[0]}
    if list(filled) == list("ABCD"[: len(filled)]):
        assert len(load("mmbench", table(tmp_path, row))) == len(filled)
        return
    gap = next(letter for letter in "ABCD" if letter not in filled)
    with pytest.raises(
        DataError,
        match=rf"question 1 has the option {filled[-1]} behind a gap; got nothing for {gap}",
    ):
        load("mmbench", table(tmp_path, row))


def test_nan_is_nothing_where_the_file_writes_nothing_so(tmp_path: Path) -> None:
    """As str() of pandas' empty cells, and the hub's own set: a hint of it, or two options of it at
    an end.
    """

    def counts(*rows: dict[str, str], hint: bool = False) -> list[int]:
        questions = load("mmbench", table(tmp_path, *rows, hint=hint))
        return [
            sum(q.group == str(number) for q in questions) for number in range(1, len(rows) + 1)
        ]

    three: dict[str, str] = {"A": "x", "B": "y", "C": "z", "D": "nan", "answer": "A"}
    two = {"A": "x", "B": "y", "C": "nan", "D": "nan", "answer": "A"}
    assert counts(three) == [4]
    assert counts(three, two) == [3, 2]
    assert counts({**three, "hint": "nan"}, hint=True) == [3]
    assert counts({**three, "hint": "Look twice."}, hint=True) == [4]
    assert counts({**three, "answer": "D"}, two) == [4, 2]  # the right answer is one
    # what others follow is one
    assert counts({"A": "x", "B": "nan", "C": "y", "D": "z", "answer": "A"}, two) == [4, 2]
    questions = load("mmbench", table(tmp_path, {**three, "hint": "nan"}, hint=True))
    assert questions[0].text == "How many?"


def test_options_beyond_e_are_not_lost(tmp_path: Path) -> None:
    letters = "ABCDEFG"
    questions = load(
        "mmbench",
        table(
            tmp_path,
            {**{letter: letter.lower() * 2 for letter in letters}, "answer": "G"},
            columns=letters,
        ),
    )
    assert len(questions) == 7
    assert questions[0].choices[-1] == "gg"


def test_null_is_no_option_and_a_number_is_one(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "index": 1,
        "question": "?",
        "image": PICTURE,
        "A": 0,
        "B": 1.0,
        "C": None,
        "answer": "A",
    }
    [first, *_] = load("mmbench", samples.lines(tmp_path / "dev.jsonl", [row]))
    assert first.choices[0] == "0"
    assert len(first.choices) == 2
