"""Each benchmark reads its official files, puts questions in the published words, and scores by the
official rule, worked out by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phisense.conversations import Question
from phisense.errors import DataError, ImageError
from phisense.evaluation.scores import score_predictions
from phisense.evaluation.tasks import TASKS
from phisense.vision.image_io import open_image

from . import samples
from .samples_more import HUB_MORE


def load(name: str, *sources: str, pictures: Path | None = None) -> list[Question]:
    return TASKS[name].load(sources, pictures)


def figures(name: str, questions: list[Question], answers: list[str]) -> dict[str, float]:
    found = score_predictions(TASKS[name], questions, {"real": answers}).real.metrics
    for one in found.values():
        assert one.low <= one.high
    return {figure: one.value for figure, one in found.items()}


def test_vqav2(tmp_path: Path) -> None:
    questions = load("vqav2", *samples.vqav2(tmp_path))
    assert [(q.id, q.image, q.kind) for q in questions] == [
        ("262148000", "COCO_val2014_000000262148.jpg", "other"),
        ("42001", "COCO_val2014_000000000042.jpg", "number"),
    ]
    assert (
        TASKS["vqav2"].prompt(questions[0])
        == "Where is he looking?\nAnswer the question using a single word or phrase."
    )
    found = figures("vqav2", questions, ["Down.", "2"])
    # "2" and "two" are one answer that 2 of 10 gave: leaving one of them out 1/3, leaving out one
    # of the 8 others 2/3.
    assert found == {"accuracy": pytest.approx((1 + (2 / 3 + 16 / 3) / 10) / 2)}


def test_vqav2_says_when_normalising_matters(tmp_path: Path) -> None:
    row = {
        "question_id": 1,
        "image": "a.jpg",
        "question": "Is it?",
        "answers": ["yes"] * 10,
        "answer_type": "yes/no",
    }
    questions = load("vqav2", samples.lines(tmp_path / "rows.jsonl", [row]))
    assert figures("vqav2", questions, ["Yes."]) == {"accuracy": 0.0, "accuracy_normalised": 1.0}
    assert figures("vqav2", questions, ["yes"]) == {"accuracy": 1.0}


def test_vqav2_needs_both_files(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"2 of 2 questions have no answers; got the first is 262148000.*Name both files",
    ):
        load("vqav2", samples.vqav2(tmp_path)[0])


def test_gqa(tmp_path: Path) -> None:
    questions = load("gqa", *samples.gqa(tmp_path))
    assert [(q.id, q.image, q.kind) for q in questions] == [
        ("201307251", "n161313.jpg", "verify"),
        ("201640614", "n161313.jpg", "query"),
    ]
    assert figures("gqa", questions, ["No.", "Woman"]) == {"accuracy": 1.0}
    assert figures("gqa", questions, ["No, it isn't", "women"]) == {"accuracy": 0.0}


def test_textvqa_with_and_without_hints(tmp_path: Path) -> None:
    source = samples.textvqa(tmp_path)[0]
    [plain] = load("textvqa", source)
    [hinted] = load("textvqa-ocr", source, samples.ocr(tmp_path))
    assert plain.id == hinted.id == "34602"
    assert plain.image == "003a8ae2ef43b901.jpg"
    short = "Answer the question using a single word or phrase."
    assert TASKS["textvqa"].prompt(plain) == f"What is the brand of this camera?\n{short}"
    assert (
        TASKS["textvqa-ocr"].prompt(hinted)
        == f"What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL\n{short}"
    )
    assert figures("textvqa", [plain], ["Dakota"]) == {"accuracy": pytest.approx(1.0)}  # 7 of 10
    assert figures("textvqa", [plain], ["dakota digital"]) == {
        "accuracy": pytest.approx(9 / 10 / 3)
    }
    with pytest.raises(DataError, match=r"no OCR tokens for question 34602.*Rosetta"):
        load("textvqa-ocr", source)


def test_scienceqa(tmp_path: Path) -> None:
    questions = load("scienceqa", *samples.scienceqa(tmp_path))
    assert [(q.id, q.image, q.answers, q.kind) for q in questions] == [
        ("5", "5/image.png", ("B",), "natural science"),
        ("11", "11/image.png", ("A",), "natural science"),
    ]
    assert (
        TASKS["scienceqa"].prompt(questions[1])
        == "Context: The air is cold.\nWhich of these is a solid?\nA. milk\nB. stone\nC. air\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert figures("scienceqa", questions, ["B", "A. milk"]) == {"accuracy": 1.0}
    assert figures("scienceqa", questions, ["(B)", "no idea"]) == {
        "accuracy": 0.0,
        "accuracy_any_wording": 0.5,
    }


def test_pope_by_hand(tmp_path: Path) -> None:
    questions = load("pope", samples.pope(tmp_path))
    assert [q.id for q in questions] == ["1", "2", "3", "4"]
    assert {q.kind for q in questions} == {"random"}
    found = figures("pope", questions, ["Yes", "Yes", "No", "no"])
    assert found == {"accuracy": 0.5, "f1": 0.5, "precision": 0.5, "recall": 0.5, "yes_share": 0.5}
    # POPE's own rule takes "None." for yes; said so beside the figure.
    assert figures("pope", questions, ["Yes", "None.", "yes", "NO"]) == {
        "accuracy": 1.0,
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "yes_share": 0.5,
        "official_accuracy": 0.5,
        "official_f1": pytest.approx(2 / 3),
        "official_precision": 0.5,
        "official_recall": 1.0,
        "official_yes_share": 1.0,
    }
    # What is neither is wrong, and no yes.
    assert figures("pope", questions, ["I cannot tell."] * 4)["yes_share"] == 0.0


def test_popes_own_reading_of_an_answer_that_is_missing(tmp_path: Path) -> None:
    questions = load("pope", samples.pope(tmp_path))
    missing = figures("pope", questions, [""] * 4)
    assert (missing["accuracy"], missing["yes_share"]) == (0.0, 0.0)
    assert not any(name.startswith("official_") for name in missing)
    found = figures("pope", questions, ["Yes", "None.", "", ""])
    assert (found["yes_share"], found["official_yes_share"], found["official_accuracy"]) == (
        0.25,
        0.5,
        0.25,
    )


def test_popes_categories(tmp_path: Path) -> None:
    questions = load("pope", samples.pope(tmp_path), samples.pope(tmp_path, "adversarial"))
    assert [q.id for q in questions][3:5] == ["random/4", "adversarial/1"]
    found = figures("pope", questions, ["yes", "no", "yes", "no", "yes", "yes", "yes", "yes"])
    assert (found["accuracy"], found["random_accuracy"], found["adversarial_accuracy"]) == (
        0.75,
        1.0,
        0.5,
    )
    assert found["adversarial_f1"] == pytest.approx(2 / 3)
    assert "popular_accuracy" not in found


def test_pope_from_the_fixture_all_yes(fixtures: Path) -> None:
    questions = load("pope", str(fixtures / "pope" / "coco_pope_random.json"))
    assert len(questions) == 3000
    found = figures("pope", questions, ["Yes"] * 3000)
    assert (found["accuracy"], round(found["f1"], 3), found["yes_share"]) == (0.5, 0.667, 1.0)
    assert figures("pope", questions, [q.answers[0] for q in questions])["accuracy"] == 1.0


def test_mmbench_is_circular(tmp_path: Path) -> None:
    source = samples.mmbench(tmp_path)[0]
    questions = load("mmbench", source, pictures=tmp_path / "pictures")
    assert [(q.id, q.answers, q.group) for q in questions] == [
        ("241", ("C",), "241"),
        ("1000241", ("B",), "241"),
        ("2000241", ("A",), "241"),
        ("252", ("A",), "252"),
        ("1000252", ("B",), "252"),
    ]
    assert questions[1].choices == ("green", "blue", "red")
    assert (
        TASKS["mmbench"].prompt(questions[4])
        == "A hint.\nWhat is shown?\nA. a dog\nB. a cat\nAnswer with the option's letter from the"
        " given choices directly."
    )
    assert len({q.image for q in questions}) == 1  # the second row names the first's picture
    assert open_image(tmp_path / "pictures" / str(questions[0].image)).size == (8, 6)
    right = [q.answers[0] for q in questions]
    assert figures("mmbench", questions, right) == {"accuracy": 1.0, "accuracy_once": 1.0}
    assert figures("mmbench", questions, ["C", "B", "B", "A", "B"]) == {
        "accuracy": 0.5,
        "accuracy_once": 1.0,
    }
    assert figures("mmbench", questions, ["C"] * 5) == {"accuracy": 0.0, "accuracy_once": 0.5}


def test_mmbench_refers_to_no_row(tmp_path: Path) -> None:
    path = Path(samples.mmbench(tmp_path)[0])
    path.write_text(path.read_text().replace("\t241\t", "\t999\t"))
    with pytest.raises(
        DataError,
        match=(
            "the picture of question 252 is said to be that of row 999; wanted a row that holds one"
        ),
    ):
        load("mmbench", str(path))


def test_mmbench_takes_rotations_that_are_there(tmp_path: Path) -> None:
    path = Path(samples.mmbench(tmp_path)[0])
    head, first, second = path.read_text().splitlines()
    cells = second.split("\t")
    cells[0], cells[3], cells[4], cells[7] = "1000252", "a dog", "a cat", "B"
    path.write_text("\n".join([head, first, second, "\t".join(cells)]) + "\n")
    questions = load("mmbench", str(path))
    assert [(q.id, q.group) for q in questions] == [
        ("241", "241"),
        ("252", "252"),
        ("1000252", "252"),
    ]
    assert figures("mmbench", questions, ["C", "A", "A"]) == {"accuracy": 0.5, "accuracy_once": 1.0}


def test_mme(tmp_path: Path) -> None:
    questions = load("mme", *samples.mme(tmp_path / "MME"))
    assert [(q.id, q.image, q.kind) for q in questions][:3] == [
        ("artwork/10002.jpg", "artwork/images/10002.jpg", "artwork"),
        ("artwork/10002.jpg#2", "artwork/images/10002.jpg", "artwork"),
        ("code_reasoning/0020.png", "code_reasoning/0020.png", "code_reasoning"),
    ]
    assert (
        TASKS["mme"].prompt(questions[0])
        == "Is it old?\nAnswer the question using a single word or phrase."
    )
    found = figures("mme", questions, ["No", "yes.", "Yes", "Yes", "Yes", "No", "It is", "no"])
    # artwork 100 + 100; code reasoning 50 + 0; existence 3 of 4 questions and 1 of 2 pictures.
    assert (found["artwork"], found["code_reasoning"], found["existence"]) == (200, 50, 125)
    assert (found["perception"], found["cognition"]) == (325, 50)
    assert (found["accuracy"], found["accuracy_plus"]) == (6 / 8, 2 / 4)
    everything = [q.answers[0] for q in questions]
    assert next(iter(figures("mme", questions, everything))) == "perception"


def test_mme_from_listings_and_its_refusals(tmp_path: Path) -> None:
    listing = samples.write(
        tmp_path / "count.txt",
        "1.jpg\tAre there two? Please answer yes or no.\tYes\n1.jpg\tThree? Please answer yes or"
        " no.\tNo\n",
    )
    questions = load("mme", listing)
    assert [(q.id, q.image, q.kind) for q in questions] == [
        ("count/1.jpg", "count/1.jpg", "count"),
        ("count/1.jpg#2", "count/1.jpg", "count"),
    ]
    with pytest.raises(
        DataError,
        match=r"two questions about each picture; 1 have another number; got 1 about count/1.jpg",
    ):
        load("mme", samples.write(tmp_path / "count.txt", "1.jpg\tTwo?\tYes\n"))
    with pytest.raises(
        DataError, match="unknown category of MME; got counting; wanted existence, count"
    ):
        load(
            "mme", samples.write(tmp_path / "counting.txt", "1.jpg\tTwo?\tYes\n1.jpg\tThree?\tNo\n")
        )


def test_captions(tmp_path: Path) -> None:
    questions = load("captions", *samples.captions(tmp_path))
    assert [(q.id, q.image, len(q.answers)) for q in questions] == [
        ("9", "COCO_val2014_000000000009.jpg", 2),
        ("25", "COCO_val2014_000000000025.jpg", 2),
    ]
    found = figures("captions", questions, ["A cat on a mat.", "Giraffes eat leaves"])
    assert found["bleu_4"] == pytest.approx(1.0, abs=1e-3)
    assert found["rouge_l"] == pytest.approx(1.0)
    assert next(iter(found)) == "cider_d"
    rows = [{"id": "a", "image": "a.jpg", "references": ["One.", "Two."]}]
    [other] = load("captions", samples.lines(tmp_path / "own.jsonl", rows))
    assert (other.id, other.image, other.answers) == ("a", "a.jpg", ("One.", "Two."))
    with pytest.raises(
        DataError,
        match=(
            "question b: references or captions or answer is not a list with something in it; got"
            " \\[\\]"
        ),
    ):
        load("captions", samples.lines(tmp_path / "none.jsonl", [{"id": "b", "references": []}]))


TEXTVQA = {
    "question_id": 5,
    "image_id": "ab",
    "question": "what?",
    "answers": ["x"] * 10,
    "ocr_tokens": ["X"],
}
VQA_PEOPLE = [{"answer": "no", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
MME_PAIR = [
    {
        "question_id": "code_reasoning/0020.png",
        "category": "code_reasoning",
        "question": q,
        "answer": a,
    }
    for q, a in ("1Y", "2N")
]
# Rows of the hub's sets, as lmms-lab publishes them: pictures inside, other names of fields.
HUB: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "vqav2": (
        [
            {
                "question_id": 1,
                "image_id": 7,
                "question": "Is it?",
                "answer_type": "yes/no",
                "answers": VQA_PEOPLE,
            }
        ],
        ["no"],
    ),
    "textvqa": ([TEXTVQA], ["x"]),
    "textvqa-ocr": ([TEXTVQA], ["x"]),
    "scienceqa": (
        [
            {
                "question": "Which?",
                "choices": ["a", "b"],
                "answer": 1,
                "hint": "",
                "subject": "language science",
            }
        ],
        ["B"],
    ),
    "pope": (
        [
            {
                "id": "0",
                "question_id": "1",
                "question": "Is there a cup?",
                "answer": "no",
                "category": "popular",
            }
        ],
        ["No."],
    ),
    "mmbench": (
        [
            {
                "index": 3,
                "question": "Which?",
                "hint": "nan",
                "answer": "A",
                "A": "x",
                "B": "y",
                "C": "nan",
                "D": "nan",
                "category": "ocr",
            }
        ],
        ["A", "B"],
    ),
    "mme": (
        [{**row, "answer": {"Y": "Yes", "N": "No"}[row["answer"]]} for row in MME_PAIR],
        ["Yes", "No"],
    ),
    "captions": (
        [
            {
                "question_id": "COCO_val2014_000000000009.jpg",
                "id": 9,
                "question": "?",
                "answer": ["A cat.", "It."],
            }
        ],
        ["A cat."],
    ),
    **HUB_MORE,
}
#: Columns of pictures that are not called "image".
PICTURE_COLUMNS = {"mmmu": "image_1"}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub(name: str, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows, answers = HUB[name]
    column = PICTURE_COLUMNS.get(name, "image")
    with_pictures = [{**row, column: {"bytes": samples.png(20), "path": None}} for row in rows]
    parquet.write_table(pa.Table.from_pylist(with_pictures), tmp_path / "test-00000.parquet")
    questions = load(name, str(tmp_path / "test-00000.parquet"), pictures=tmp_path / "pictures")
    [picture] = (tmp_path / "pictures").iterdir()
    assert {q.image for q in questions} == {picture.name}
    written = picture.stat().st_mtime_ns
    load(name, str(tmp_path / "test-00000.parquet"), pictures=tmp_path / "pictures")
    assert picture.stat().st_mtime_ns == written  # what is there is not written again
    headline = next(iter(figures(name, questions, answers).values()))
    assert headline == {"mme": 200.0, "captions": 0.0}.get(name, pytest.approx(1.0))


def test_gqas_pictures_come_apart_from_its_questions(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    question = {
        "id": "20",
        "imageId": "n1",
        "question": "Is it?",
        "answer": "no",
        "isBalanced": True,
        "types": {"structural": "verify"},
    }
    parquet.write_table(
        pa.Table.from_pylist([{"id": "n1", "image": {"bytes": samples.png(5), "path": None}}]),
        tmp_path / "images.parquet",
    )
    parquet.write_table(pa.Table.from_pylist([question]), tmp_path / "questions.parquet")
    [found] = load(
        "gqa",
        str(tmp_path / "questions.parquet"),
        str(tmp_path / "images.parquet"),
        pictures=tmp_path / "pictures",
    )
    assert (tmp_path / "pictures" / str(found.image)).is_file()
    assert found.kind == "verify"


def test_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` opens a local folder as it opens a set of the hub; its pictures come undecoded.
    Nothing is fetched.
    """
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from phisense.evaluation.benchmark_io import hub_rows

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = datasets.Dataset.from_list(
        [{"question_id": "1", "image": {"bytes": samples.png(9), "path": None}}]
    )
    made = made.cast_column("image", datasets.Image())
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "test-00000-of-00001.parquet")
    [row] = hub_rows(str(tmp_path / "set"), None, "test")
    assert row["image"]["bytes"] == samples.png(9)
    with pytest.raises(
        DataError, match=r"@validation cannot be had from the hub.*name a configuration and a split"
    ):
        list(hub_rows(str(tmp_path / "set"), None, "validation"))


