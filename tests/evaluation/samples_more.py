"""A few rows of the benchmarks of documents, diagrams, subjects and hallucinations, in the schema
of their official files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .samples import lines, write


def docvqa(folder: Path) -> list[str]:
    def row(number: int, question: str, answers: list[str], types: list[str]) -> dict[str, Any]:
        return {
            "questionId": number,
            "question": question,
            "question_types": types,
            "image": "documents/xnbl0037_1.png",
            "docId": 279,
            "ucsf_document_id": "xnbl0037",
            "ucsf_document_page_no": "1",
            "answers": answers,
            "data_split": "val",
        }

    data = [
        row(337, "what is the date mentioned in this letter?", ["1/8/93"], ["handwritten", "form"]),
        row(338, "Who is it from?", ["P. Carter", "p carter"], ["form"]),
    ]
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    return [write(folder / "val_v1.0_withQT.json", {**head, "data": data})]


def chartqa(folder: Path) -> list[str]:
    human = [
        {"imgname": "41699051005347.png", "query": "How many food items are there?", "label": "14"},
        {"imgname": "41810321001157.png", "query": "Which bar is the longest?", "label": "Green"},
    ]
    augmented = [{"imgname": "two_col_1365.png", "query": "How many units?", "label": "26.5"}]
    return [
        write(folder / "test_human.json", human),
        write(folder / "test_augmented.json", augmented),
    ]


EXPRESSION = "\\frac { 1 } { x + y } = 2\n"


def ocrbench(folder: Path) -> list[str]:
    def row(dataset: str, number: int, kind: str, answers: str | list[str]) -> dict[str, Any]:
        return {
            "dataset_name": dataset,
            "id": number,
            "image_path": f"{dataset}/test/{number}.png",
            "question": f"what is written in image {number}?",
            "answers": answers,
            "type": kind,
        }

    rows = [
        row("IIIT5K", 2843, "Regular Text Recognition", "CENTRE"),
        row("svt", 2843, "Regular Text Recognition", "palace"),
        row("docVQA", 7, "Doc-oriented VQA", ["1/8/93", "8 January"]),
        row("HME100k", 16525, "Handwritten Mathematical Expression Recognition", EXPRESSION),
    ]
    return [write(folder / "OCRBench.json", rows)]


def mmstar(folder: Path) -> list[str]:
    """As JSON lines; the published file is Parquet, of which the hub's rows are a test."""
    rows = [
        {
            "index": i,
            "question": f"Which option describes it, {i}?\nOptions: A: a, B: b, C: c, D: d",
            "image": f"{i}.jpg",
            "answer": right,
            "category": category,
            "l2_category": sub,
            "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
        }
        for i, (right, category, sub) in enumerate(
            (
                ("A", "coarse perception", "image scene and topic"),
                ("B", "math", "geometry"),
                ("C", "math", "geometry"),
            )
        )
    ]
    return [lines(folder / "mmstar.jsonl", rows)]


def ai2d(folder: Path) -> list[str]:
    """The folder of the release: two diagrams, one of which is of the test split."""

    def question(number: str, right: int, letters: bool, texts: list[str]) -> dict[str, Any]:
        return {
            "abcLabel": letters,
            "answerTexts": texts,
            "correctAnswer": right,
            "questionId": number,
        }

    for name, asked in (
        (
            "1001.png",
            {
                "Which is the stem?": question("1001.png-0", 1, True, ["A", "B", "F", "H"]),
                "What eats the leaf?": question("1001.png-1", 0, False, ["deer", "lion"]),
            },
        ),
        ("7.png", {"What is it?": question("7.png-0", 0, False, ["a cell", "a star"])}),
    ):
        write(
            folder / "ai2d" / "questions" / f"{name}.json", {"imageName": name, "questions": asked}
        )
    write(folder / "ai2d" / "ai2d_test_ids.csv", "1001\n1002\n")
    return [str(folder / "ai2d")]


def realworldqa(folder: Path) -> list[str]:
    asks = "Please answer directly with only the letter of the correct option and nothing else."
    rows = [
        {"image": "0.webp", "question": f"Which?\nA. Left.\nB. Right.\n{asks}", "answer": "B"},
        {"image": "1.webp", "question": "How many? Please answer directly.", "answer": "3"},
    ]
    return [lines(folder / "realworldqa.jsonl", rows)]


def mmmu_row(number: str, question: str, answer: Any, options: str = "[]") -> dict[str, Any]:
    return {
        "id": f"validation_{number}",
        "question": question,
        "options": options,
        "explanation": "",
        "answer": answer,
        "question_type": "open" if options == "[]" else "multiple-choice",
        "subfield": "x",
        "topic_difficulty": "Easy",
        "img_type": "['Tables']",
    }


