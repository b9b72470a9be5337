"""Answers as people really bring them (issue 24): the column that is scored, thoughts, options that
read "None", other languages.

Each kind has a generator, and a control that shows that the guard trips.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import Question
from phisense.errors import DataError
from phisense.evaluation.answer_metrics import OPTION_LETTERS, is_final_answer_correct
from phisense.evaluation.caveats import of_thoughts
from phisense.evaluation.predictions_io import read_answers
from phisense.evaluation.scores import score_predictions
from phisense.evaluation.task import score_answer
from phisense.evaluation.tasks import TASKS

from ..conftest import ROOT
from . import samples, samples_more
from .test_tasks import figures, load

Scored = dict[str, Any]


@pytest.fixture
def reported(fixtures: Path) -> Path:
    folder = fixtures / "reported"
    if not folder.is_dir():
        pytest.skip(f"no situations from reports: {folder} does not exist")
    return folder


def scored(
    verb: Any, task: str, questions: list[str] | str, answers: str | Path, *more: object
) -> Scored:
    named = [
        word
        for one in ([questions] if isinstance(questions, str) else questions)
        for word in ("--questions", one)
    ]
    found: Scored = verb("score", task, *named, "--answers", answers, *more)
    return found


def headline(found: Scored) -> float:
    return float(found["figures"][found["headline"]]["value"])


def codes(found: Scored) -> dict[str, int]:
    return {one["code"]: one["count"] for one in found["caveats"]}


# --- the situations of ../shared/fixtures/reported ---


def test_the_column_of_the_model_is_scored_not_gold(verb: Any, reported: Path) -> None:
    folder = reported / "01-score-takes-gold"
    found = scored(verb, "mmbench", str(folder / "dev.tsv"), folder / "result.csv")
    assert headline(found) == 0.0
    [caveat] = found["caveats"]
    assert caveat["code"] == "answer-column"
    assert "'prediction'" in caveat["what"]
    assert "'answer' holds the right answers" in caveat["what"]
    told = scored(
        verb, "mmbench", str(folder / "dev.tsv"), folder / "result.csv", "--answer-column", "answer"
    )
    assert (headline(told), codes(told)) == (1.0, {"gold-column": 4})


@pytest.mark.parametrize("file", ["result.jsonl", "result-output.jsonl", "result-official.json"])
def test_the_text_of_a_question_is_no_answer(file: str, verb: Any, reported: Path) -> None:
    folder = reported / "02-score-takes-question"
    assert (
        headline(scored(verb, "pope", str(folder / "coco_pope_random.json"), folder / file)) == 0.0
    )


@pytest.mark.parametrize(
    ("task", "questions", "answers", "thoughts"),
    [
        ("pope", "coco_pope_random.json", "think.jsonl", 4),
        ("pope", "coco_pope_random.json", "tags.jsonl", 4),
        ("mmbench", "dev.tsv", "mmb.jsonl", 2),
        ("own", "own.jsonl", "own-answers.jsonl", 1),
    ],
)
def test_what_stands_behind_a_thought_is_scored(
    task: str, questions: str, answers: str, thoughts: int, verb: Any, reported: Path
) -> None:
    folder = reported / "03-reasoning-tags"
    found = scored(verb, task, str(folder / questions), folder / answers)
    assert (headline(found), codes(found)) == (1.0, {"thought": thoughts})


def test_an_option_that_reads_none_is_an_option(verb: Any, reported: Path) -> None:
    folder = reported / "04-option-none"
    for questions, answers, missing in (
        ("first.tsv", "a.jsonl", 3),
        ("third.tsv", "b.jsonl", 2),
        ("last.tsv", "c.jsonl", 1),
    ):
        found = scored(
            verb, "mmbench", str(folder / questions), folder / answers, "--allow-missing"
        )
        assert (found["questions"], found["missing"]) == (4, missing)
        with pytest.raises(DataError, match=f"no answer to {missing} of 4"):
            scored(verb, "mmbench", str(folder / questions), folder / answers)


def test_answers_in_other_languages(verb: Any, reported: Path) -> None:
    folder = reported / "21-other-languages"
    for answers in ("de.jsonl", "zh.jsonl"):
        found = scored(verb, "pope", str(folder / "coco_pope_random.json"), folder / answers)
        assert (headline(found), found["figures"]["yes_share"]["value"]) == (1.0, 0.5)
    own = scored(verb, "own", str(folder / "own.jsonl"), folder / "own-answers.jsonl")
    assert headline(own) == 1.0  # "红色。" is "红色"
    assert 0.5 < own["figures"]["rouge_l"]["value"] < 1  # the long one is a description, and alike
    captions = scored(
        verb, "captions", str(folder / "captions.json"), folder / "captions-answers.json"
    )
    assert captions["figures"]["bleu_4"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert set(codes(captions)) == {"other-script", "one-picture"}


# --- each task, each name of a column, each company ---


def captions_of_three(folder: Path) -> list[str]:
    rows = [
        {
            "id": name,
            "image": f"{name}.jpg",
            "references": [f"A {name} on a wide green meadow.", f"One {name} stands there."],
        }
        for name in ("cow", "horse", "goat")
    ]
    return [samples.lines(folder / "captions.jsonl", rows)]


def own_questions(folder: Path) -> list[str]:
    rows = [
        {"id": f"q{i}", "question": f"What colour is ball {i}?", "answer": colour}
        for i, colour in enumerate(("red", "blue", "green"))
    ]
    return [samples.lines(folder / "own.jsonl", rows)]


MADE: dict[str, Callable[[Path], list[str]]] = {
    "vqav2": samples.vqav2,
    "gqa": samples.gqa,
    "textvqa": samples.textvqa,
    "scienceqa": samples.scienceqa,
    "pope": lambda folder: [samples.pope(folder)],
    "mmbench": samples.mmbench,
    "mme": lambda folder: samples.mme(folder / "MME"),
    "captions": captions_of_three,
    "own": own_questions,
    "docvqa": samples_more.docvqa,
    "chartqa": samples_more.chartqa,
    "ocrbench": samples_more.ocrbench,
    "mmstar": samples_more.mmstar,
    "ai2d": samples_more.ai2d,
    "realworldqa": samples_more.realworldqa,
    "mmmu": samples_more.mmmu,
    "hallusionbench": samples_more.hallusionbench,
    "amber": samples_more.amber,
}
#: Tasks whose answers are yes or no, and letters. What is wrong reads like an answer, so that the
#: figure is not gold's.
POLAR = ("pope", "mme", "hallusionbench", "amber")
LETTERED = ("mmbench", "scienceqa", "mmstar", "ai2d", "realworldqa", "mmmu")


def wrong(task: str, gold: str) -> str:
    if task in POLAR:
        return {"yes": "No", "no": "Yes"}[gold]
    if task in LETTERED and gold in OPTION_LETTERS:
        return "B" if gold == "A" else "A"
    return "a purple submarine"


def sources(task: str, folder: Path) -> list[str]:
    return MADE[task](folder)


COLUMNS = (
    "answer",
    "text",
    "prediction",
    "pred",
    "response",
    "output",
    "model_answer",
    "generated_text",
    "completion",
    "result",
    "caption",
)


@pytest.mark.slow
@pytest.mark.parametrize("task", MADE)
def test_no_company_of_a_column_makes_gold_or_the_question_the_answer(
    task: str, tmp_path: Path
) -> None:
    """For each name of the answers' column, with a column of gold, of the question, or both beside
    it, before it or behind it.
    """
    asked = load(task, *sources(task, tmp_path))
    said = [wrong(task, q.answers[0]) for q in asked]
    gold = [q.answers[0] for q in asked]
    # the control: taking gold would show
    assert figures(task, asked, said) != figures(task, asked, gold)

    def rows(
        name: str, gold: str | None, question: str | None, first: bool
    ) -> list[dict[str, Any]]:
        made = []
        for q, answer in zip(asked, said, strict=True):
            beside = {
                **({gold: q.answers[0]} if gold else {}),
                **({question: q.text} if question else {}),
            }
            ours = {name: answer}
            made.append({"question_id": q.id, **(ours | beside if first else beside | ours)})
        return made

    for name in COLUMNS:
        for gold_name, question, first in itertools.product(
            (None, "answer", "label", "gt_answer"), (None, "text", "question"), (True, False)
        ):
            if name in (gold_name, question):
                continue
            file = Path(samples.lines(tmp_path / "a.jsonl", rows(name, gold_name, question, first)))
            given = read_answers(file, TASKS[task], asked)
            assert given.answers == said, (name, gold_name, question, first)
            several = gold_name == "answer" or question == "text"
            assert [one.code for one in given.caveats] == (["answer-column"] if several else []), (
                name,
                gold_name,
                question,
                first,
            )
            assert read_answers(file, TASKS[task], asked, column=name).answers == said


@pytest.mark.slow
@pytest.mark.parametrize("task", MADE)
def test_questions_texts_alone_are_never_answers(task: str, verb: Any, tmp_path: Path) -> None:
    questions = sources(task, tmp_path)
    asked = load(task, *questions)
    for name in ("answer", "text", "response"):
        file = samples.lines(
            tmp_path / "a.jsonl", [{"question_id": q.id, name: q.text} for q in asked]
        )
        with pytest.raises(
            DataError, match=f"what the column '{name}' holds is the text of the questions"
        ):
            scored(verb, task, questions, file)
        with pytest.raises(DataError, match="the text of the questions"):
            scored(verb, task, questions, file, "--answer-column", name)


def test_a_question_that_goes_on_is_a_question(verb: Any, tmp_path: Path) -> None:
    """With how to answer behind it, on its line or the next; a model that repeats the question and
    answers it has answered.
    """
    questions = samples.pope(tmp_path)
    asked = load("pope", questions)
    for end in (
        " Please answer yes or no.",
        "\nAnswer the question using a single word or phrase.",
    ):
        rows = [
            {
                "question_id": q.id,
                "text": q.text + end,
                "output": "Yes" if q.answers[0] == "no" else "No",
            }
            for q in asked
        ]
        assert (
            headline(scored(verb, "pope", questions, samples.lines(tmp_path / "a.jsonl", rows)))
            == 0.0
        )
        alone = samples.lines(
            tmp_path / "b.jsonl",
            [{"question_id": row["question_id"], "text": row["text"]} for row in rows],
        )
        with pytest.raises(DataError, match="the text of the questions"):
            scored(verb, "pope", questions, alone)
    echoed = samples.lines(
        tmp_path / "c.jsonl", [{"question_id": q.id, "text": f"{q.text} Yes"} for q in asked]
    )
    assert scored(verb, "pope", questions, echoed)["questions"] == 4


def test_gold_alone_in_a_copy_of_the_questions_is_refused(verb: Any, tmp_path: Path) -> None:
    """A copy whose predictions stand under a name that nobody knows; a perfect model's answers
    alone are scored.
    """
    questions = samples.mmbench(tmp_path)
    asked = load("mmbench", *questions)
    copy = [{"index": q.id, "question": "?", "A": "x", "answer": q.answers[0]} for q in asked]
    # not even right: gold of another rotation
    half = [{**row, "answer": "A", "llava": row["answer"]} for row in copy]
    with pytest.raises(
        DataError,
        match=(
            r"the column 'answer' is a field of the benchmark's own file, and may hold the right"
            r" answers"
        ),
    ):
        scored(verb, "mmbench", questions, samples.lines(tmp_path / "h.jsonl", half))
    for rows in (
        copy,
        [{**row, "llava": "A"} for row in copy],
        [{"index": q.id, "answer": q.answers[0], "llava": "A"} for q in asked],
    ):
        file = samples.lines(tmp_path / "a.jsonl", rows)
        with pytest.raises(
            DataError,
            match=(
                r"the column 'answer' is right in all 5 rows.*--answer-column NAME, which may be"
                r" this one"
            ),
        ):
            scored(verb, "mmbench", questions, file)
        found = scored(verb, "mmbench", questions, file, "--answer-column", "answer")
        assert headline(found) == 1.0
        assert codes(found).get("gold-column", 0) == (5 if "question" in rows[0] else 0)
    assert (
        headline(
            scored(
                verb,
                "mmbench",
                questions,
                samples.lines(tmp_path / "a.jsonl", [{**r, "llava": "A"} for r in copy]),
                "--answer-column",
                "LLaVA",
            )
        )
        == 0.0
    )
    perfect = samples.lines(
        tmp_path / "p.jsonl", [{"index": q.id, "answer": q.answers[0]} for q in asked]
    )
    assert (
        headline(scored(verb, "mmbench", questions, perfect)),
        codes(scored(verb, "mmbench", questions, perfect)),
    ) == (1.0, {})


def test_many_answers_that_are_all_right_are_doubted(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": f"What is {i}?", "answer": f"w{i}"} for i in range(20)]
    asked = load("own", samples.lines(tmp_path / "q.jsonl", rows))
    for n, doubted in ((20, ["all-right"]), (19, [])):
        for name in ("answer", "prediction"):
            said = [{"id": row["id"], name: row["answer"]} for row in rows[:n]]
            given = read_answers(
                Path(samples.lines(tmp_path / "a.jsonl", said)),
                TASKS["own"],
                asked,
                allow_missing=True,
            )
            assert [one.code for one in given.caveats] == doubted


def test_the_predictions_of_a_report_are_answers(tmp_path: Path) -> None:
    """predictions.jsonl of `phisense evaluate` holds question, right answers and what was said."""
    asked = load("own", *own_questions(tmp_path))
    rows = [
        {
            "id": q.id,
            "kind": q.kind,
            "image": "a.jpg",
            "shown": "a.jpg",
            "question": q.text,
            "answers": list(q.answers),
            "condition": "real",
            "answer": "blue",
            "credit": 0.0,
            "loss": None,
            "tokens": 3,
            "right": False,
        }
        for q in asked
    ]
    assert (
        read_answers(Path(samples.lines(tmp_path / "p.jsonl", rows)), TASKS["own"], asked).answers
        == ["blue"] * 3
    )


def test_empty_answers_are_counted(verb: Any, tmp_path: Path) -> None:
    rows = [{"question_id": i, "answer": text} for i, text in enumerate(("yes", "", " ", "no"), 1)]
    found = scored(verb, "pope", samples.pope(tmp_path), samples.lines(tmp_path / "a.jsonl", rows))
    assert (codes(found), headline(found)) == ({"empty": 2}, 0.5)


def test_two_columns_of_answers_are_asked_about(verb: Any, tmp_path: Path) -> None:
    questions = samples.pope(tmp_path)
    rows = [{"question_id": i, "response": "yes", "output": "no"} for i in range(1, 5)]
    file = samples.lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError,
        match=(
            r"several columns that could be the answers; got 'response', 'output'; wanted"
            r" one.*--answer-column"
        ),
    ):
        scored(verb, "pope", questions, file)
    assert (
        scored(verb, "pope", questions, file, "--answer-column", "output")["figures"]["yes_share"][
            "value"
        ]
        == 0.0
    )
    assert (
        scored(verb, "pope", questions, file, "--answer-column", "response")["figures"][
            "yes_share"
        ]["value"]
        == 1.0
    )
    with pytest.raises(DataError, match=r"no column 'said'; wanted question_id, response, output"):
        scored(verb, "pope", questions, file, "--answer-column", "said")
    same = [{"question_id": i, "response": "yes", "output": "yes"} for i in range(1, 5)]
    assert (
        scored(verb, "pope", questions, samples.lines(tmp_path / "s.jsonl", same))["figures"][
            "yes_share"
        ]["value"]
        == 1.0
    )


def test_a_perfect_model_beside_gold(verb: Any, tmp_path: Path) -> None:
    questions = samples.pope(tmp_path)
    gold = ("yes", "no", "yes", "no")
    rows = [
        {"question_id": i, "label": one, "answer": one.capitalize() + "."}
        for i, one in enumerate(gold, 1)
    ]
    assert (
        headline(scored(verb, "pope", questions, samples.lines(tmp_path / "a.jsonl", rows))) == 1.0
    )
    rows = [
        {"question_id": i, "answer": one, "prediction": one.capitalize()}
        for i, one in enumerate(gold, 1)
    ]
    found = scored(verb, "pope", questions, samples.lines(tmp_path / "b.jsonl", rows))
    assert headline(found) == 1.0
    assert "'prediction'; 'answer' holds the right answers" in found["caveats"][0]["what"]


# --- how rows are matched ---


@pytest.mark.parametrize("write", [int, str, float, lambda i: f"{i}.0", lambda i: f" {i} "])
@pytest.mark.parametrize("name", ["question_id", "id", "index", "Question_ID", "questionId"])
def test_a_number_is_a_number_however_it_is_written(
    write: Callable[[int], Any], name: str, verb: Any, tmp_path: Path
) -> None:
    rows = [{name: write(i), "answer": one} for i, one in enumerate(("yes", "no", "yes", "no"), 1)]
    assert (
        headline(
            scored(verb, "pope", samples.pope(tmp_path), samples.lines(tmp_path / "a.jsonl", rows))
        )
        == 1.0
    )


def test_popes_own_form_is_matched_in_order_by_its_texts(verb: Any, tmp_path: Path) -> None:
    questions = samples.pope(tmp_path)
    asked = load("pope", questions)
    rows = [{"question": q.text, "answer": q.answers[0]} for q in asked]
    found = scored(verb, "pope", questions, samples.lines(tmp_path / "a.jsonl", rows))
    assert (headline(found), codes(found)) == (1.0, {"by-text": 4})
    assert (
        headline(scored(verb, "pope", questions, samples.lines(tmp_path / "b.jsonl", rows[::-1])))
        == 1.0
    )  # each text is there once
    with pytest.raises(
        DataError, match="row 1 has no question_id or id, and its question is that of 0 questions"
    ):
        scored(
            verb,
            "pope",
            questions,
            samples.lines(tmp_path / "c.jsonl", [{**row, "question": "Is it?"} for row in rows]),
        )
    with pytest.raises(
        DataError, match="row 2 has no question_id or id, and its question is answered twice"
    ):
        scored(
            verb,
            "pope",
            questions,
            samples.lines(tmp_path / "d.jsonl", [rows[0], rows[0], rows[2], rows[3]]),
        )
    with pytest.raises(DataError, match="no answer to 1 of 4"):
        scored(verb, "pope", questions, samples.lines(tmp_path / "e.jsonl", rows[:3]))


def test_an_object_of_answers_is_unwrapped(verb: Any, tmp_path: Path) -> None:
    questions = samples.pope(tmp_path)
    rows = [
        {"question_id": i, "answer": one} for i, one in enumerate(("yes", "no", "yes", "no"), 1)
    ]
    for document in (
        {"1": "yes", "2": "no", "3": "yes", "4": "no"},
        {"model": "m", "results": rows},
        {"predictions": rows},
    ):
        assert (
            headline(scored(verb, "pope", questions, samples.write(tmp_path / "a.json", document)))
            == 1.0
        )
    with pytest.raises(DataError, match="has no question_id or id"):
        scored(
            verb,
            "pope",
            questions,
            samples.write(tmp_path / "a.json", {"1": "yes", "2": "no", "third": "yes"}),
        )


@pytest.mark.slow
def test_lmms_evals_samples(verb: Any, tmp_path: Path) -> None:
    questions = samples.pope(tmp_path)
    asked = load("pope", questions)
    rows = [
        {
            "doc_id": i,
            "target": q.answers[0],
            "resps": [["Hm. Yes"]],
            "filtered_resps": ["Yes"],
            "doc": {"question_id": q.id, "answer": "no"},
        }
        for i, q in enumerate(asked)
    ]
    found = scored(verb, "pope", questions, samples.lines(tmp_path / "a.jsonl", rows))
    assert (headline(found), found["figures"]["yes_share"]["value"]) == (0.5, 1.0)
    without = [{key: value for key, value in row.items() if key != "doc"} for row in rows]
    assert (
        scored(verb, "pope", questions, samples.lines(tmp_path / "b.jsonl", without))["figures"]
        == found["figures"]
    )
    shifted = [{**row, "doc_id": (at + 1) % 4} for at, row in enumerate(without)]
    with pytest.raises(DataError, match="its target is not the right answer"):
        scored(verb, "pope", questions, samples.lines(tmp_path / "c.jsonl", shifted))


@pytest.mark.parametrize("answer", [0, "0", 0.0])
def test_an_answer_of_nought_is_an_answer(answer: object, verb: Any, tmp_path: Path) -> None:
    questions = samples.lines(
        tmp_path / "q.jsonl", [{"id": "1", "question": "How many?", "answer": "0"}]
    )
    found = scored(
        verb, "own", questions, samples.lines(tmp_path / "a.jsonl", [{"id": "1", "answer": answer}])
    )
    assert (headline(found), found["missing"]) == (1.0, 0)


def test_an_empty_cell_is_no_answer_and_none_is_one(verb: Any, tmp_path: Path) -> None:
    questions = samples.lines(
        tmp_path / "q.jsonl",
        [{"id": str(i), "question": f"What is {i}?", "answer": "nan"} for i in (1, 2)],
    )
    table = samples.write(tmp_path / "a.csv", "id,prediction\n1,nan\n2,\n")
    with pytest.raises(DataError, match="row 2 has no answer or text"):
        scored(verb, "own", questions, table)
    found = scored(verb, "own", questions, table, "--allow-missing")
    assert (headline(found), found["missing"]) == (0.5, 1)
    null = samples.lines(
        tmp_path / "null.jsonl",
        [{"id": "1", "question": "What?", "answer": "red", "answers": [None, "red"]}],
    )
    assert load("own", null)[0].answers == ("red",), "null is nothing"


# --- thoughts ---

WRAPPED = {
    "think": "<think>It might be the other: yes, no, A, B.</think>{}",
    "lines": "<think>\nLet me see.\nNo, wait: yes.\n</think>\n\n{}",
    "thinking": "<thinking>No.</thinking> {}",
    "thought": "<Thought>Yes.</Thought>\n{}",
    "reasoning": "<reasoning>B is likely.</reasoning>{}",
    "begin of thought": (
        "<|begin_of_thought|>A?<|end_of_thought|>\n<|begin_of_solution|>{}<|end_of_solution|>"
    ),
    "kimi": "◁think▷Yes or no?◁/think▷{}",
    "only closed": "Is it A? No.\n</think>\n{}",
    "empty thought": "<think>\n\n</think>\n\n{}",
    "answer": "<answer>{}</answer>",
    "answer after thought": "<think>No.</think>\n<answer> {} </answer>",
    "answer in thought": "<think>I shall write <answer>no</answer>.</think><answer>{}</answer>",
    "unclosed answer": "<think>No.</think><answer>{}",
    "boxed": "<think>B.</think>The answer is $\\boxed{{{}}}$.",
    "boxed text": "\\boxed{{\\text{{{}}}}}",
    "box of glm": "<think>No</think><|begin_of_box|>{}<|end_of_box|>",
    "final answer": "<think>No.</think>\n**Final answer:** {}",
    "answer line": "<think>B.</think>\nI looked twice.\nAnswer: {}",
    "llava-cot": (
        "<SUMMARY>s</SUMMARY><CAPTION>no dog</CAPTION><REASONING>B</REASONING>"
        "<CONCLUSION> {} </CONCLUSION>"
    ),
    "gpt-oss": (
        "<|channel|>analysis<|message|>No?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>{}<|return|>"
    ),
    "magistral": "[THINK]No.[/THINK]{}",
    "ollama": "Thinking...\nNo, B.\n...done thinking.\n\n{}",
    "cohere": "<|START_THINKING|>No.<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "medgemma": "<unused94>thought\nNo, B.<unused95>{}",
    "apriel": "Here are my reasoning steps:\nNo, B.\n[BEGIN FINAL RESPONSE]\n{}",
    "think token": "<|think|>No.<|/think|>{}",
    "minimax": "<mm:think>No.</mm:think>\n{}",
    "im_start": "<|im_start|>think\nNo.<|im_start|>answer\n{}",
    "caption of llava-cot": "<SUMMARY>s</SUMMARY>\n<CAPTION>{}</CAPTION>",
    "empty mark first": "<think>No.</think><answer> </answer><answer>{}</answer>",
    "escaped": "&lt;think&gt;No.&lt;/think&gt;{}",
}


@pytest.mark.parametrize("task", MADE)
def test_a_thought_changes_no_figure(task: str, tmp_path: Path) -> None:
    """Half of the answers right, half wrong; wrapped in every way in which models think aloud."""
    asked = load(task, *sources(task, tmp_path))
    said = [q.answers[0] if at % 2 else wrong(task, q.answers[0]) for at, q in enumerate(asked)]

    def units(form: str) -> list[list[float]]:
        marked = [
            score_answer(TASKS[task], q, form.format(answer))
            for q, answer in zip(asked, said, strict=True)
        ]
        return [list(row) for row in TASKS[task].aggregate(marked)]

    for name, form in WRAPPED.items():
        assert units(form) == units("{}"), name
        assert [one.code for one in of_thoughts(form.format(answer) for answer in said)] == [
            "thought"
        ], name
    found = score_predictions(
        TASKS[task], asked, {"real": [f"<think>The answer may well be {answer}" for answer in said]}
    )
    assert (found.caveats[0].code, found.caveats[0].count) == ("cut-off", len(asked))
    assert next(iter(found.real.metrics.values())).value == 0.0


def test_the_control_a_rule_that_reads_the_thought_trips(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from phisense.evaluation import final_answer as module
    from phisense.evaluation.final_answer import FinalAnswer

    [question, *_] = load("pope", samples.pope(tmp_path))
    wrapped = WRAPPED["think"].format("Yes")
    assert score_answer(TASKS["pope"], question, wrapped).score == 1.0
    monkeypatch.setattr(module, "final_answer", lambda text: FinalAnswer(text, "plain"))
    assert score_answer(TASKS["pope"], question, wrapped).score == 0.0


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("answer", ["4", "yes", "no", "red kite"])
def test_right_answers_may_hold_thoughts_too(name: str, answer: str) -> None:
    """As data made by models that think aloud do. Training and tuning judge as `evaluate` does."""
    own, gold = TASKS["own"], WRAPPED[name].format(answer)
    question = Question("1", None, "Well?", (gold,), "short")
    for said in (answer, gold, f"<think>Hm.</think>{answer}", f"\\boxed{{{answer}}}"):
        marked = score_answer(own, question, said)
        assert (marked.score, is_final_answer_correct(said, question.answers)) == (1.0, True), said
        assert list(own.aggregate([marked])[0]) == list(
            own.aggregate([score_answer(own, replace(question, answers=(answer,)), answer)])[0]
        )
    for said in ("other", "<think>" + answer, f"<think>{answer}</think>other"):
        assert (
            score_answer(own, question, said).score,
            is_final_answer_correct(said, question.answers),
        ) == (
            0.0,
            False,
        ), said


def test_an_answer_equal_to_a_right_one_that_does_not_end_is_right() -> None:
    question = Question("1", None, "Which tag?", ("<think>",), "short")
    assert score_answer(TASKS["own"], question, "<think>").score == 1.0
    assert score_answer(TASKS["own"], question, "").score == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "Yes",
        " yes\n",
        "",
        "Answer: yes",
        "Final answer: B",
        "5 < 6",
        "<3",
        "a < b > c",
        "The answer is <b>No</b>.",
        "think",
        "{A}",
        "<image>",
        *(
            form.format(tag)
            for tag in ("analysis", "thought", "think", "reasoning")
            for form in ("The sign says <{}>.", "It shows <{}>bubble")
        ),
        "The button reads </think>",
        "Thinking... about it, the dog is brown",
        "Thinking... yes",
        "The <answer> tag is used in HTML.",
        "Use <response> and <final> tags.",
        "We write \\boxed{} for the answer. The answer is B",
        "answer: <answer> </answer> Yes",
    ],
)
def test_a_plain_answer_is_the_very_same_text(text: str) -> None:
    from phisense.evaluation.final_answer import final_answer

    assert final_answer(text) == (text, "plain")


@pytest.mark.parametrize(
    "text", ["<|START_X|>yes<|END_X|>", "<verdict>yes</verdict>", "yes<|eot_id|>"]
)
def test_tags_that_are_not_known_are_counted(text: str) -> None:
    from phisense.evaluation.final_answer import final_answer

    assert final_answer(text) == (text, "unknown")
    assert [one.code for one in of_thoughts([text, "yes", "a <b>dog</b>"])] == ["markup"]


def test_a_thought_in_the_middle_and_one_without_an_answer() -> None:
    from phisense.evaluation.final_answer import final_answer

    assert final_answer("Sure. <think>It is.</think> No").text == "No"
    assert final_answer("Yes<think>I am done</think>").text == "Yes"
    assert final_answer("<think>a <think>b</think>Yes").text == "Yes"
    assert final_answer("<think>a<think>b</think>c</think>Yes").text == "Yes"
    assert final_answer("<think>so \\boxed{No}? wait") == ("", "cut off")
    assert final_answer("<think>done <answer>Yes</answer>") == ("Yes", "tags")
    assert final_answer("\\boxed{\\frac{1}{2}}").text == "\\frac{1}{2}"
    assert final_answer("<|channel|>analysis<|message|>Hm").how == "cut off"


# --- rules and what they are of ---


@pytest.mark.parametrize("task", ["vqav2", "textvqa"])
def test_few_right_answers(task: str, verb: Any, tmp_path: Path) -> None:
    """Of one to three people VQA's rule would give a perfect model 0 to 2/3."""
    from phisense.evaluation.answer_metrics import vqa_agreement

    for people in range(1, 11):
        row = {
            "question_id": 1,
            "image_id": 7,
            "image": "a.jpg",
            "question": "What colour?",
            "answer_type": "other",
        }
        questions = samples.lines(tmp_path / "q.jsonl", [{**row, "answers": ["red"] * people}])
        found = scored(
            verb,
            task,
            questions,
            samples.lines(tmp_path / "a.jsonl", [{"question_id": 1, "answer": "red"}]),
        )
        assert headline(found) == 1.0, people
        expected = (
            {"few-answers": 1} if people < 4 else {"fewer-than-ten": 1} if people < 10 else {}
        )
        assert codes(found) == expected
        wrong_one = scored(
            verb,
            task,
            questions,
            samples.lines(tmp_path / "w.jsonl", [{"question_id": 1, "answer": "blue"}]),
        )
        assert headline(wrong_one) == 0.0
    # the control: why there is a bound
    assert [vqa_agreement("red", ["red"] * n) < 1 for n in (1, 2, 3, 4)] == [
        True,
        True,
        True,
        False,
    ]


