"""Reading: good rows of every kind, and each defect by its row and id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import IMAGE, check, read_conversations, read_questions
from phisense.errors import ConversationError

GOOD: dict[str, Any] = {
    "id": "a1",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": f"{IMAGE}\nWhat?"},
        {"from": "gpt", "value": "A cat."},
    ],
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
    assert (
        read_conversations(write(tmp_path / "a.json", row))[0].messages[0].text == f"{IMAGE}\nWhat?"
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (turns(("gpt", "A cat.")), "has turn 1 from 'gpt', wanted a question"),
        (
            turns(("human", "a"), ("system", "b"), ("gpt", "c")),
            "has turn 2 from 'system', wanted an answer",
        ),
        (turns(("human", "a")), "no answer, so no token would be supervised"),
        (turns(("human", "a"), ("gpt", " ")), "empty turn 2 from 'gpt'"),
        (turns(("robot", "a"), ("gpt", "b")), "wanted human or user, gpt or assistant, or system"),
        (turns(("human", "a<|end|>"), ("gpt", "b")), r"control token <\|end\|>"),
        (turns(("human", f"{IMAGE}{IMAGE}"), ("gpt", "b")), "2 <image> for 1 pictures"),
        (turns(("human", "a"), ("gpt", f"b {IMAGE}")), "has <image> in turn 2, an answer"),
        ({**GOOD, "image": "../.."}, "wanted a path inside the picture folders"),
        ({**GOOD, "image": "/"}, "wanted a path inside the picture folders"),
        ({**GOOD, "image": "a.png\0.jpg"}, "wanted a path inside the picture folders"),
        ({**GOOD, "image": 7}, "wanted a file name"),
        ({"id": "x"}, "has the keys id"),
        ("text", "is a str, wanted a mapping"),
    ],
)
def test_each_defect_is_named_and_refused(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "a.json", GOOD, row)
    with pytest.raises(ConversationError, match=words) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}, row 2")
    found = check(path)
    assert (found.rows, found.good) == (2, 1)
    assert found.rejects[0].row == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1 column 2"),
        ("[1,", "row 1 is a int"),
        (json.dumps(GOOD) + "\nnope", "line 2 column 1"),
        (f"[{json.dumps(GOOD)}", "file ends"),
    ],
)
def test_broken_json_names_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConversationError, match=words):
        read_conversations(path)


def test_questions_of_every_naming(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": 7,
            "image": "a.png",
            "text": "What?",
            "answer": "Red.",
            "category": "colour",
        },
        {"question_id": 7, "image": "a.png", "text": "Dog?", "label": "yes"},
        {
            "id": "c",
            "image": "a.png",
            "instruction": "Describe.",
            "output": "word " * 30,
            "type": "detail",
        },
        {"id": "d", "question": "How?", "answers": ["two", "2"]},
        GOOD,
    ]
    read = read_questions(write(tmp_path / "q.json", *rows))
    assert [q.id for q in read] == ["7", "7#2", "c", "d", "a1"]
    assert [q.kind for q in read] == ["colour", "other", "detail", "other", "other"]
    assert read[3].answers == ("two", "2")
    assert read[4].text == "What?"
    with pytest.raises(ConversationError, match=r"row 1 \(id a.png\) has the keys image"):
        read_questions(write(tmp_path / "bad.json", {"image": "a.png"}))


@pytest.mark.slow
def test_the_real_pope_file_reads(fixtures: Path) -> None:
    questions = read_questions(fixtures / "pope" / "coco_pope_random.json")
    assert len(questions) == 3000
    assert {answer for q in questions for answer in q.answers} == {"yes", "no"}