def mmmu(folder: Path) -> list[str]:
    """As JSON lines; the published files are Parquet."""
    rows = [
        mmmu_row("Accounting_1", "<image 1> What is the cost?", "B", "['$6', '$7', \"it's 8\"]"),
        mmmu_row("Math_2", "Find x in <image 1>.", "['24/7', '3.429']"),
        mmmu_row("Music_3", "<image 1> Which?", "A", "['<image 1>', '<image 2>']"),
        mmmu_row("Music_4", "Compare <image 1> and <image 2>.", "7"),
    ]
    return [lines(folder / "validation.jsonl", rows)]


def hallusionbench(folder: Path) -> list[str]:
    def row(category: str, figure: int, number: int, right: str, shown: bool) -> dict[str, Any]:
        named = {"filename": f"./hallusion_bench/{category}/map/0_{figure}.png"} if shown else {}
        return {
            "category": category,
            "subcategory": "map",
            "visual_input": "1" if shown else "0",
            "set_id": "0",
            "figure_id": str(figure),
            "sample_note": "worldmap",
            "question_id": str(number),
            "question": f"Is circle {number} of figure {figure} larger?",
            "gt_answer_details": "It is.",
            "gt_answer": right,
            **named,
        }

    rows = [
        row("VD", 0, 0, "1", True),
        row("VD", 0, 1, "0", True),
        row("VD", 1, 0, "0", True),
        row("VD", 1, 1, "1", True),
        row("VS", 0, 0, "1", False),
        row("VS", 1, 0, "0", True),
    ]
    return [write(folder / "HallusionBench.json", rows)]


def amber(folder: Path) -> list[str]:
    queries = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 1005, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"},
        {"id": 1006, "image": "AMBER_1.jpg", "query": "Is there a cat in this image?"},
        {"id": 1007, "image": "AMBER_2.jpg", "query": "Is there contact between man and hat?"},
        {"id": 1008, "image": "AMBER_2.jpg", "query": "Are there two dogs in this image?"},
    ]
    annotations = [
        {"id": 1, "type": "generative", "truth": ["sky", "person"], "hallu": ["cat"]},
        {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 1006, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 1007, "type": "relation", "truth": "no"},
        {"id": 1008, "type": "discriminative-attribute-number", "truth": "no"},
    ]
    return [
        write(folder / "query_all.json", queries),
        write(folder / "annotations.json", annotations),
    ]


#: Rows of the hub's sets, to which their pictures are added, and answers that are right.
HUB_MORE: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "docvqa": (
        [
            {
                "questionId": "337",
                "question": "what is the date?",
                "question_types": ["form"],
                "docId": 279,
                "answers": ["1/8/93"],
            }
        ],
        ["1/8/93"],
    ),
    "chartqa": (
        [
            {"type": "human_test", "question": "How many?", "answer": "14"},
            {"type": "augmented_test", "question": "How many?", "answer": "5"},
        ],
        ["14.0", "5"],
    ),
    "ocrbench": (
        [
            {
                "dataset": "IIIT5K",
                "question": "what is written?",
                "question_type": "Regular Text Recognition",
                "answer": ["CENTRE"],
            }
        ],
        ["the centre"],
    ),
    "mmstar": (
        [
            {
                "index": 0,
                "question": "Which?\nOptions: A: a, B: b, C: c, D: d",
                "answer": "A",
                "category": "math",
                "l2_category": "geometry",
            }
        ],
        ["A: a"],
    ),
    "ai2d": (
        [{"question": "Which?", "options": ["a", "b", "c", "d"], "answer": "2"}],
        ["C. c"],
    ),
    "realworldqa": (
        [{"question": "Which? A. a B. b", "answer": "B", "image_path": "0.webp"}],
        ["B"],
    ),
    "mmmu": ([mmmu_row("Art_1", "<image 1> Which?", "B", "['a', 'b']")], ["(B)"]),
    "hallusionbench": (
        [
            {
                "category": "VD",
                "subcategory": "illusion",
                "visual_input": "1",
                "set_id": "0",
                "figure_id": "0",
                "sample_note": "circle",
                "question_id": "0",
                "question": "Is it larger?",
                "gt_answer_details": "It is.",
                "gt_answer": "1",
                "filename": "./hallusion_bench/VD/illusion/0_0.png",
            }
        ],
        ["Yes."],
    ),
    "amber": (
        [{"id": 1006, "query": "Is there a cat?", "type": "relation", "truth": "no"}],
        ["No"],
    ),
}