def test_a_set_with_code_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    from phisense.evaluation.benchmark_io import hub_rows

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = tmp_path / "ran"
    samples.write(tmp_path / "set" / "set.py", f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(DataError, match="cannot be had from the hub"):
        list(hub_rows(str(tmp_path / "set" / "set.py"), None, "test"))
    with pytest.raises(DataError, match="cannot be had from the hub"):
        list(hub_rows(str(tmp_path / "set"), None, "test"))
    assert not ran.exists()


def test_a_hub_that_is_not_reached_and_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def unreachable(*args: object, **kwargs: object) -> None:
        assert "trust_remote_code" not in kwargs
        raise ConnectionError("Couldn't reach 'lmms-lab/POPE' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"lmms-lab/POPE:Full@random cannot be had from the hub; got Couldn't reach"
    ):
        load("pope", "lmms-lab/POPE:Full@random")
    with pytest.raises(DataError, match=r"there is no file nowhere/coco_pope_random.json"):
        load("pope", "nowhere/coco_pope_random.json")


def test_pictures_inside_files_are_looked_at_before_they_are_written(tmp_path: Path) -> None:
    path = Path(samples.mmbench(tmp_path)[0])
    path.write_text(path.read_text().replace("iVBOR", "AAAAA"))
    with pytest.raises(ImageError, match=r"a picture of .*question 241 is not a picture"):
        load("mmbench", str(path), pictures=tmp_path / "pictures")
    assert not list((tmp_path / "pictures").glob("*"))
    path.write_text(path.read_text().replace("AAAAA", "!!!!!"))
    with pytest.raises(DataError, match="question 241 has a picture that is not base64"):
        load("mmbench", str(path), pictures=tmp_path / "pictures")


def test_rows_that_are_not_the_benchmarks_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"pope.jsonl has a row without label or answer; got question_id, text"
    ):
        load("pope", samples.lines(tmp_path / "pope.jsonl", [{"question_id": 1, "text": "?"}]))
    with pytest.raises(DataError, match=r"pope.jsonl: a label is neither yes nor no; got maybe"):
        load(
            "pope",
            samples.lines(
                tmp_path / "pope.jsonl", [{"question_id": 1, "text": "?", "label": "maybe"}]
            ),
        )
    with pytest.raises(
        DataError, match="question 1 has no answer among its 2 options. Take the dev file"
    ):
        head = "index\tquestion\tA\tB\timage\n"
        load(
            "mmbench",
            samples.write(tmp_path / "test.tsv", f"{head}1\tWhich?\tx\ty\t{'A' * 70}==\n"),
        )


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("../../secret.jpg", "secret.jpg"), ("/etc/passwd", "etc/passwd"), ("C:\\a.jpg", "a.jpg"),
        ("a/../../b.jpg", "b.jpg"), ("..", None), ("/", None), ("a\0.jpg", None),
    ],
)  # fmt: skip
def test_a_pictures_name_stays_inside_the_picture_folders(
    name: str, inside: str | None, tmp_path: Path
) -> None:
    row = {"question_id": 1, "image": name, "text": "Is there a dog?", "label": "yes"}
    file = samples.lines(tmp_path / "pope.jsonl", [row])
    if inside is not None:
        assert [question.image for question in load("pope", file)] == [inside]
        return
    with pytest.raises(
        DataError, match=r"question 1 names the picture .*wanted a path inside the picture folders"
    ):
        load("pope", file)


def test_a_name_made_of_an_id_stays_inside_too(tmp_path: Path) -> None:
    problem = {
        "question": "?",
        "choices": ["a", "b"],
        "answer": 0,
        "image": "image.png",
        "split": "test",
    }
    [question] = load("scienceqa", samples.write(tmp_path / "problems.json", {"../..": problem}))
    assert question.image == "image.png"