def test_what_no_rule_reads_is_counted(verb: Any, tmp_path: Path) -> None:
    pope = samples.pope(tmp_path)
    for nonsense in (
        "asdf qwer",
        "<html><body>502 Bad Gateway</body></html>",
        "I'm sorry.",
        "Error: timed out",
        "Hund",
        "0815",
    ):
        rows = [{"question_id": i, "answer": nonsense} for i in range(1, 5)]
        found = scored(verb, "pope", pope, samples.lines(tmp_path / "a.jsonl", rows))
        assert (headline(found), found["figures"]["yes_share"]["value"], codes(found)) == (
            0.0,
            0.0,
            {"unreadable": 4},
        ), nonsense
    for task, form in (("mmbench", "no idea"), ("mme", "Ja"), ("scienceqa", "(B)")):
        questions = sources(task, tmp_path / task)
        asked = load(task, *questions)
        found = scored(
            verb,
            task,
            questions,
            samples.lines(
                tmp_path / "b.jsonl", [{"question_id": q.id, "answer": form} for q in asked]
            ),
        )
        assert codes(found)["unreadable"] == len(asked)


def test_answers_to_the_whole_split_of_scienceqa(verb: Any, tmp_path: Path) -> None:
    """LLaVA answers the questions without a picture, too; those of another split are no questions
    of the task.
    """
    questions = samples.scienceqa(tmp_path)
    rows = [
        {"question_id": i, "prompt": "Which?", "text": text, "model_id": "m", "metadata": {}}
        for i, text in (("5", "B"), ("11", "A"), ("12", "A"))
    ]
    found = scored(verb, "scienceqa", questions, samples.lines(tmp_path / "a.jsonl", rows))
    assert (headline(found), found["questions"], codes(found)) == (1.0, 2, {"not-asked": 1})
    for unknown in ("13", "99"):
        with pytest.raises(
            DataError, match=f"answers 1 questions that are not among the 2; got '{unknown}'"
        ):
            scored(
                verb,
                "scienceqa",
                questions,
                samples.lines(tmp_path / "b.jsonl", [*rows, {"question_id": unknown, "text": "A"}]),
            )
    gqa = samples.gqa(tmp_path / "gqa")
    told = [
        {"questionId": i, "prediction": p}
        for i, p in (("201307251", "no"), ("201640614", "woman"), ("201640615", "sky"))
    ]
    assert codes(scored(verb, "gqa", gqa, samples.lines(tmp_path / "g.jsonl", told))) == {
        "not-asked": 1
    }


