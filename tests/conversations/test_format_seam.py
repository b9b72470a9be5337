"""A data format is one file and one line in `seams.FORMAT_MODULES`: rows of a toy one are checked
and read as those of the shipped ones are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense import seams
from phisense.conversations import Message, check, read_conversations
from phisense.conversations.formats import FORMATS, RawRow
from phisense.conversations.row_parser import parse_row
from phisense.errors import ConversationError

TOY = '''
"""Rows of {"shown": image, "dialogue": "Q: ... A: ..."}."""

from phisense.conversations.parsed_row import ParsedRow
from phisense.conversations.row_images import add_images


class Dialogue:
    def parse(self, row):
        text = row.mapping.get("dialogue")
        if not isinstance(text, str) or not text.startswith("Q: "):
            return None
        parsed = ParsedRow("dialogue", row.mapping.get("id"))
        add_images(parsed, row.mapping.get("shown"))
        question, _, answer = text.removeprefix("Q: ").partition(" A: ")
        parsed.add_turn("user", question)
        parsed.add_turn("assistant", answer)
        unread = row.mapping.keys() - {"id", "shown", "dialogue"}
        parsed.ignored_keys += [("", key) for key in unread]
        return parsed


FORMAT = Dialogue()
'''
ROWS = [
    {"id": "one", "shown": "a.jpg", "dialogue": "Q: What is it? A: A cat."},
    {"id": "two", "dialogue": "Q: Which colour is the sky? A: Blue.", "mood": "calm"},
    {"id": "three", "shown": 7, "dialogue": "Q: And this? A: A dog."},
]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "dialogue_format.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "dialogue_format"


def rows(folder: Path, some: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


def test_rows_of_a_toy_format_are_checked_and_read(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Any
) -> None:
    monkeypatch.setitem(seams.FORMAT_MODULES, "dialogue", module)
    found = check(rows(tmp_path, ROWS))
    assert found.shapes == {"dialogue": 3}
    assert (found.rows, found.good, found.without_picture) == (3, 2, 1)
    assert [one.code for one in found.rejects] == ["bad-picture-name"]
    assert any("'mood', which is not read" in str(one) for one in found.findings)
    good = rows(tmp_path, ROWS[:2])
    assert verb("check", good)["shapes"] == {"dialogue": 2}
    first, _ = read_conversations(good)
    assert first.images == ("a.jpg",)
    assert first.messages == (
        Message("user", "<image>\nWhat is it?"),
        Message("assistant", "A cat."),
    )


def test_control_the_rows_are_unknown_without_its_line(tmp_path: Path) -> None:
    assert set(check(rows(tmp_path, ROWS)).counts) == {"unknown-shape"}
    with pytest.raises(ConversationError, match="has the keys dialogue, id, shown"):
        read_conversations(rows(tmp_path, ROWS))


def test_the_first_format_has_the_row(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**ROWS[0], "question": "Which animal?", "answer": "A dog.", "image": "b.jpg"}
    monkeypatch.setitem(seams.FORMAT_MODULES, "dialogue", module)
    assert parse_row(row).shape == "pairs"
    monkeypatch.setattr(FORMATS, "modules", {"dialogue": module, **seams.FORMAT_MODULES})
    assert parse_row(row).shape == "dialogue"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "llava"),
        ({"Conversation": [{"from": "human", "value": "Hi"}]}, "llava"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"conversations": [], "messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"texts": [{"user": "Hi", "assistant": "Hello"}]}, "texts"),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello"},
            "prompt_completion",
        ),
        ({"prompt": "Hi", "completion": "Hello"}, "question_answer"),
        ({"image": "a.jpg", "caption": "A cat."}, "question_answer"),
    ],
)
def test_which_format_a_row_is_of(row: dict[str, Any], name: str) -> None:
    raw = RawRow(row)
    assert next(one for one in FORMATS if FORMATS[one].parse(raw) is not None) == name
