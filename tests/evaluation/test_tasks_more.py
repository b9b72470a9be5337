"""The benchmarks of documents, diagrams, subjects and hallucinations: official files are read,
questions put in the published words, and scores worked out by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import DataError
from phisense.evaluation.tasks import TASKS

from . import samples, samples_more
from .test_tasks import figures, load

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def facts(name: str, folder: Path) -> list[tuple[object, ...]]:
    questions = load(name, *getattr(samples_more, name)(folder))
    return [(q.id, q.image, q.answers, q.kind) for q in questions]


def prompts(name: str, folder: Path) -> list[str]:
    questions = load(name, *getattr(samples_more, name)(folder))
    return [TASKS[name].prompt(question) for question in questions]


def found(name: str, folder: Path, *said: str) -> dict[str, float]:
    return figures(name, load(name, *getattr(samples_more, name)(folder)), list(said))


def test_docvqa(tmp_path: Path) -> None:
    assert facts("docvqa", tmp_path) == [
        ("337", "documents/xnbl0037_1.png", ("1/8/93",), "handwritten"),
        ("338", "documents/xnbl0037_1.png", ("P. Carter", "p carter"), "form"),
    ]
    asks = "what is the date mentioned in this letter?"
    assert prompts("docvqa", tmp_path)[0] == f"{asks}\n{SHORT}"
    # one of six characters is wrong; one of ten, of the likelier reference
    said = found("docvqa", tmp_path, "1/8/98", "P  CARTER.")
    assert said == {"anls": pytest.approx((5 / 6 + 9 / 10) / 2)}
    assert found("docvqa", tmp_path, "1/8/93 or later", "nobody") == {"anls": 0.0}


def test_anls_at_the_threshold_and_without_letters() -> None:
    """By hand: half of the characters keep half of the credit; lengths are those in upper case."""
    score = TASKS["docvqa"].score
    [question] = [load_one("docvqa", {"id": 1, "question": "?", "answers": ["abcd"]})]
    assert [score(question, said) for said in ("abxy", "abxyz", "")] == [0.5, 0.0, 0.0]
    assert score(question, " ABCD ") == pytest.approx(1.0)
    [street] = [load_one("docvqa", {"id": 1, "question": "?", "answers": ["straße"]})]
    assert score(street, "strasse") == pytest.approx(1 - 2 / 7)


def load_one(name: str, row: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        [question] = load(name, samples.lines(Path(folder) / "rows.jsonl", [row]))
    return question


def test_docvqas_test_split_has_no_answers(tmp_path: Path) -> None:
    row = {"questionId": 1, "question": "?", "image": "documents/a.png"}
    file = samples.write(tmp_path / "test_v1.0.json", {"data": [row]})
    with pytest.raises(DataError, match="question 1 has a row without answers"):
        load("docvqa", file)


def test_chartqa(tmp_path: Path) -> None:
    assert facts("chartqa", tmp_path) == [
        ("human/0", "41699051005347.png", ("14",), "human"),
        ("human/1", "41810321001157.png", ("Green",), "human"),
        ("augmented/0", "two_col_1365.png", ("26.5",), "augmented"),
    ]
    asks = "How many food items are there?\nAnswer the question with a single word."
    assert prompts("chartqa", tmp_path)[0] == asks
    assert found("chartqa", tmp_path, "14.5", "green", "26.5%") == {
        "relaxed_accuracy": 2 / 3,
        "human_relaxed_accuracy": 1.0,
        "augmented_relaxed_accuracy": 0.0,
    }
    [human] = [load("chartqa", samples_more.chartqa(tmp_path)[0])]
    assert figures("chartqa", human, ["15", "Green"]) == {"relaxed_accuracy": 0.5}


@pytest.mark.parametrize(("name", "figure"), [("docvqa", "anls"), ("chartqa", "relaxed_accuracy")])
def test_rows_of_your_own_are_scored_by_these_rules(
    name: str, figure: str, verb: Any, tmp_path: Path
) -> None:
    rows = [
        {"id": f"q{i}", "image": "a.png", "question": "How much?", "answers": [right]}
        | {"answer": right}
        for i, right in enumerate(("100", "Carter"))
    ]
    asked = samples.lines(tmp_path / "own.jsonl", rows)
    said = [{"id": "q0", "response": "100"}, {"id": "q1", "response": "carter"}]
    answers = samples.lines(tmp_path / "answers.jsonl", said)
    scored = verb("score", name, "--questions", asked, "--answers", answers)
    assert scored["figures"][figure]["value"] == 1.0


def test_ocrbench(tmp_path: Path) -> None:
    kinds = ["Regular Text Recognition"] * 2 + ["Doc-oriented VQA"]
    assert facts("ocrbench", tmp_path)[:3] == [
        ("IIIT5K/2843", "IIIT5K/test/2843.png", ("CENTRE",), kinds[0]),
        ("svt/2843", "svt/test/2843.png", ("palace",), kinds[1]),
        ("docVQA/7", "docVQA/test/7.png", ("1/8/93", "8 January"), kinds[2]),
    ]
    assert prompts("ocrbench", tmp_path)[0] == "what is written in image 2843?"
    said = ("It says ＣＥＮＴＲＥ.", "place", "on 8 january", "\\frac{1}{x+y}=2")
    assert found("ocrbench", tmp_path, *said) == {
        "accuracy": 0.75,
        "text_recognition": 0.5,
        "documents": 1.0,
        "expressions": 1.0,
    }
    # of expressions case counts
    assert found("ocrbench", tmp_path, "", "", "", "\\Frac{1}{X+Y}=2")["expressions"] == 0.0


def test_ocrbenchs_rows_that_are_numbered_alike(tmp_path: Path) -> None:
    rows = json.loads(Path(samples_more.ocrbench(tmp_path)[0]).read_text())
    questions = load("ocrbench", samples.write(tmp_path / "two.json", [rows[0], rows[0]]))
    assert [q.id for q in questions] == ["IIIT5K/2843", "IIIT5K/2843#2"]


def test_mmstar(tmp_path: Path) -> None:
    assert facts("mmstar", tmp_path)[1] == ("1", "1.jpg", ("B",), "geometry")
    asks = "Which option describes it, 0?\nOptions: A: a, B: b, C: c, D: d"
    assert prompts("mmstar", tmp_path)[0] == f"{asks}\n{LETTER.removesuffix('.')}"
    said = found("mmstar", tmp_path, "A", "The answer is B.", "b")
    assert said == {"accuracy": pytest.approx(2 / 3), "average": pytest.approx((1 + 0.5) / 2)}
    # the rule's own ways: a capital inside a word is a letter where nothing else is
    assert found("mmstar", tmp_path, "BREAD", "BREAD", "C, not A")["accuracy"] == 1 / 3


def test_ai2d_of_the_release(tmp_path: Path) -> None:
    assert facts("ai2d", tmp_path) == [
        ("1001.png-0", "abc_images/1001.png", ("B",), "letters in the diagram"),
        ("1001.png-1", "images/1001.png", ("A",), "texts"),
    ]
    asks = f"Which is the stem?\nA. A\nB. B\nC. F\nD. H\n{LETTER}"
    assert prompts("ai2d", tmp_path)[0] == asks
    assert found("ai2d", tmp_path, "B. B", "(a)") == {"accuracy": 1.0}
    assert found("ai2d", tmp_path, "It is B", "deer") == {
        "accuracy": 0.0,
        "accuracy_any_wording": 1.0,
    }
    (tmp_path / "ai2d" / "ai2d_test_ids.csv").rename(tmp_path / "ai2d_test_ids.csv")
    assert len(load("ai2d", str(tmp_path / "ai2d"))) == 2
    (tmp_path / "ai2d_test_ids.csv").unlink()
    with pytest.raises(DataError, match="does not say which diagrams.*wanted ai2d_test_ids.csv"):
        load("ai2d", str(tmp_path / "ai2d"))


def test_realworldqa(tmp_path: Path) -> None:
    assert facts("realworldqa", tmp_path) == [
        ("0", "0.webp", ("B",), "multiple choice"),
        ("1", "1.webp", ("3",), "open"),
    ]
    assert prompts("realworldqa", tmp_path)[1] == "How many? Please answer directly."
    assert found("realworldqa", tmp_path, "(B)", "3.") == {"accuracy": 1.0}
    assert found("realworldqa", tmp_path, "right", "three") == {"accuracy": 0.0}


def test_mmmu(tmp_path: Path) -> None:
    assert facts("mmmu", tmp_path) == [
        ("validation_Accounting_1", None, ("B",), "Accounting"),
        ("validation_Math_2", None, ("24/7", "3.429"), "Math"),
    ]
    options = "A. $6\nB. $7\nC. it's 8"
    assert prompts("mmmu", tmp_path) == [
        f"<image 1> What is the cost?\n{options}\n\n{LETTER}",
        f"Find x in <image 1>.\n\n{SHORT}",
    ]
    assert found("mmmu", tmp_path, "(B) $7", "x = 3.43") == {
        "accuracy": 1.0,
        "business": 1.0,
        "science": 1.0,
    }
    assert found("mmmu", tmp_path, "C", "about 3.4")["accuracy"] == 0.0


def test_mmmu_counts_what_it_does_not_ask_and_what_it_draws(verb: Any, tmp_path: Path) -> None:
    [source] = samples_more.mmmu(tmp_path)
    said = [
        {"id": f"validation_{number}", "response": answer}
        for number, answer in (("Accounting_1", "?"), ("Math_2", "24/7"), ("Music_3", "A"))
    ]
    answers = samples.lines(tmp_path / "answers.jsonl", said)
    scored = verb("score", "mmmu", "--questions", source, "--answers", answers)
    assert {one["code"]: one["count"] for one in scored["caveats"]} == {
        "left-out": 2,
        "not-asked": 1,
        "drawn": 1,
    }
    assert [one["what"] for one in scored["caveats"] if one["code"] == "left-out"] == [
        "questions show several pictures, and were not asked"
    ]


def test_hallusionbench(tmp_path: Path) -> None:
    assert facts("hallusionbench", tmp_path)[0] == (
        "VD/map/0/0/0",
        "hallusion_bench/VD/map/0_0.png",
        ("yes",),
        "map",
    )
    assert prompts("hallusionbench", tmp_path)[1] == "Is circle 1 of figure 0 larger?"
    right = ("Yes.", "No, it is not.", "no", "Yes", "No")
    assert found("hallusionbench", tmp_path, *right) == {"a_acc": 1.0, "f_acc": 1.0, "q_acc": 1.0}
    # the second figure's second question is wrong: one of three figures, one of three questions
    said = found("hallusionbench", tmp_path, "Yes.", "No.", "no", "No", "No")
    assert said == {"a_acc": 4 / 5, "f_acc": 2 / 3, "q_acc": 2 / 3}
    # lmms-eval finds "yes" in "yesterday", and a statement is no yes
    odd = found("hallusionbench", tmp_path, "It is.", "not yesterday", "no", "Yes", "No")
    assert (odd["a_acc"], odd["lmms_a_acc"]) == (1.0, 3 / 5)
    assert TASKS["hallusionbench"].ignored_ids(samples_more.hallusionbench(tmp_path)) == {
        "VS/map/0/0/0"
    }


@pytest.mark.parametrize(
    ("name", "column", "headline"),
    [("ocrbench", "predict", "accuracy"), ("hallusionbench", "model_prediction", "a_acc")],
)
@pytest.mark.parametrize("sampled", [False, True], ids=["official", "lmms-eval"])
def test_results_that_number_their_rows_by_several_fields(
    name: str, column: str, headline: str, sampled: bool, verb: Any, tmp_path: Path
) -> None:
    """The benchmark's own results are its file with a column more, lmms-eval's hold a row of it."""
    [source] = getattr(samples_more, name)(tmp_path)
    asked = {q.id: q for q in load(name, source)}
    rows = []
    for row in json.loads(Path(source).read_text()):
        number = named(name, row)
        said = asked[number].answers[0] if number in asked else "Yes"
        said = said if rows else "unsaid"  # the first is wrong
        rows.append({"doc": row, "filtered_resps": [said]} if sampled else {**row, column: said})
    answers = samples.write(tmp_path / "results.json", rows[::-1])
    scored = verb("score", name, "--questions", source, "--answers", answers)
    assert scored["figures"][headline]["value"] == pytest.approx(1 - 1 / len(asked))
    assert ("not-asked" in {one["code"] for one in scored["caveats"]}) == (len(rows) > len(asked))


def named(name: str, row: dict[str, Any]) -> str:
    number = TASKS[name].row_id(row)
    assert number is not None
    assert TASKS[name].row_id({**row, "id": number, "question_id": number}) is None
    return number


def test_amber(tmp_path: Path) -> None:
    assert facts("amber", tmp_path) == [
        ("1005", "AMBER_1.jpg", ("yes",), "state"),
        ("1006", "AMBER_1.jpg", ("no",), "existence"),
        ("1007", "AMBER_2.jpg", ("no",), "relation"),
        ("1008", "AMBER_2.jpg", ("no",), "number"),
    ]
    assert prompts("amber", tmp_path)[0] == f"Is the sky sunny in this image?\n{SHORT}"
    said = found("amber", tmp_path, "No", "No", "Yes", "No.")
    assert said["accuracy"] == 0.5
    assert (said["precision"], said["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert said["no_share"] == 0.75
    assert (said["attribute_accuracy"], said["existence_f1"], said["relation_f1"]) == (0.5, 1, 0)
    assert not any(name.startswith("lmms_") for name in said)
    odd = found("amber", tmp_path, "It is.", "There are eyes, but no cat", "None.", "no")
    assert (odd["accuracy"], odd["lmms_accuracy"]) == (1.0, 0.5)
    assert TASKS["amber"].ignored_ids(samples_more.amber(tmp_path)) == {"1"}
    with pytest.raises(DataError, match=r"5 questions have no truth; got the first is 1\b"):
        load("amber", samples_more.amber(tmp_path)[0])


def test_mmmus_options_that_are_no_list(tmp_path: Path) -> None:
    for options in ("['a'", "{'a': 1}", "[" * 30_000, "('a',)", 5):
        row = {**samples_more.mmmu_row("Art_1", "<image 1>", "A", "['a']"), "options": options}
        with pytest.raises(DataError, match=r"options is no list"):
            load("mmmu", samples.lines(tmp_path / "rows.jsonl", [row]))
