"""`phisense score`: answers that exist already, from any program, scored by the official rules;
what does not match is named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import DataError, UsageError

from . import samples


def scored(
    verb: Any, task: str, questions: list[str], answers: str, *more: object
) -> dict[str, Any]:
    named = [word for one in questions for word in ("--questions", one)]
    found: dict[str, Any] = verb("score", task, *named, "--answers", answers, *more)
    return found


def test_pope_all_yes(verb: Any, fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "pope" / "coco_pope_random.json"
    numbers = [json.loads(line)["question_id"] for line in source.read_text().splitlines()]
    answers = samples.lines(
        tmp_path / "yes.jsonl", [{"question_id": number, "answer": "Yes"} for number in numbers]
    )
    found = scored(verb, "pope", [str(source)], answers)
    assert found["figures"]["accuracy"]["value"] == 0.5
    assert round(found["figures"]["f1"]["value"], 3) == 0.667
    assert found["figures"]["yes_share"]["value"] == 1.0
    low, high = (found["figures"]["accuracy"][key] for key in ("low", "high"))
    assert 0.48 < low < 0.5 < high < 0.52  # 1.96 * sqrt(0.25 / 3000) = 0.018


def test_popes_files_together(verb: Any, tmp_path: Path) -> None:
    questions = [samples.pope(tmp_path, kind) for kind in ("random", "popular")]
    rows = [
        {"question_id": i, "category": kind, "text": "yes"}
        for kind in ("random", "popular")
        for i in range(1, 5)
    ]
    found = scored(verb, "pope", questions, samples.lines(tmp_path / "answers.jsonl", rows))
    assert found["figures"]["popular_accuracy"]["value"] == 0.5
    rows = [
        {"question_id": f"{kind}/{i}", "answer": "yes"}
        for kind in ("random", "popular")
        for i in range(1, 5)
    ]
    assert (
        scored(verb, "pope", questions, samples.lines(tmp_path / "answers.jsonl", rows))["figures"]
        == found["figures"]
    )


def test_others_ways_of_writing_answers(verb: Any, tmp_path: Path) -> None:
    gqa = samples.write(
        tmp_path / "g.json",
        [
            {"questionId": "201307251", "prediction": "no"},
            {"questionId": "201640614", "prediction": "man"},
        ],
    )
    assert scored(verb, "gqa", samples.gqa(tmp_path), gqa)["figures"]["accuracy"]["value"] == 0.5
    coco = samples.write(
        tmp_path / "c.json",
        [
            {"image_id": 9, "caption": "The cat sat."},
            {"image_id": 25, "caption": "Giraffes eat leaves."},
        ],
    )
    assert scored(verb, "captions", samples.captions(tmp_path), coco)["figures"]["bleu_1"][
        "value"
    ] == pytest.approx(1.0)
    vqa = samples.lines(
        tmp_path / "v.jsonl",
        [{"question_id": 262148000, "text": "down"}, {"id": "42001", "answer": "3"}],
    )
    assert scored(verb, "vqav2", samples.vqav2(tmp_path), vqa)["figures"]["accuracy"][
        "value"
    ] == pytest.approx(1.0)
    # LLaVA's file for MME names both questions about a picture alike.
    pictures = (
        "artwork/10002.jpg",
        "code_reasoning/0020.png",
        "existence/000000006040.jpg",
        "existence/000000006041.jpg",
    )
    rows = [
        {"question_id": picture, "text": text} for picture in pictures for text in ("Yes", "No")
    ]
    found = scored(
        verb, "mme", samples.mme(tmp_path / "MME"), samples.lines(tmp_path / "m.jsonl", rows)
    )
    assert (found["figures"]["perception"]["value"], found["figures"]["cognition"]["value"]) == (
        200,
        200,
    )


def test_what_does_not_match_is_named(verb: Any, tmp_path: Path) -> None:
    source = [samples.pope(tmp_path)]

    def answers(*numbers: object) -> str:
        return samples.lines(
            tmp_path / "a.jsonl", [{"question_id": number, "answer": "yes"} for number in numbers]
        )

    with pytest.raises(
        DataError, match=r"has no answer to 1 of 4 questions; got none to '3'.*--allow-missing"
    ):
        scored(verb, "pope", source, answers(1, 2, 4))
    found = scored(verb, "pope", source, answers(1, 2, 4), "--allow-missing")
    # 1 is right; 2 and 4 are wrong, and so is none
    assert (found["missing"], found["figures"]["accuracy"]["value"]) == (1, 0.25)
    with pytest.raises(
        DataError, match=r"answers 1 questions that are not among the 4; got '9' for one"
    ):
        scored(verb, "pope", source, answers(1, 2, 3, 4, 9))
    with pytest.raises(
        DataError, match=r"row 5 is another answer to question 4; wanted one answer"
    ):
        scored(verb, "pope", source, answers(1, 2, 3, 4, 4))
    with pytest.raises(DataError, match=r"row 1 has no answer or text; got question_id, said"):
        scored(
            verb,
            "pope",
            source,
            samples.lines(tmp_path / "a.jsonl", [{"question_id": 1, "said": "yes"}]),
        )
    with pytest.raises(DataError, match=r"row 1 has no question_id or id; got answer"):
        scored(verb, "pope", source, samples.lines(tmp_path / "a.jsonl", [{"answer": "yes"}]))
    with pytest.raises(UsageError, match=r"unknown task; got popes; wanted vqav2, gqa"):
        scored(verb, "popes", source, answers(1))


def test_a_seed_below_zero_is_refused_by_its_option(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from phisense.cli import app

    rows = [{"question_id": i, "answer": "yes"} for i in range(1, 5)]
    command = [
        "score",
        "pope",
        "--questions",
        samples.pope(tmp_path),
        "--answers",
        samples.lines(tmp_path / "a.jsonl", rows),
        "--json",
    ]
    assert CliRunner().invoke(app, [*command, "--seed", "-1"]).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--seed", "0"]).exit_code == 0


def test_json_is_all_that_is_printed_and_torch_is_not_imported(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "references": ["A cat on a mat."]},
        {"id": "b", "references": ["Two dogs run."]},
    ]
    source = samples.lines(tmp_path / "q.jsonl", rows)
    answers = samples.lines(
        tmp_path / "a.jsonl",
        [{"id": "a", "answer": "A cat on a mat"}, {"id": "b", "answer": "Two dogs run"}],
    )
    code = (
        "import sys\nfrom phisense.cli import run_verb\nrun_verb('score', 'captions',"
        f" '--questions', {source!r}, '--answers', {answers!r}, '--json')\nassert not {{'torch',"
        " 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["task"] == "captions"
    assert found["headline"] == "cider_d"
    assert found["figures"]["rouge_l"]["value"] == pytest.approx(1.0)
    assert set(found["figures"]["rouge_l"]) == {"value", "low", "high"}


def test_the_table_shows_every_figure(
    verb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question_id": i, "answer": "yes"} for i in range(1, 5)]
    scored(verb, "pope", [samples.pope(tmp_path)], samples.lines(tmp_path / "a.jsonl", rows))
    shown = capsys.readouterr().out
    assert "POPE: 4 questions" in shown
    for name in ("accuracy", "f1", "precision", "recall", "yes_share"):
        assert name in shown


@pytest.mark.parametrize("answer", [{}, ["yes"], True])
def test_an_answer_that_is_no_text_is_named(answer: object, verb: Any, tmp_path: Path) -> None:
    rows = [{"question_id": i, "answer": answer} for i in range(1, 5)]
    with pytest.raises(DataError, match="row 1 has an answer that is no text"):
        scored(
            verb,
            "pope",
            [samples.pope(tmp_path, "random")],
            samples.lines(tmp_path / "answers.jsonl", rows),
        )
