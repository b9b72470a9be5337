"""The verdict against the commonest answer, over every kind of task, by models made up: one that
always gives the commonest, one that keeps the form only with an image, and one that looks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phisense.conversations import Conversation, ImageFinder, Message, Question
from phisense.conversations.common_answers import (
    MIN_IMAGES,
    AnswerTable,
    Constants,
    count_training_answers,
)
from phisense.errors import ArtifactError
from phisense.evaluation.predictors import EvalRequest, EvalResponse
from phisense.evaluation.results import EvaluationReport
from phisense.evaluation.run import evaluate
from phisense.evaluation.tasks import TASKS

COLOURS = ("red", "red", "red", "blue", "green")
COUNT = 120


def colour(i: int) -> str:
    return COLOURS[random.Random(i).randrange(len(COLOURS))]


def own(i: int) -> Question:
    return Question(f"{i}", f"{i}.png", "What colour is it?", (f"{colour(i).title()}.",), "colour")


def polar(i: int) -> Question:
    answer = "Yes." if colour(i) == "red" else "No."
    return Question(f"{i}", f"{i}.png", "Is it red?", (answer,), "exists")


def own_options(i: int) -> Question:
    text = "Which colour?\nA. red\nB. blue\nC. green"
    options = ("red", "blue", "green")
    letter = "ABC"[options.index(colour(i))]
    return Question(f"{i}", f"{i}.png", text, (colour(i), letter), "other", options)


def pope(i: int) -> Question:
    answer = "yes" if colour(i) == "red" else "no"
    return Question(f"{i}", f"{i}.png", "Is there a dog in the image?", (answer,), "random")


def gqa(i: int) -> Question:
    return Question(f"{i}", f"{i}.png", f"What color is object {i}?", (colour(i),), "query")


def vqav2(i: int) -> Question:
    people = (colour(i),) * 9 + ("dark",)
    return Question(f"{i}", f"{i}.png", "What color is the car?", people, "other")


def lettered(i: int) -> Question:
    options = ("red", "blue", "green")
    letter = "ABC"[options.index(colour(i))]
    return Question(f"{i}", f"{i}.png", f"Which color, {i}?", (letter,), "kind", options, f"{i}")


def mme(i: int) -> Question:
    answer = "yes" if (colour(i // 2) == "red") == (i % 2 == 0) else "no"
    asks = ("Is it red?", "Is it blue or green?")[i % 2]
    number = f"color/{i // 2}"
    return Question(f"{number}#{i % 2}", f"{i // 2}.png", asks, (answer,), "color", (), number)


def figures(i: int) -> Question:
    answer = "yes" if (colour(i // 2) == "red") == (i % 2 == 0) else "no"
    asks = ("Is it red?", "Is it blue or green?")[i % 2]
    name = f"VD/map/{i // 2}"
    return Question(f"{name}/0/{i % 2}", f"{i // 2}.png", asks, (answer,), "map", (), name)


def captions(i: int) -> Question:
    others = ("dog runs", "child plays", "boat floats")
    text = f"A {colour(i)} {others[i % 3]} near the old house number {i} today."
    return Question(f"{i}", f"{i}.png", "Caption it.", (text,), "caption")


@dataclass
class Case:
    task: str
    ask: Callable[[int], Question]
    out_of_form: str = "There is no picture."


CASES = [
    Case("own", own),
    Case("own", polar, "I cannot tell."),
    Case("own", own_options),
    Case("pope", pope, "I cannot tell."),
    Case("gqa", gqa),
    Case("vqav2", vqav2),
    Case("textvqa", vqav2),
    Case("scienceqa", lettered),
    Case("mmbench", lettered),
    Case("mme", mme, "I cannot tell."),
    Case("captions", captions),
    Case("docvqa", vqav2),
    Case("chartqa", gqa),
    Case("ocrbench", gqa),
    Case("mmstar", lettered),
    Case("ai2d", lettered),
    Case("realworldqa", lettered),
    Case("mmmu", lettered),
    Case("hallusionbench", figures, "I cannot tell."),
    Case("amber", pope, "I cannot tell."),
]
NAMED = [f"{case.task}-{case.ask.__name__}" for case in CASES]


class Made:
    """A predictor whose answers and likelihoods are functions of the question's number and its
    image.
    """

    batch_size = 16
    identity: dict[str, object] = {}  # noqa: RUF012
    about: dict[str, object] = {"engine": "made up"}  # noqa: RUF012
    built: Any = None

    def __init__(
        self,
        says: Callable[[str, Path | None], str],
        likes: Callable[[str, Path | None, Sequence[str]], str] | None,
    ) -> None:
        self.says, self.likes = says, likes

    def prepare(self, pictures: Sequence[Path]) -> None:
        pass

    def answer(
        self, put: Sequence[EvalRequest], max_new_tokens: int, *, losses: bool
    ) -> list[EvalResponse]:
        return [EvalResponse(self.says(one.id, one.picture)) for one in put]

    def choose(
        self, put: Sequence[EvalRequest], candidates: Sequence[Sequence[str]]
    ) -> list[str] | None:
        if self.likes is None:
            return None
        return [
            self.likes(one.id, one.picture, texts)
            for one, texts in zip(put, candidates, strict=True)
        ]


def questions(case: Case, folder: Path) -> list[Question]:
    made = [case.ask(i) for i in range(COUNT)]
    for name in {q.image for q in made}:
        if not (folder / str(name)).exists():
            Image.new("RGB", (8, 8)).save(folder / str(name))
    return made


def training(asked: Sequence[Question]) -> AnswerTable:
    """Training data of the same distribution."""
    rows = (
        Conversation(
            q.id,
            (Message("user", f"<image>\n{q.text}"), Message("assistant", q.answers[0])),
            (str(q.image),),
        )
        for q in asked
    )
    return AnswerTable.from_dict(count_training_answers(rows).to_dict())


def run(
    case: Case, asked: list[Question], predictor: Made, folder: Path, table: AnswerTable | None
) -> EvaluationReport:
    return evaluate(
        TASKS[case.task],
        asked,
        ImageFinder([folder]),
        predictor,
        out=folder / "report",
        overwrite=True,
        title="made up",
        training=table,
    )


@pytest.fixture(params=[True, False], ids=["training", "questions"])
def has_training(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_the_commonest_answer_is_no_sight(case: Case, has_training: bool, tmp_path: Path) -> None:
    """With the picture it gives the commonest answer; without it falls out of form, and nothing is
    right. Only the constant, and the content of what it would answer, tell that it does not look.
    """
    asked = questions(case, tmp_path)
    table = training(asked) if has_training else None
    constants = Constants.of(asked, table)
    by_id = dict(zip((q.id for q in asked), constants.answers, strict=True))

    def says(number: str, image: Path | None) -> str:
        own_image = next(q.image for q in asked if q.id == number)
        return by_id[number] if image and image.name == own_image else case.out_of_form

    for likes in (lambda number, image, texts: texts[-1], None):
        report = run(case, asked, Made(says, likes), tmp_path, table)
        assert report.verdict == "blind"
        assert report.looks is not None
        constant = report.metric("constant", report.headline)
        real = report.metric("real", report.headline)
        assert constant is not None
        assert constant == real
        assert report.looks.over["constant"].value == 0.0
        assert report.looks.over[report.looks.hardest].value <= 0.0
        again = EvaluationReport.load(tmp_path / "report")
        assert again.constant.source in ("training", "questions", "training and questions")
        assert (again.constant.source == "questions") is not has_training
        if case.task != "captions":
            assert report.blind.by_content > 0


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_who_looks_is_above_it(case: Case, has_training: bool, tmp_path: Path) -> None:
    """Right with the picture in nine of ten, and as well as the constant by content without."""
    asked = questions(case, tmp_path)
    table = training(asked) if has_training else None
    by_id = {q.id: q for q in asked}

    def says(number: str, image: Path | None) -> str:
        q = by_id[number]
        if image is None or image.name != q.image:
            return case.out_of_form
        return q.answers[0] if random.Random(number).random() < 0.9 else case.out_of_form

    report = run(case, asked, Made(says, lambda n, image, texts: texts[0]), tmp_path, table)
    assert report.verdict == "looks"
    assert report.looks is not None
    assert set(report.looks.over) == {"blind", "shuffled", "constant"}
    assert all(one.low > 0 for one in report.looks.over.values())


def test_blind_is_measured_by_content(tmp_path: Path) -> None:
    """A model that knows all answers without the picture, but says none of them in form, is not
    lower without it: what it finds likeliest counts. An answer that is in form stays its own.
    """
    case = CASES[0]
    asked = questions(case, tmp_path)
    by_id = {q.id: q for q in asked}

    def says(number: str, image: Path | None) -> str:
        return by_id[number].answers[0] if image else "There is no picture."

    def knows(number: str, image: Path | None, texts: Sequence[str]) -> str:
        right = by_id[number].answers[0]
        assert right in texts
        return right

    report = run(case, asked, Made(says, knows), tmp_path, None)
    assert report.blind.accuracy.value == report.real.accuracy.value == 1.0
    assert report.blind.by_content == COUNT
    assert report.shuffled.by_content == 0
    assert report.verdict == "blind"
    in_form = run(case, asked, Made(lambda number, image: "Green.", knows), tmp_path, None)
    assert in_form.blind.by_content == 0
    assert in_form.blind.accuracy.value < 0.5


def test_no_question_is_answered_by_its_own_reference() -> None:
    """By the questions alone: what only one image has is not the commonest, and of few images
    nothing is.
    """
    once = [
        Question(f"{i}", f"{i}.png", f"What is thing {i}?", (f"word{i}",), "k") for i in range(40)
    ]
    found = Constants.of(once, None)
    assert all(answer not in q.answers for q, answer in zip(once, found.answers, strict=True))
    few = [replace(own(i), text="Which?") for i in range(MIN_IMAGES - 1)]
    assert set(Constants.of(few, None).answers) == {""}
    same_image = [replace(q, image="one.png") for q in (own(i) for i in range(40))]
    assert set(Constants.of(same_image, None).answers) == {""}


def test_balanced_answers_are_not_always_missed() -> None:
    """Leaving each question out of an even split would leave the other answer in the majority."""
    even = [
        Question(f"{i}", f"{i}.png", "Is it?", ("Yes." if i % 2 else "No.",), "k")
        for i in range(100)
    ]
    answers = Constants.of(even, None).answers
    right = sum(a in q.answers for q, a in zip(even, answers, strict=True))
    assert right == 50


def test_the_commonest_training_answer() -> None:
    rows = [
        ("What is it?\nAnswer the question using a single word or phrase.", "Dog"),
        ("what is it", "dog."),
        ("What is it?", "Cat"),
        ("What is that over there?", "Bird"),
        ("Is it a dog?", "Yes, it is a large brown dog that runs over the wide green meadow."),
    ]
    table = count_training_answers(
        Conversation(str(i), (Message("user", q), Message("assistant", a)), ())
        for i, (q, a) in enumerate(rows * 5)
    )
    for known in (table, AnswerTable.from_dict(table.to_dict())):
        found = Constants.of(
            [
                Question("1", None, "What is it?", ("x",), "k"),
                Question("2", None, "What is that behind it?", ("x",), "k"),
                Question("3", None, "Is it a horse?", ("No",), "k"),
                Question("4", None, "Where?", ("x",), "k"),
            ],
            known,
        )
        assert found.answers[0].strip(".").lower() == "dog"
        assert found.answers[1] == "Bird"
        assert found.answers[2] == "Yes"
        assert set(found.sources) == {"training"}
        assert found.candidates[2] == ("Yes", "No")
    assert table.to_dict() == AnswerTable.from_dict(table.to_dict()).to_dict()
    with pytest.raises(ArtifactError, match="no table of answers"):
        AnswerTable.from_dict({"answers": [1]})


def test_counting_does_not_grow_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phisense.conversations.common_answers._MAX_COUNTS", 500)
    table = AnswerTable()
    for i in range(2000):
        table.add(f"Unique question {i}?", f"answer {i}")
        table.add("What colour is it?", COLOURS[i % 5])
    assert sum(map(len, table.counts.values())) <= 510
    assert next(table.ranked("= what colour is it")) == ("red", 1200)
