"""Reading: good rows of every kind, and each defect by its row and id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phisense.conversations import IMAGE, check, read_conversations, read_questions
from phisense.conversations.read import read_rows
from phisense.errors import ConversationError
from phisense.vision.pictures import picture_defect

GOOD: dict[str, Any] = {
    "id": "a1",
    "image": "a.png",
    "conversations": [{"from": "human", "value": f"{IMAGE}\nWhat?"}, {"from": "gpt", "value": "A cat."}],
}


def write(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {**GOOD, "conversations": [{"from": who, "value": text} for who, text in pairs]}


def test_reads_json_and_lines(tmp_path: Path) -> None:
    listed = read_conversations(write(tmp_path / "a.json", GOOD))
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n")
    assert read_conversations(tmp_path / "a.jsonl") == listed * 2
    assert listed[0].images == ("a.png",)
    assert [m.role for m in listed[0].messages] == ["user", "assistant"]


def test_a_missing_marker_is_put_where_published_sets_mean_it(tmp_path: Path) -> None:
    row = turns(("human", "What?"), ("gpt", "A cat."))
    assert read_conversations(write(tmp_path / "a.json", row))[0].messages[0].text == f"{IMAGE}\nWhat?"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (turns(("gpt", "A cat.")), "turn 1 is from 'gpt', wanted human"),
        (turns(("human", "a"), ("human", "b"), ("gpt", "c")), "turn 2 is from 'human', wanted gpt"),
        (turns(("human", "a")), "no answer, so no token would be supervised"),
        (turns(("human", "a"), ("gpt", " ")), "turn 2 from 'gpt' is empty"),
        (turns(("robot", "a"), ("gpt", "b")), "wanted human, gpt or system"),
        (turns(("human", "a<|end|>"), ("gpt", "b")), r"control token <\|end\|>"),
        (turns(("human", f"{IMAGE}{IMAGE}"), ("gpt", "b")), "2 <image> for 1 pictures"),
        (turns(("human", "a"), ("gpt", f"b {IMAGE}")), "<image> in an answer"),
        ({**GOOD, "image": "../secret.png"}, "wanted a path inside the images folder"),
        ({**GOOD, "image": "/etc/passwd"}, "wanted a path inside the images folder"),
        ({**GOOD, "image": 7}, "wanted a file name"),
        ({"id": "x"}, "has no conversations"),
        ("text", "is a str, wanted a mapping"),
    ],
)
def test_each_defect_is_named_and_refused(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "a.json", GOOD, row)
    with pytest.raises(ConversationError, match=words) as caught:
        read_conversations(path)
    assert str(caught.value).startswith("row 2")
    found = check(path, None)
    assert (found.rows, found.good) == (2, 1)
    assert found.defects[0].row == 2


def test_check_looks_at_pictures_and_ids(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    rows = [GOOD, {**GOOD, "id": "a2", "image": "b.png"}, {**GOOD, "id": "a3", "image": "c.png"}, GOOD]
    found = check(write(tmp_path / "d.json", *rows), tmp_path, defects_of=picture_defect)
    assert [(d.row, d.id) for d in found.defects] == [(2, "a2"), (3, "a3"), (4, "a1")]
    assert "b.png is not a picture" in found.defects[0].what
    assert "there is no picture" in found.defects[1].what
    assert "earlier row" in found.defects[2].what


@pytest.mark.parametrize(("text", "words"), [("{", "line 1"), ("[1,", "is not JSON"), ('{"a": 1}\nnope', "line 2")])
def test_broken_json_names_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConversationError, match=words):
        list(read_rows(path))


def test_questions_of_every_naming(tmp_path: Path) -> None:
    rows = [
        {"question_id": 7, "image": "a.png", "text": "What?", "answer": "Red.", "category": "colour"},
        {"question_id": 7, "image": "a.png", "text": "Dog?", "label": "yes"},
        {"id": "c", "image": "a.png", "instruction": "Describe.", "output": "word " * 30, "type": "detail"},
        {"id": "d", "question": "How?", "answers": ["two", "2"]},
        GOOD,
    ]
    read = read_questions(write(tmp_path / "q.json", *rows))
    assert [q.id for q in read] == ["7", "7#2", "c", "d", "a1"]
    assert [q.kind for q in read] == ["colour", "other", "detail", "other", "other"]
    assert read[3].answers == ("two", "2")
    assert read[4].text == "What?"
    with pytest.raises(ConversationError, match="row 1 is not a question"):
        read_questions(write(tmp_path / "bad.json", {"image": "a.png"}))


def test_the_real_pope_file_reads(fixtures: Path) -> None:
    questions = read_questions(fixtures / "pope" / "coco_pope_random.json")
    assert len(questions) == 3000
    assert {answer for q in questions for answer in q.answers} == {"yes", "no"}
