"""Options of a multiple-choice question and what an answer stands for; in training as text, in
questions as letter, too.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import read_conversations, read_questions
from phisense.conversations.rows import Row, validate_row
from phisense.conversations.sources import open_data_source
from phisense.errors import ConversationError

TEXTS = ["star", "ring", "cross"]
QUESTION = "Which shape is red?"
WRITTEN = f"{QUESTION}\nA. star\nB. ring\nC. cross"

#: Every way to write three options, and whether a number counts them.
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "a list": ({"choices": TEXTS}, True),
    "options": ({"options": TEXTS}, True),
    "a mapping": ({"options": {"A": "star", "B": "ring", "C": "cross"}}, False),
    "a mapping in another order": ({"options": {"C": "cross", "A": "star", "B": "ring"}}, False),
    "with letters of their own": ({"choices": ["A. star", "B. ring", "C. cross"]}, True),
    "a cell of JSON": ({"choices": json.dumps(TEXTS)}, True),
    "a cell as Python prints it": ({"options": "['star', 'ring', 'cross']"}, True),
    "a mapping in a cell": ({"options": '{"A": "star", "B": "ring", "C": "cross"}'}, False),
    "ARC's": ({"choices": {"text": TEXTS, "label": ["A", "B", "C"]}}, False),
    "labelled": (
        {
            "choices": [
                {"label": letter, "text": text} for letter, text in zip("ABC", TEXTS, strict=True)
            ]
        },
        False,
    ),
    "columns": ({"A": "star", "B": "ring", "C": "cross", "D": None}, False),
    "option_a": (
        {"option_a": "star", "option_b": "ring", "option_c": "cross", "option_d": ""},
        False,
    ),
    "nothing behind": ({"choices": ["star", "ring", "cross", None, ""]}, True),
}
ANSWERS: list[tuple[Any, bool]] = [  # what says "ring", and whether it does so only beside a list
    ("B", False),
    ("b", False),
    ("(B)", False),
    ("B.", False),
    ("B)", False),
    ("ring", False),
    ("Ring", False),
    ("ring.", False),
    ("B. ring", False),
    ("(B) ring", False),
    (1, True),
    (1.0, True),
    ("1", True),
]


def faults(row: dict[str, Any]) -> list[str]:
    return [code for code, _ in validate_row(row, 1).faults]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("answer", "counts"), ANSWERS)
def test_options_are_put_into_the_question_and_an_answer_becomes_what_it_stands_for(
    way: str, answer: Any, counts: bool
) -> None:
    options, listed = WAYS[way]
    row: Row = validate_row({"question": QUESTION, "answer": answer, **options}, 1)
    if counts and not listed:
        assert [code for code, _ in row.faults] == ["bad-options"], (
            "a number counts nothing where the options have letters"
        )
        return
    assert [code for code, _ in row.faults] == ["options-added"]
    assert row.ignored_keys == ()
    assert [message.text for message in row.conversation().messages] == [WRITTEN, "ring"]


@pytest.mark.parametrize("answer", [3, -1, 1.5, "3", "D", "E.", "square", "A. ring", True])
def test_an_answer_outside_of_the_options_is_refused(answer: Any) -> None:
    row = validate_row({"question": QUESTION, "choices": TEXTS, "answer": answer}, 1)
    assert not row.good
    assert "bad-options" in [code for code, _ in row.faults]


@pytest.mark.parametrize(
    "options",
    [
        {"choices": ["star", "", "cross"]}, {"choices": ["star", None, "cross"]},
        {"options": {"A": "star", "C": "cross"}}, {"choices": 7},
        {"options": {"A": "star", "B": "", "C": "cross"}}, {"A": "star", "B": "", "C": "cross"},
        {"A": "star", "C": "cross"}, {"choices": "[oops"}, {"choices": "['a' 'b']"},
        {"choices": TEXTS, "options": ["x", "y"]}, {"choices": TEXTS, "A": "x", "B": "y"},
        {"choices": [["star"], ["ring"]]}, {"choices": [str(i) for i in range(27)]},
        {"choices": "star, ring"},
    ],
)  # fmt: skip
def test_options_with_a_gap_or_of_no_known_form_are_refused(options: dict[str, Any]) -> None:
    assert not validate_row({"question": QUESTION, "answer": "star", **options}, 1).good


def test_none_nan_and_na_are_texts() -> None:
    row = validate_row(
        {"question": "How many boats?", "choices": ["None", "nan", "NA", "null"], "answer": "A"}, 1
    )
    assert row.options == ("None", "nan", "NA", "null")
    assert row.conversation().messages[1].text == "None"


def test_what_can_be_read_in_two_ways_is_refused() -> None:
    """Options that are letters or numbers themselves: an answer may be one, or name another."""
    assert faults({"question": "Which letter?", "choices": ["B", "A", "C"], "answer": "A"}) == [
        "bad-options"
    ]
    assert faults({"question": "How many?", "choices": [1, 2, 3], "answer": 1}) == ["bad-options"]
    assert faults({"question": "How many?", "choices": ["1", "2", "3"], "answer": "2"}) == [
        "bad-options"
    ]
    # ScienceQA's number; no number counts columns
    for row in ({"choices": ["1", "2", "3"], "answer": 1}, {"A": "1", "B": "2", "answer": "2"}):
        assert (
            validate_row({"question": "How many?", **row}, 1).conversation().messages[1].text == "2"
        )


def test_options_that_the_question_names_are_not_put_in_again() -> None:
    for asked in (f"{QUESTION}\n(A) star (B) ring (C) cross", "Is it a star, a ring or a cross?"):
        row = validate_row({"question": asked, "choices": TEXTS, "answer": 1}, 1)
        assert [message.text for message in row.conversation().messages] == [asked, "ring"]
        assert row.faults == []
    assert faults({"question": "Is it a star or a ring?", "choices": TEXTS, "answer": 1}) == [
        "options-added"
    ]


def test_the_letter_stays_where_the_question_wants_it() -> None:
    asked = f"{WRITTEN}\nAnswer with the option's letter from the given choices directly."
    for answer in (1, "B", "ring"):
        row = validate_row({"question": asked, "choices": TEXTS, "answer": answer}, 1)
        assert row.conversation().messages[1].text == "B"
        assert row.accepted == ("B", "ring")


def test_the_letter_is_what_the_question_wants_once_its_options_are_put_behind_it() -> None:
    for wish in (
        "Answer with the option's letter from the given choices directly.",
        "Answer with the letter.",
        "Only the letter, please.",
        "Reply with the letter of the right option.",
        "Give a single letter.",
    ):
        turns = [{"from": "human", "value": f"{QUESTION} {wish}"}, {"from": "gpt", "value": "ring"}]
        for answer in (1, "B", "ring", "The answer is B."):
            for row in (
                {"question": f"{QUESTION} {wish}", "answer": answer},
                {"conversations": turns},
            ):
                examined = validate_row({**row, "choices": TEXTS}, 1)
                assert [code for code, _ in examined.faults] == ["options-added"]
                assert examined.conversation().messages[1].text == "B"
    asked = validate_row(
        {"question": "Which letter is on the sign?", "choices": ["K", "L"], "answer": "K"}, 1
    )  # the control
    assert asked.conversation().messages[1].text == "K"


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["5", "7", "9"], "7"),
        (["5", "7", "9"], 7),
        ([5, 7, 9], 7),
        (["X", "Y"], "X"),
        (["dog", "cat", "I"], "I"),
    ],
)
def test_a_letter_or_number_that_names_no_option_is_the_text_of_one(
    choices: list[Any], answer: Any
) -> None:
    assert validate_row(
        {"question": QUESTION, "choices": choices, "answer": answer}, 1
    ).conversation().messages[1].text == str(answer)


@pytest.mark.parametrize(
    "said",
    [
        "The answer is B.",
        "the answer is (B)",
        "Option B",
        "Answer: B",
        "The correct option is B.",
        "Answer: (B).",
    ],
)
def test_a_sentence_that_only_names_a_letter_is_that_letter(said: str) -> None:
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": said}]
    for row in ({"question": QUESTION, "answer": said}, {"conversations": turns}):
        assert validate_row({**row, "choices": TEXTS}, 1).conversation().messages[1].text == "ring"
        assert not validate_row({**row, "choices": TEXTS[:1]}, 1).good, "it names none"


def test_other_words_of_a_conversation_are_left_as_they_are() -> None:
    for said in ("None of them", "The right one.", "I cannot tell."):
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": said}]
        assert (
            validate_row({"conversations": turns, "choices": TEXTS}, 1)
            .conversation()
            .messages[1]
            .text
            == said
        )
    for said in ("square", "E", "E. five", "7", "A. ring"):
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": said}]
        assert faults({"conversations": turns, "choices": TEXTS})[-1] == "bad-options"


@pytest.mark.parametrize(
    "written",
    [
        "A. star\nB. ring\nC. cross",
        "(A) star\n(B) ring\n(C) cross\n",
        "A: star\n\n B: ring\n C: cross",
        "[A] star\n[B] ring\n[C] cross",
    ],
)
def test_lettered_lines_are_options(written: str) -> None:
    row = validate_row({"question": QUESTION, "options": written, "answer": "B"}, 1)
    assert [message.text for message in row.conversation().messages] == [WRITTEN, "ring"]
    assert not validate_row(
        {"question": QUESTION, "options": written.replace("B", "D"), "answer": "B"}, 1
    ).good


def test_options_named_by_chance_are_put_in() -> None:
    for asked in (
        "Is it a dog? yes or no cat",
        "What is the dog doing to the cat?",
        "A dog. It sleeps near the house of a neighbour's cat.",
    ):
        assert faults({"question": asked, "A": "dog", "B": "cat", "answer": "A"}) == [
            "options-added"
        ]
    for asked in (
        "What does the dog hold?\nA. dog\nB. cat",
        "Is it a dog or a cat?",
        "dog/cat?",
        "Dog, cat?",
        "dog oder Katze: dog oder cat",
    ):
        assert faults({"question": asked, "A": "dog", "B": "cat", "answer": "A"}) == []


def test_options_that_repeat_each_other_take_no_time() -> None:
    """Half a minute each, before: who breaks it waits."""
    many = ["a" * length for length in range(1, 27)]
    assert validate_row(
        {"question": "a " * 100_000, "choices": many, "answer": "a" * 2_000_000}, 1
    ).faults
    assert validate_row(
        {"question": "a" * 500_000, "choices": [f"{one} b" for one in many], "answer": "b " * 9000},
        1,
    ).faults


def test_a_longer_answer_is_left_as_it_is() -> None:
    told = "The answer is B, because the ring is the only red thing there."
    assert (
        validate_row({"question": QUESTION, "choices": TEXTS, "answer": told}, 1)
        .conversation()
        .messages[1]
        .text
        == told
    )


def test_a_hint_is_part_of_a_question_with_options_alone() -> None:
    row = {"question": QUESTION, "answer": "ring", "hint": "Look up."}
    assert (
        validate_row({**row, "choices": TEXTS}, 1).conversation().messages[0].text
        == f"Look up.\n{WRITTEN}"
    )
    assert validate_row(row, 1).ignored_keys == (("", "hint"),)
    assert (
        validate_row({**row, "context": "A table."}, 1).conversation().messages[0].text
        == f"A table.\n{QUESTION}"
    )


def test_options_beside_turns() -> None:
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "B"}]
    row = validate_row({"conversations": turns, "choices": TEXTS}, 1)
    assert [message.text for message in row.conversation().messages] == [WRITTEN, "ring"]
    named = [
        {"from": "human", "value": WRITTEN},
        *turns[1:],
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    assert validate_row({"conversations": named, "choices": TEXTS}, 1).faults == []
    assert faults({"conversations": [*turns, *named[2:]], "choices": TEXTS}) == ["bad-options"]


def test_in_questions_letter_and_text_are_right(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "question": QUESTION, "choices": TEXTS, "answer": answer}
        for i, answer in enumerate((1, "B", "ring"))
    ]
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "C"}]
    (tmp_path / "q.json").write_text(
        json.dumps([*rows, {"conversations": turns, "choices": TEXTS}])
    )
    read = read_questions(tmp_path / "q.json")
    assert [set(one.answers) for one in read] == [{"ring", "B"}] * 3 + [{"cross", "C"}]
    assert all((one.text, one.choices) == (WRITTEN, tuple(TEXTS)) for one in read)


def test_questions_that_need_more_than_themselves_are_refused(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
    turns += [{"role": "user", "content": "z"}, {"role": "assistant", "content": "w"}]
    for row, words in (
        (
            {"question": "x", "answer": "y", "history": [["a", "b"]]},
            "has a system text or a history",
        ),
        ({"question": "x", "answer": "y", "system": "Be brief."}, "has a system text or a history"),
        ({"messages": turns}, "has the weight 0 at its first answer"),
    ):
        (tmp_path / "q.json").write_text(json.dumps([row]))
        with pytest.raises(ConversationError, match=words):
            read_questions(tmp_path / "q.json")


def test_a_table_of_options(tmp_path: Path) -> None:
    """MMBench's columns, and ScienceQA's lists in cells."""
    file = io.StringIO()
    csv.writer(file).writerows(
        [["question", "A", "B", "C", "D", "answer"], [QUESTION, *TEXTS, "", "C"]]
    )
    (tmp_path / "a.csv").write_text(file.getvalue())
    (read,) = read_conversations(tmp_path / "a.csv")
    assert [message.text for message in read.messages] == [WRITTEN, "cross"]
    file = io.StringIO()
    csv.writer(file).writerows(
        [
            ["question", "choices", "answer"],
            [QUESTION, json.dumps(TEXTS), "2"],
            [QUESTION, str(TEXTS), "2"],
        ]
    )
    (tmp_path / "b.csv").write_text(file.getvalue())
    assert [one.messages[1].text for one in read_conversations(tmp_path / "b.csv")] == [
        "cross",
        "cross",
    ]
    assert len(list(open_data_source(tmp_path / "b.csv").rows())) == 2
