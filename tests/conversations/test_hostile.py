"""Rows and tables that somebody wrote to hang or break their reader: every one is read, or refused
in a sentence.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phisense import safe_parsing
from phisense.console import json_bytes
from phisense.conversations import check, csv_reader, json_reader, read_conversations
from phisense.conversations.questions import read_questions
from phisense.errors import ConversationError, DataError, PhisenseError
from phisense.evaluation import benchmark_io
from phisense.evaluation.predictions_io import read_answers
from phisense.evaluation.tasks import TASKS

GOOD = {
    "id": "a",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}],
    "question_id": 1,
    "question": "q",
    "answer": "a",
    "label": "yes",
    "category": "c",
    "answers": ["a"],
}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


#: As they stand in the file; the deep ones are read by orjson (1,024 levels), and Python cannot
#: print them.
ODD = (
    "1e999",
    "-1E400",
    "NaN",
    "-Infinity",
    "9" * 5000,
    nested(30),
    nested(40),
    nested(900),
    nested(1020),
    nested(5000),
    '{"a":' * 900 + "1" + "}" * 900,
    '"\\ud800"',
    '"\\u0000"',
    '"\x00"',
    '"\xff"',
    "null",
    "true",
    "[]",
    "{}",
    "-0",
    '{"bytes": 1}',
    '{"path": "a"}',
    '"data:image/png;base64,xx"',
    '"' + "y" * 100_000 + '"',
    "",
    '{"a": 1, "a": 2}',
    '"\\u001b[2J"',
)
READERS: dict[str, Any] = {
    "check": lambda path: json_bytes(check(path, [path.parent]).to_result().to_dict()),
    "conversations": read_conversations,
    "questions": read_questions,
    "answers": lambda path: read_answers(path, TASKS["own"], []),
    "benchmark": lambda path: list(
        benchmark_io.rows_of(
            benchmark_io.read_source(str(path), benchmark_io.HubDefaults("test")), str(path)
        )
    ),
}


def places(tree: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield at
    for step, inner in (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    ):
        yield from places(inner, (*at, step))


def row_with(at: tuple[str | int, ...], text: str) -> str:
    """The good row with `text` in one place, whether or not that is JSON."""
    row = json.loads(json.dumps(GOOD))
    here = row
    for step in at[:-1]:
        here = here[step]
    if at:
        here[at[-1]] = "@"
    return json.dumps(row if at else "@").replace('"@"', text)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_value_in_every_place(tmp_path: Path, name: str) -> None:
    refused = 0
    for at in places(GOOD):
        for text in ODD:
            row = row_with(at, text)
            for file, content in {
                "a.json": f"[{row}]",
                "a.jsonl": f"{row}\n{json.dumps(GOOD)}\n",
                "b.json": row,
            }.items():
                (tmp_path / file).write_bytes(content.encode("latin-1"))
                try:
                    READERS[name](tmp_path / file)
                except PhisenseError as error:
                    refused += 1
                    assert len(str(error)) < 2000
    assert name == "check" or refused > 300


def test_the_control_python_cannot_print_what_lies_so_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = row_with(("conversations", 0), nested(1000))
    (tmp_path / "a.jsonl").write_text(row)
    (finding,) = check(tmp_path / "a.jsonl").findings
    assert str(finding) == "row 1 is nested more than 32 levels deep"
    with pytest.raises(RecursionError):
        str(json.loads(row))
    monkeypatch.setattr(safe_parsing, "MAX_DEPTH", 10**6)
    assert {one.code for one in check(tmp_path / "a.jsonl").rejects} == {"bad-turn"}, (
        "what is shown of it is bounded, too"
    )
    monkeypatch.setattr(safe_parsing, "_bounded_str", lambda value, most: str(value)[:most])
    with pytest.raises(RecursionError):
        check(tmp_path / "a.jsonl")


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_numbers_beyond_all_numbers_are_named(tmp_path: Path, ending: str) -> None:
    row = row_with(("category",), "1e999")
    (tmp_path / f"a.{ending}").write_text(f"[{row}]" if ending == "json" else row)
    finding, *unread = check(tmp_path / f"a.{ending}").findings
    assert {one.code for one in unread} == {"unread-key"}, (
        "the row is LLaVA's, and its question and answers beside that are not read"
    )
    assert str(finding) == "row 1 (id a) holds 1e999, which is not JSON"


def test_a_table_of_one_endless_line_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "MAX_ROW_BYTES", 2**20)
    (tmp_path / "a.csv").write_text("question,answer\na,b\n" + "x," * 2**20)
    assert [str(one) for one in check(tmp_path / "a.csv").findings] == [
        "row 2 cannot be read as CSV (separated by ','): a line of more than 1 MB"
    ]
    assert csv.field_size_limit() == 2**20
    csv.field_size_limit(json_reader.MAX_ROW_BYTES)


def test_state_of_a_saved_set_is_bounded(tmp_path: Path) -> None:
    for text in (
        nested(900),
        nested(5000),
        "[" * 10**6,
        "{",
        '{"_data_files": 1}',
        '{"_data_files": [{"filename": "../a"}]}',
        "null",
    ):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(DataError):
            check(tmp_path)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut off, with bytes changed (half of them near the end, where Parquet has its footer), or
    with some taken out.
    """
    kind, broken = draw.random(), bytearray(data)
    if kind < 0.3:
        return data[: draw.randrange(len(data))]
    if kind < 0.8:
        for _ in range(draw.choice((1, 3, 20))):
            near_the_end = -draw.randrange(1, min(1500, len(data)))
            broken[draw.choice((draw.randrange(len(data)), near_the_end))] = draw.randrange(256)
        return bytes(broken)
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.randint(1, 50) :]


def test_damaged_tables_are_read_or_refused(tmp_path: Path) -> None:
    """Arrow's offsets are checked before they are followed: without that this test ends the process
    that runs it.
    """
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "id": str(i),
            "question": "q" * 20,
            "answer": "a",
            "image": {"bytes": b"x" * 50, "path": "a.png"},
            "l": [1, 2],
        }
        for i in range(99)
    ]
    table = pa.Table.from_pylist(rows)
    columns, stream = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, columns)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    text = "id,question,answer\n" + "".join(f'{i},"q, {i}",a\n' for i in range(50))
    found = 0
    for seed in range(200):
        for name, data in {
            "a.parquet": columns.getvalue(),
            "a.arrow": stream.getvalue(),
            "a.csv": text.encode(),
        }.items():
            (tmp_path / name).write_bytes(damaged(data, random.Random(seed)))
            try:
                found += "malformed-table" in check(tmp_path / name).counts
            except ConversationError as error:  # cut off in its heading
                assert re.search("holds no row|has one column", str(error))
    assert found > 150


def test_a_date_that_python_has_not_is_a_sentence(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table(
        {"question": ["q"], "answer": ["a"], "when": pa.array([2**62], pa.timestamp("us"))}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [str(one) for one in check(tmp_path / "a.parquet").findings] == [
        "row 1 cannot be read from a.parquet: date value out of range"
    ]
