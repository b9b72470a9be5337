"""What users of such tools reported of their rows, rebuilt small (shared/fixtures/reported): each
has its right value.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phisense.conversations import IMAGE, CheckReport, check, read_conversations
from phisense.conversations.convert import convert
from phisense.conversations.rows import validate_row


def looked_at(fixtures: Path, folder: str, name: str = "data.json") -> CheckReport:
    return check(fixtures / "reported" / folder / name)


def test_the_pictures_of_other_makers_placeholders_are_used_and_their_boxes_refused(
    fixtures: Path, tmp_path: Path
) -> None:
    data = fixtures / "reported" / "06-qwenvl-img-tags" / "data.json"
    found = check(data)
    assert [(one.row, one.code) for one in found.rejects] == [(1, "foreign-tag")]
    assert "'<ref>star</ref>' in an answer" in found.rejects[0].what
    convert(data, tmp_path / "out", found, [fixtures / "reported" / "img"])
    written = read_conversations(tmp_path / "out")
    assert [one.images for one in written] == [
        ("images/a.jpg",),
        ("images/a.jpg",),
        ("images/b.jpg",),
        ("images/a.jpg",),
    ]
    asked = [one.messages[0].text for one in written]
    assert asked == [f"{IMAGE}\nWhat colour is it?", *[f"{IMAGE}\nWhat is this?"] * 3]
    assert "<img" not in (tmp_path / "out" / "metadata.jsonl").read_text()


def test_input_history_system_and_completion_are_in_what_is_trained(fixtures: Path) -> None:
    data = fixtures / "reported" / "07-fields-left-out" / "data.json"
    assert (
        looked_at(fixtures, "07-fields-left-out").good,
        looked_at(fixtures, "07-fields-left-out").findings,
    ) == (3, [])
    assert [
        [(message.role, message.text) for message in one.messages]
        for one in read_conversations(data)
    ] == [
        [
            ("user", f"{IMAGE}\nAnswer the question about the picture.\nWhat colour is the star?"),
            ("assistant", "Red."),
        ],
        [
            ("system", "Answer in one word."),
            ("user", "What is at the top?"),
            ("assistant", "A star."),
            ("user", f"{IMAGE}And the ring?"),
            ("assistant", "Blue."),
        ],
        [("user", f"{IMAGE}Which colour?"), ("assistant", "Red.")],
    ]


def test_rows_of_videos_and_sounds_are_rejected_with_a_reason(fixtures: Path) -> None:
    found = looked_at(fixtures, "08-video-rows")
    assert (found.rows, found.good) == (4, 2)
    assert [(one.row, one.code, one.what) for one in found.findings] == [
        (2, "unsupported-key", "has 'video', a video, which phisense does not train on"),
        (4, "unsupported-key", "has 'audios', a sound, which phisense does not train on"),
    ]


@pytest.mark.parametrize(("row", "tag"), [(1, "<video>"), (3, "<audio>")])
def test_their_placeholders_alone_are_enough(fixtures: Path, row: int, tag: str) -> None:
    raw = json.loads((fixtures / "reported" / "08-video-rows" / "data.json").read_text())[row]
    for key in ("video", "audios"):
        raw.pop(key, None)
    assert [code for code, _ in validate_row(raw, 1).faults] == ["foreign-tag"]
    assert tag in validate_row(raw, 1).faults[0][1]


def test_two_turns_of_a_user_are_one_and_a_weight_of_0_is_not_supervised(fixtures: Path) -> None:
    folder = fixtures / "reported" / "10-openai-example"
    found = check(folder / "example.jsonl")
    assert (found.good, [one.code for one in found.findings]) == (1, ["joined-turns"])
    (row,) = [validate_row(json.loads((folder / "example.jsonl").read_text()), 1)]
    assert [message.role for message in row.conversation().messages] == [
        "system",
        "user",
        "assistant",
    ]
    assert row.conversation().messages[1].text == f"What is this shape?\n{IMAGE}"
    weighed = validate_row(json.loads((folder / "weight.jsonl").read_text()), 1).conversation()
    assert [message.supervised for message in weighed.messages] == [True, False, True, True]


def test_what_is_empty_is_nothing(fixtures: Path) -> None:
    found = looked_at(fixtures, "13-empties")
    assert (found.rows, found.good, found.findings, found.without_picture) == (6, 6, [], 5)
    read = read_conversations(fixtures / "reported" / "13-empties" / "data.json")
    assert [one.images for one in read] == [(), (), (), (), ("a.jpg",), ()]
    assert all(message.role != "system" for one in read for message in one.messages)
