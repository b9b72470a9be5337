"""Files that are not what a benchmark published: each is refused in a sentence that names what is
wrong, and none is scored by accident.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import DataError
from phisense.evaluation.tasks import TASKS

from . import samples
from .test_tasks import TEXTVQA, figures, load

# Documents that are JSON and no benchmark, in the form of any task; and rows, of which one field at
# a time is spoilt.
SPOILT: tuple[Any, ...] = (
    None,
    5,
    -1.5,
    True,
    "",
    "zz",
    [],
    [1],
    [None],
    [[]],
    {},
    {"x": 1},
    [{"x": 1}],
    {"bytes": 5},
    {"bytes": "\u00e9"},
)
DOCUMENTS: tuple[Any, ...] = (
    *SPOILT,
    [1, 2],
    [[1], {}],
    {"1": [1, 2]},
    {"1": {}, "2": 5},
    *(
        {key: value}
        for key in ("questions", "annotations", "data", "test", "images", "image", "index")
        for value in (5, [1, 2], [{}], {}, "x")
    ),
    {"annotations": [{"image_id": 1, "caption": "A cat."}], "images": [{"file_name": "a.jpg"}]},
    {"annotations": [{"image_id": 1, "caption": "A cat."}], "images": 5},
)
GOOD: dict[str, dict[str, Any]] = {
    "vqav2": {
        "question_id": 1,
        "image_id": 7,
        "question": "Is it?",
        "answer_type": "other",
        "answers": [{"answer": "no"}] * 10,
    },
    "gqa": {
        "id": "20",
        "imageId": "n1",
        "question": "Is it?",
        "answer": "no",
        "isBalanced": True,
        "types": {"structural": "verify"},
    },
    "textvqa": TEXTVQA,
    "textvqa-ocr": TEXTVQA,
    "scienceqa": {
        "id": "1",
        "question": "Which?",
        "choices": ["a", "b"],
        "answer": 1,
        "hint": "h",
        "subject": "s",
        "image": "a.png",
        "split": "test",
    },
    "pope": {
        "question_id": 1,
        "image": "a.jpg",
        "text": "Is there a cup?",
        "label": "no",
        "category": "popular",
    },
    "mmbench": {
        "index": 3,
        "question": "Which?",
        "hint": "h",
        "answer": "A",
        "A": "x",
        "B": "y",
        "category": "ocr",
        "image": "A" * 72,
    },
    "captions": {"id": 9, "image": "a.jpg", "references": ["A cat."]},
    "mme": {
        "question_id": "count/1.jpg",
        "category": "count",
        "image": "a.jpg",
        "question": "Two?",
        "answer": "yes",
    },
    "docvqa": {
        "questionId": 1,
        "question": "Who?",
        "question_types": ["form"],
        "image": "documents/a.png",
        "answers": ["me"],
    },
    "chartqa": {
        "id": 1,
        "imgname": "a.png",
        "query": "How many?",
        "label": "14",
        "type": "human_test",
    },
    "ocrbench": {
        "dataset_name": "svt",
        "id": 1,
        "image_path": "svt/a.png",
        "question": "What?",
        "answers": ["CENTRE"],
        "type": "Regular Text Recognition",
    },
    "mmstar": {
        "index": 1,
        "question": "Which?",
        "image": "a.png",
        "answer": "A",
        "category": "math",
        "l2_category": "geometry",
    },
    "ai2d": {
        "id": "1",
        "question": "Which?",
        "options": ["a", "b"],
        "answer": "1",
        "image": "a.png",
        "abcLabel": False,
    },
    "realworldqa": {"id": "1", "question": "Which?", "answer": "B", "image": "a.webp"},
    "mmmu": {
        "id": "validation_Math_1",
        "question": "<image 1> Which?",
        "options": "['a', 'b']",
        "answer": "A",
        "question_type": "multiple-choice",
        "image_1": "a.png",
    },
    "hallusionbench": {
        "category": "VD",
        "subcategory": "map",
        "set_id": "0",
        "figure_id": "0",
        "question_id": "0",
        "question": "Is it?",
        "gt_answer": "1",
        "filename": "./a.png",
    },
    "amber": {"id": 1, "query": "Is it?", "image": "a.png", "type": "relation", "truth": "no"},
    "own": {
        "id": "1",
        "image": "a.jpg",
        "question": "Two?",
        "answers": ["yes"],
        "choices": ["a"],
        "kind": "k",
    },
}


def malformed(name: str) -> Iterator[tuple[str, str]]:
    """Name and text of small files."""
    for document in DOCUMENTS:
        yield "a.json", json.dumps(document)
        yield "a.jsonl", json.dumps(document)
    for key in GOOD[name]:
        for spoilt in SPOILT:
            row = {**GOOD[name], key: spoilt}
            yield "a.jsonl", json.dumps(row)
            yield "a.json", json.dumps({"1": row})
        yield (
            "a.json",
            json.dumps([{other: value for other, value in GOOD[name].items() if other != key}]),
        )
    people = [[1, 2], [{}], [{"answer": [1]}], [{"answer": None}], "blue", {"answer": "blue"}]
    yield from (
        ("a.jsonl", json.dumps({**GOOD[name], "answers": told, "choices": told, "image_id": "abc"}))
        for told in people
    )
    for text in (
        "",
        "{",
        "[",
        "\x00",
        "index\tquestion\timage\nx\ty\tz\n",
        "index\timage\n1\t\u00e9\n",
        "a\tb\n1\n",
    ):
        yield from ((f"a.{ending}", text) for ending in ("json", "jsonl", "tsv", "csv"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_malformed_files_are_refused_in_a_sentence_or_scored(name: str, tmp_path: Path) -> None:
    refused = 0
    for file, text in malformed(name):
        source = samples.write(tmp_path / file, text)
        try:
            questions = load(name, source)
            figures(name, questions, ["yes"] * len(questions))
        except DataError as error:
            refused += 1
            assert str(error).endswith(".")
        except Exception as error:
            raise AssertionError(f"{file}: {text[:200]}") from error
    assert refused > 100


@pytest.mark.parametrize(
    ("name", "spoilt", "sentence"),
    [
        ("vqav2", {"image_id": "abc"}, "image_id is no whole number; got 'abc'"),
        ("vqav2", {"answers": [{"said": "no"}]}, "question 1 has a row without answer; got said"),
        (
            "vqav2",
            {"answers": "blue"},
            "question 1: answers is not a list with something in it; got 'blue'",
        ),
        ("vqav2", {"answers": []}, "question 1: answers is not a list with something in it"),
        ("textvqa", {"answers": "blue"}, "answers is not a list with something in it; got 'blue'"),
        ("textvqa", {"answers": []}, "answers is not a list with something in it"),
        ("scienceqa", {"choices": "ab"}, "choices is not a list with something in it; got 'ab'"),
        ("scienceqa", {"answer": "zz"}, "answer is no whole number; got 'zz'"),
        ("mmbench", {"index": "x"}, "index is no whole number; got 'x'"),
        ("gqa", {"question": ["?"]}, r"question or text is no text; got \['\?'\]"),
        ("docvqa", {"answers": "me"}, "answers is not a list with something in it; got 'me'"),
        ("docvqa", {"question_types": [[1]]}, r"question 1: question_types is no text; got \[1\]"),
        ("chartqa", {"label": None}, "rows.jsonl has a row without label or answer"),
        ("ocrbench", {"answers": []}, "question svt/1: answers or answer is not a list"),
        ("mmstar", {"answer": "E"}, "question 1: the answer is no option; got E; wanted A to D"),
        (
            "ai2d",
            {"answer": "2"},
            "the right answer is not among the options; got 2; wanted 0 to 1",
        ),
        ("ai2d", {"options": "ab"}, "options or answerTexts is not a list with something in it"),
        ("realworldqa", {"answer": None}, "question 1 has a row without answer"),
        (
            "mmmu",
            {"answer": "C"},
            "answer is not among its 2 options; got 'C'. Take the validation",
        ),
        ("mmmu", {"options": "['a', 'b'"}, r"options is no list; got .*wanted \['2', '4'\]"),
        ("hallusionbench", {"gt_answer": "2"}, "gt_answer is neither 1 nor 0; got 2"),
        ("hallusionbench", {"set_id": None}, "has a row without set_id"),
        ("amber", {"truth": "maybe"}, "question 1: the truth is neither yes nor no; got maybe"),
        ("amber", {"type": None}, "1 questions have no truth; got the first is 1.*Name both files"),
    ],
)
def test_a_field_of_another_type_is_named(
    name: str, spoilt: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence):
        load(name, samples.lines(tmp_path / "rows.jsonl", [{**GOOD[name], **spoilt}]))


@pytest.mark.parametrize("name", [name for name in GOOD if name not in ("mme", "own")])
def test_two_questions_of_one_id_are_refused(name: str, tmp_path: Path) -> None:
    """Of MME they are a picture's pair."""
    rows = samples.lines(tmp_path / "rows.jsonl", [GOOD[name]])
    again = samples.lines(tmp_path / "again.jsonl", [GOOD[name]])
    assert load(name, rows)
    with pytest.raises(
        DataError, match=r"two questions in .*rows.jsonl, .*again.jsonl have the id '"
    ):
        load(name, rows, again)


