"""A few rows of each benchmark, written by hand in the schema of its official files; and pictures
as they come inside files.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def vqav2(folder: Path) -> list[str]:
    head = {
        "info": {"year": 2017},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "license": {},
    }
    questions = [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 42, "question": "How many dogs are there?", "question_id": 42001},
    ]
    people = [["down"] * 8 + ["table"] * 2, ["2", "two", *["3"] * 8]]
    annotations = [
        {
            "question_type": "none of the above",
            "multiple_choice_answer": told[0],
            "image_id": question["image_id"],
            "answer_type": kind,
            "answers": [
                {"answer": one, "answer_confidence": "yes", "answer_id": i}
                for i, one in enumerate(told, 1)
            ],
            "question_id": question["question_id"],
        }
        for question, told, kind in zip(questions, people, ("other", "number"), strict=True)
    ]
    return [
        write(
            folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**head, "questions": questions}
        ),
        write(folder / "v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations}),
    ]


def gqa(folder: Path) -> list[str]:
    def row(question: str, answer: str, kind: str, balanced: bool) -> dict[str, Any]:
        return {
            "semantic": [],
            "entailed": [],
            "equivalent": [],
            "question": question,
            "imageId": "n161313",
            "isBalanced": balanced,
            "groups": {"global": None, "local": "x"},
            "answer": answer,
            "semanticStr": "",
            "annotations": {},
            "types": {"detailed": "existAttr", "semantic": "attr", "structural": kind},
            "fullAnswer": f"It is {answer}.",
        }

    rows = {
        "201307251": row("Is it overcast?", "no", "verify", True),
        "201640614": row("Who is wearing the dress?", "woman", "query", True),
        "201640615": row("What is it?", "sky", "query", False),
    }
    return [write(folder / "testdev_balanced_questions.json", rows)]


def textvqa(folder: Path) -> list[str]:
    data = [
        {
            "image_id": "003a8ae2ef43b901",
            "image_width": 1024,
            "image_height": 664,
            "set_name": "val",
            "question_id": 34602,
            "question": "what is the brand of this camera?",
            "question_tokens": ["what"],
            "image_classes": ["Cassette deck"],
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": [
                "nous les gosses",
                "dakota",
                "clos culombu",
                "dakota digital",
                "dakota",
                *["dakota"] * 5,
            ],
        }
    ]
    return [
        write(
            folder / "TextVQA_0.5.1_val.json",
            {
                "dataset_type": "val",
                "dataset_name": "textvqa",
                "dataset_version": "0.5.1",
                "data": data,
            },
        )
    ]


def ocr(folder: Path) -> str:
    data = [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"], "ocr_info": []}]
    return write(
        folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"dataset_type": "val", "data": data}
    )


def scienceqa(folder: Path) -> list[str]:
    def row(image: str | None, hint: str, answer: int, split: str = "test") -> dict[str, Any]:
        return {
            "question": "Which of these is a solid?",
            "choices": ["milk", "stone", "air"],
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": "closed choice",
            "grade": "grade4",
            "subject": "natural science",
            "topic": "physics",
            "category": "Materials",
            "skill": "",
            "lecture": "",
            "solution": "",
            "split": split,
        }

    problems = {
        "5": row("image.png", "", 1),
        "11": row("image.png", "The air is cold.", 0),
        "12": row(None, "", 0),
        "13": row("image.png", "", 0, "train"),
    }
    splits = {"train": ["13"], "val": [], "test": ["5", "11", "12"]}
    return [write(folder / "problems.json", problems), write(folder / "pid_splits.json", splits)]


def pope(folder: Path, category: str = "random") -> str:
    rows = [
        {
            "question_id": 1,
            "image": "COCO_val2014_000000310196.jpg",
            "text": "Is there a snowboard in the image?",
            "label": "yes",
        },
        {
            "question_id": 2,
            "image": "COCO_val2014_000000310196.jpg",
            "text": "Is there a car in the image?",
            "label": "no",
        },
        {
            "question_id": 3,
            "image": "COCO_val2014_000000210789.jpg",
            "text": "Is there a person in the image?",
            "label": "yes",
        },
        {
            "question_id": 4,
            "image": "COCO_val2014_000000210789.jpg",
            "text": "Is there a cup in the image?",
            "label": "no",
        },
    ]
    return lines(folder / f"coco_pope_{category}.json", rows)


def mmbench(folder: Path) -> list[str]:
    """Two questions of three and two options; the second's picture is that of the first, named by
    its number.
    """
    first = base64.b64encode(png(10)).decode()
    rows = [
        [
            "241",
            "Identify the question.",
            "",
            "red",
            "green",
            "blue",
            "",
            "C",
            "ocr",
            first,
            "x",
            "perception",
            "",
            "dev",
        ],
        [
            "252",
            "What is shown?",
            "A hint.",
            "a cat",
            "a dog",
            "nan",
            "",
            "A",
            "object",
            "241",
            "x",
            "perception",
            "",
            "dev",
        ],
    ]
    head = [
        "index",
        "question",
        "hint",
        "A",
        "B",
        "C",
        "D",
        "answer",
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
        "split",
    ]
    return [
        write(
            folder / "mmbench_dev_20230712.tsv",
            "\n".join("\t".join(row) for row in [head, *rows]) + "\n",
        )
    ]


def mme(folder: Path) -> list[str]:
    """Both layouts of the release: pictures beside texts, and apart from them."""
    for name, shade in (("000000006040", 1), ("000000006041", 2)):
        write(
            folder / "existence" / f"{name}.txt",
            "Is there a dog? Please answer yes or no.\tYes\nIs there a cat? Please answer yes or"
            " no.\tNo\n",
        )
        (folder / "existence" / f"{name}.jpg").write_bytes(png(shade))
    write(
        folder / "artwork" / "questions_answers_YN" / "10002.txt",
        "Is it old? Please answer yes or no.\tNo\nIs it art? Please answer yes or no.\tYes\n",
    )
    (folder / "artwork" / "images").mkdir()
    (folder / "artwork" / "images" / "10002.jpg").write_bytes(png(3))
    write(
        folder / "code_reasoning" / "0020.txt",
        "Is it 1? Please answer yes or no.\tYes\nIs it 2? Please answer yes or no.\tNo\n",
    )
    (folder / "code_reasoning" / "0020.png").write_bytes(png(4))
    return [str(folder)]


def captions(folder: Path) -> list[str]:
    images = [
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg"},
        {"id": 25, "file_name": "COCO_val2014_000000000025.jpg"},
    ]
    told = [
        (9, "A cat on a mat."),
        (9, "The cat sat."),
        (25, "Two giraffes near a tree."),
        (25, "Giraffes eat leaves."),
    ]
    annotations = [
        {"image_id": image, "id": i, "caption": caption} for i, (image, caption) in enumerate(told)
    ]
    return [
        write(
            folder / "captions_val2014.json",
            {"info": {}, "images": images, "licenses": [], "annotations": annotations},
        )
    ]
