"""The column that is scored, in the company of every kind of column that files of answers have;
each guard with a control.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import Question
from phisense.errors import DataError
from phisense.evaluation.echoes import detect_echo
from phisense.evaluation.predictions_io import LoadedAnswers, read_answers
from phisense.evaluation.tasks import TASKS

from . import samples
from .test_reported_scores import MADE, sources, wrong
from .test_tasks import load

Row = dict[str, Any]
DOUBTED = r"may hold the right answers.*--answer-column"


def read(
    task: str, asked: Sequence[Question], rows: list[Row], folder: Path, **more: Any
) -> LoadedAnswers:
    return read_answers(
        Path(samples.lines(folder / "given.jsonl", rows)), TASKS[task], asked, **more
    )


def eight_pope(folder: Path) -> list[Question]:
    """Enough rows for columns to vary."""
    things = ("snowboard", "car", "person", "cup", "dog", "kite", "bench", "clock")
    rows = [
        {
            "question_id": i,
            "image": f"{i // 2}.jpg",
            "text": f"Is there a {thing} in the image?",
            "label": ("yes", "no")[i % 2],
        }
        for i, thing in enumerate(things)
    ]
    return load("pope", samples.lines(folder / "pope.json", rows))


# --- a column of an unknown name beside gold ---

HOLES: dict[str, Any] = {
    "empty": "",
    "null": None,
    "list": ["No"],
    "number": 7,
    "object": {"text": "No"},
    "blank": "  ",
    "flag": False,
}


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("task", MADE)
def test_a_hole_in_the_models_column_does_not_make_gold_the_answers(
    task: str, hole: str, tmp_path: Path
) -> None:
    asked = load(task, *sources(task, tmp_path))
    for at in range(len(asked)) if len(asked) > 1 else ():
        rows = [
            {
                "question_id": q.id,
                "answer": q.answers[0],
                "vicuna": HOLES[hole] if i == at else wrong(task, q.answers[0]) + "." * i,
            }
            for i, q in enumerate(asked)
        ]
        with pytest.raises(DataError, match=DOUBTED):
            read(task, asked, rows, tmp_path)
    # the control: without that column nothing is doubted
    alone = [{"question_id": q.id, "answer": q.answers[0]} for q in asked]
    assert read(task, asked, alone, tmp_path).answers == [q.answers[0] for q in asked]


@pytest.mark.parametrize(
    "form",
    [
        lambda text: [text],
        lambda text: {"text": text},
        lambda text: {"choices": [{"message": text}]},
    ],
)
@pytest.mark.parametrize("task", MADE)
def test_answers_within_lists_and_objects_may_be_the_models(
    task: str, form: Any, tmp_path: Path
) -> None:
    asked = load(task, *sources(task, tmp_path))
    rows = [
        {
            "question_id": q.id,
            "answer": q.answers[0],
            "vicuna": form(wrong(task, q.answers[0]) + f" {i}"),
        }
        for i, q in enumerate(asked)
    ]
    with pytest.raises(DataError, match=DOUBTED):
        read(task, asked, rows, tmp_path)


GOLD_NAMES = (
    "label",
    "gt_answer",
    "ground_truth",
    "answers",
    "multiple_choice_answer",
    "gold_answer",
    "correct_answer",
    "target",
    "GT Answer",
)


@pytest.mark.parametrize("gold", GOLD_NAMES)
@pytest.mark.parametrize("task", MADE)
def test_gold_under_two_names_is_not_the_models(task: str, gold: str, tmp_path: Path) -> None:
    """What hides under a third name may be; and with gold under another name a column that is not
    right is the model's.
    """
    asked = load(task, *sources(task, tmp_path))
    for told in (lambda q: list(q.answers), lambda q: q.answers[0]):
        twice = [
            {
                "question_id": q.id,
                "answer": q.answers[0],
                gold: told(q),
                "vicuna": wrong(task, q.answers[0]) + "." * i,
            }
            for i, q in enumerate(asked)
        ]
        if len(asked) > 1:
            with pytest.raises(DataError, match=DOUBTED):
                read(task, asked, twice, tmp_path)
        once = [
            {
                "question_id": q.id,
                gold: told(q),
                "image": "a.jpg",
                "answer": wrong(task, q.answers[0]),
                "note": f"n{i}",
            }
            for i, q in enumerate(asked)
        ]
        assert read(task, asked, once, tmp_path).answers == [row["answer"] for row in once]
        perfect = [{"question_id": q.id, gold: told(q), "answer": q.answers[0]} for q in asked]
        assert read(task, asked, perfect, tmp_path).answers == [q.answers[0] for q in asked]


#: Columns that say something about a row or a run, and are nobody's answers; row number -> cell.
ABOUT: dict[str, Any] = {
    "model_name": lambda i: "llava-1.5",
    "dataset": lambda i: "POPE",
    "timestamp": lambda i: f"2024-05-0{i + 1} 12:0{i}:11.5",
    "when": lambda i: f"2024-05-0{i + 1}T12:00:11Z",
    "made": lambda i: f"{i + 1} May 2024 12:00",
    "on": lambda i: f"0{i + 1}.05.2024",
    "clock": lambda i: f"12:0{i}:44",
    "gpu": lambda i: "A100",
    "picture": lambda i: f"COCO_val2014_{i}.jpg",
    "link": lambda i: f"http://a.b/{i}",
    "took": lambda i: 0.5 + i,
    "took_text": lambda i: f"{i}.25",
    "sum": lambda i: f"{i:032x}",
    "prompt_tokens": lambda i: str(100 + i),
    "setting": lambda i: {"beams": 1, "name": "greedy"},
    "box": lambda i: [i, 2.5, 3],
    "nothing": lambda i: None,
    "empty": lambda i: "",
}


@pytest.mark.parametrize("name", ABOUT)
@pytest.mark.parametrize("right", [True, False])
def test_what_is_said_about_a_row_is_no_answer(name: str, right: bool, tmp_path: Path) -> None:
    asked = eight_pope(tmp_path)
    said = [q.answers[0] if right else wrong("pope", q.answers[0]) for q in asked]
    rows: list[Row] = [
        {"question_id": q.id, "answer": text, name: ABOUT[name](i)}
        for i, (q, text) in enumerate(zip(asked, said, strict=True))
    ]
    assert read("pope", asked, rows, tmp_path).answers == said
    # a copy of the questions' file is doubted only where something else may be the answers
    if not right:
        copy = [
            {**row, "image": "a.jpg", "question": q.text}
            for row, q in zip(rows, asked, strict=True)
        ]
        assert read("pope", asked, copy, tmp_path).answers == said
        with pytest.raises(DataError, match=DOUBTED):  # the control
            read("pope", asked, [{**row, "vicuna": "yes"} for row in copy], tmp_path)
    with pytest.raises(DataError, match=DOUBTED):  # and here
        read(
            "pope",
            asked,
            [
                {**row, "answer": q.answers[0], "vicuna": "no"}
                for row, q in zip(rows, asked, strict=True)
            ],
            tmp_path,
        )


def test_numbers_and_dates_are_answers_where_right_answers_are(tmp_path: Path) -> None:
    for gold, said in (
        ("3", 4),
        ("3", "4"),
        ("two", 3),
        ("10:10", "9:05"),
        ("2019-01-02", "2018-01-02"),
    ):
        rows = [{"id": f"q{i}", "question": f"What is {i}?", "answer": gold} for i in range(3)]
        asked = load("own", samples.lines(tmp_path / "q.jsonl", rows))
        file = [
            {"id": q.id, "answer": gold, "vicuna": said if i else "5"} for i, q in enumerate(asked)
        ]
        with pytest.raises(DataError, match=DOUBTED):
            read("own", asked, file, tmp_path)


# --- rows of two makers ---


@pytest.mark.parametrize("task", [task for task in MADE if task != "textvqa"])
def test_gold_in_some_rows_is_not_joined_with_answers_in_others(task: str, tmp_path: Path) -> None:
    asked = load(task, *sources(task, tmp_path))
    said = [wrong(task, q.answers[0]) for q in asked]
    for name in ("prediction", "response", "text"):
        mixed = [
            {"question_id": q.id, **({"answer": q.answers[0]} if i % 2 else {name: said[i]})}
            for i, q in enumerate(asked)
        ]
        with pytest.raises(
            DataError, match=r"'answer' is right wherever it is: it may hold the right answers"
        ):
            read(task, asked, mixed, tmp_path)
        echoed = [
            {"question_id": q.id, **({"text": q.text} if i % 2 else {"output": said[i]})}
            for i, q in enumerate(asked)
        ]
        with pytest.raises(DataError, match="the column 'text' holds is the text of the questions"):
            read(task, asked, echoed, tmp_path)
        joined = [
            {"question_id": q.id, ("answer" if i % 2 else name): said[i]}
            for i, q in enumerate(asked)
        ]  # the control
        given = read(task, asked, joined, tmp_path)
        assert given.answers == said
        assert [one.code for one in given.caveats] == ["answer-column"]
        assert f"'{name}' and 'answer', of which each row has one" in given.caveats[0].what


# --- what was asked, as an answer ---

OPTIONS = "options"
TEMPLATES = (
    "USER: <image>\n{} Please answer yes or no. ASSISTANT:",
    "<|im_start|>user\n<image>{}<|im_end|>\n<|im_start|>assistant\n",
    "[INST] {} [/INST]",
    "Question: {}\nAnswer:",
    "Question: {} Short answer:",
    "### Instruction:\n{}\n\n### Response:",
    "Look at the image and answer.\n{}",
    "{}\nAnswer the question using a single word or phrase.",
    "Frage: {} Antworte mit einem Wort.",
    "问题：{}请用一个词回答。",
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["answer", "text", "response"])
@pytest.mark.parametrize("task", [task for task in MADE if task != "textvqa"])
def test_a_prompt_around_each_question_is_no_answer(
    task: str, name: str, template: str, tmp_path: Path
) -> None:
    asked = load(task, *sources(task, tmp_path))
    said = [wrong(task, q.answers[0]) for q in asked]

    def prompt(q: Question) -> str:
        options = "".join(
            f" ({letter}) {choice}" for letter, choice in zip("ABCDE", q.choices, strict=False)
        )
        return template.format(q.text + (f" Options:{options}" if options else ""))

    with pytest.raises(DataError, match="the text of the questions"):
        read(task, asked, [{"question_id": q.id, name: prompt(q)} for q in asked], tmp_path)
    beside = [
        {"question_id": q.id, name: prompt(q), "output": text}
        for q, text in zip(asked, said, strict=True)
    ]
    assert read(task, asked, beside, tmp_path).answers == said
    # the control: it goes on
    answered = [{"question_id": q.id, name: f"{prompt(q)}\n{q.answers[0]}"} for q in asked]
    assert read(task, asked, answered, tmp_path).answers == [row[name] for row in answered]


@pytest.mark.parametrize(
    "text",
    [
        "Describe this image.", "Please answer the question.", "What is in the picture?",
        "请描述这张图片。", "Beschreibe dieses Bild kurz.", "Décris cette image.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", [task for task in MADE if task != "textvqa"])
def test_one_prompt_in_all_rows_is_no_answer(task: str, text: str, tmp_path: Path) -> None:
    asked = load(task, *sources(task, tmp_path))
    with pytest.raises(DataError, match="the text of the questions"):
        read(task, asked, [{"question_id": q.id, "text": text} for q in asked], tmp_path)
    said = [wrong(task, q.answers[0]) for q in asked]
    rows = [
        {"question_id": q.id, "text": text, "output": one}
        for q, one in zip(asked, said, strict=True)
    ]
    assert read(task, asked, rows, tmp_path).answers == said


@pytest.mark.parametrize(
    "text",
    [
        "yes", "Yes, there is one.", "A", "I'm sorry, I cannot help.",
        "a man riding a wave on a surfboard", "", "Please provide the image.",
        "Could you upload a picture?", "<html>502 Bad Gateway</html>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", [task for task in MADE if task != "textvqa"])
def test_one_answer_in_all_rows_is_scored(task: str, text: str, tmp_path: Path) -> None:
    """A blind model's, or a broken one's: what it is worth is its figure."""
    asked = load(task, *sources(task, tmp_path))
    assert read(
        task, asked, [{"question_id": q.id, "text": text} for q in asked], tmp_path
    ).answers == [text] * len(asked)


def test_a_sentence_that_asks_is_right_where_it_is_the_right_answer(tmp_path: Path) -> None:
    rows = [
        {"id": f"q{i}", "question": f"What does sign {i} say?", "answer": "Please answer the door"}
        for i in range(3)
    ]
    asked = load("own", samples.lines(tmp_path / "q.jsonl", rows))
    given = read(
        "own", asked, [{"id": q.id, "text": "please answer the door"} for q in asked], tmp_path
    )
    assert given.answers == ["please answer the door"] * 3


def test_a_model_that_repeats_the_question_does_not_make_gold_the_answers(tmp_path: Path) -> None:
    asked = eight_pope(tmp_path)
    said = [wrong("pope", q.answers[0]) for q in asked]
    rows = [
        {"question_id": q.id, "answer": q.answers[0], "response": f"{q.text} {text}"}
        for q, text in zip(asked, said, strict=True)
    ]
    assert read("pope", asked, rows, tmp_path).answers == [row["response"] for row in rows]
    unclear = [
        {"question_id": q.id, "answer": q.answers[0], "text": f"{q.text} {text}"}
        for q, text in zip(asked, said, strict=True)
    ]
    with pytest.raises(
        DataError, match=r"several columns that could be the answers; got 'answer', 'text'"
    ):
        read("pope", asked, unclear, tmp_path)


@pytest.mark.parametrize(
    "form",
    [
        "USER: {} ASSISTANT: Yes",
        "Question: {} Answer: Yes",
        "{} Yes",
        "{}\nYes",
        "{} Please answer yes or no. Answer: yes",
    ],
)
def test_a_blind_model_that_repeats_the_question_is_scored(form: str, tmp_path: Path) -> None:
    asked = eight_pope(tmp_path)
    rows = [{"question_id": q.id, "text": form.format(q.text)} for q in asked]
    assert read("pope", asked, rows, tmp_path).answers == [row["text"] for row in rows]


def test_the_control_a_row_of_its_own_is_no_echo() -> None:
    asked = [
        Question(str(i), None, f"Is there a {thing}?", ("yes",), "x")
        for i, thing in enumerate(("dog", "cat", "cow"))
    ]

    def never(question: Question, text: str) -> bool:
        return False

    assert detect_echo([(q, f"Question: {q.text} Answer:") for q in asked], never) == "whole"
    assert detect_echo([(q, f"Question: {q.text} Answer: yes") for q in asked], never) == "no"
    assert detect_echo([(q, f"{q.text} {i}") for i, q in enumerate(asked)], never) == "begins"
    assert detect_echo([(q, f"Question: {asked[0].text} Answer:") for q in asked], never) == "no"


# --- numbers and texts that contradict each other ---


@pytest.mark.parametrize("name", ["question", "prompt", "text", "Query"])
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "<image>\n{}",
        "{}\nAnswer the question using a single word or phrase.",
        "{} Please answer yes or no.",
    ],
)
def test_a_number_that_its_text_contradicts_is_refused(
    name: str, form: str, tmp_path: Path
) -> None:
    asked = eight_pope(tmp_path)

    def rows(by: int, of: int = 8) -> list[Row]:
        texts = [asked[(i + by) % 8].text if i < of else q.text for i, q in enumerate(asked)]
        return [
            {"question_id": q.id, name: form.format(text), "output": q.answers[0]}
            for q, text in zip(asked, texts, strict=True)
        ]

    for by, of in ((1, 8), (2, 8), (7, 8), (1, 4), (1, 1)):
        with pytest.raises(
            DataError,
            match=(
                rf"has the number of question '?0'?, and in '{name}' the text of question"
                rf" '?{by}'?.* {of} of 8 rows"
            ),
        ):
            read("pope", asked, rows(by, of), tmp_path)
    # the control
    assert read("pope", asked, rows(0), tmp_path).answers == [q.answers[0] for q in asked]
    if name == "text":
        return  # words that nobody asked may be the answers
    reworded = [{**row, name: f"Can you see one, number {i}?"} for i, row in enumerate(rows(0))]
    assert read("pope", asked, reworded, tmp_path).answers == [q.answers[0] for q in asked]


def test_questions_of_one_number_are_told_apart_by_their_texts(tmp_path: Path) -> None:
    """MME's two questions about a picture, the second of them first."""
    asked = load("mme", *sources("mme", tmp_path))
    rows = [
        {
            "question_id": q.group,
            "question": q.text.split("?")[0] + "?",
            "prediction": f"{q.answers[0]} {i}",
        }
        for i, q in enumerate(asked)
    ]
    turned = [rows[i ^ 1] for i in range(len(rows))]
    for one in (rows, turned):
        assert read("mme", asked, one, tmp_path).answers == [row["prediction"] for row in rows]
    # the control: only the order tells
    bare = [{"question_id": row["question_id"], "prediction": row["prediction"]} for row in turned]
    assert read("mme", asked, bare, tmp_path).answers == [row["prediction"] for row in turned]