def test_scienceqas_rows_without_ids_are_numbered_on(tmp_path: Path) -> None:
    row = {key: value for key, value in GOOD["scienceqa"].items() if key != "id"}
    shards = [samples.lines(tmp_path / f"{i}.jsonl", [row, {**row, "answer": 0}]) for i in range(2)]
    assert [(q.id, q.answers) for q in load("scienceqa", *shards)] == [
        ("0", ("B",)),
        ("1", ("A",)),
        ("2", ("B",)),
        ("3", ("A",)),
    ]


def test_popes_files_whose_names_hold_no_category(tmp_path: Path) -> None:
    files = [samples.pope(tmp_path, "one"), samples.pope(tmp_path, "two")]
    with pytest.raises(
        DataError, match="two questions in .* have the id 'other/1'; wanted an id of its own"
    ):
        load("pope", *files)


def test_other_answers_to_a_question_of_vqav2(tmp_path: Path) -> None:
    asked = samples.lines(tmp_path / "rows.jsonl", [GOOD["vqav2"]])
    told = {"question_id": 1, "answers": ["yes"] * 10, "answer_type": "other"}
    with pytest.raises(DataError, match="other answers to question 1"):
        load("vqav2", asked, samples.lines(tmp_path / "told.jsonl", [told]))
    assert (
        load(
            "vqav2",
            asked,
            samples.lines(tmp_path / "told.jsonl", [{**told, "answers": ["no"] * 10}]),
        )[0].answers
        == ("no",) * 10
    )


def test_a_listing_of_mme_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "count.txt").write_bytes(b"1.jpg\tTwo\xff?\tYes\n")
    with pytest.raises(DataError, match="count.txt is not UTF-8"):
        load("mme", str(tmp_path / "count.txt"))


def test_bytes_in_a_table_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(
        b"question_id,image,text,label\n1,a.jpg,Is there a caf\x81?,yes\n"
    )
    with pytest.raises(DataError, match="row 1 is not UTF-8: 'text' holds the byte 0x81"):
        load("pope", str(tmp_path / "rows.csv"))
    (tmp_path / "rows.csv").write_bytes(
        b"question_id,image,text,label\n1,a.jpg,Is there a caf\xe9?,yes\n"
    )
    assert [question.text for question in load("pope", str(tmp_path / "rows.csv"))] == [
        "Is there a café?"
    ]