def test_the_caveats_are_told_on_the_console(
    verb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question_id": i, "answer": "<think>Hm.</think>Yes"} for i in range(1, 5)]
    scored(verb, "pope", samples.pope(tmp_path), samples.lines(tmp_path / "a.jsonl", rows))
    assert "4 answers hold a thought or tags" in " ".join(capsys.readouterr().err.split())
    assert (
        json.loads(
            json.dumps(
                scored(verb, "pope", samples.pope(tmp_path), str(tmp_path / "a.jsonl"))["caveats"]
            )
        )[0]["count"]
        == 4
    )


def test_every_code_of_a_caveat_is_documented() -> None:
    """In the table of docs/evaluation.md and at the head of caveats.py; and every code that the
    source gives is one of these.
    """
    from phisense.evaluation import caveats

    room = Path(caveats.__file__).parent
    given = {
        code
        for path in room.rglob("*.py")
        for code in re.findall(r'(?:Caveat|counted)\(\s*"([a-z-]+)"', path.read_text())
    }
    listed = set(re.findall(r"^([a-z-]+)  +[a-zA-Z]", str(caveats.__doc__), re.M))
    page = (ROOT / "docs" / "evaluation.md").read_text()
    table = set(
        re.findall(
            r"`([a-z-]+)`",
            " ".join(
                re.findall(
                    r"^\| (`[a-z-]+`.*?) \|",
                    page.split("**Caveats.**")[1].split("**Other")[0],
                    re.M,
                )
            ),
        )
    )
    assert given == listed == table
