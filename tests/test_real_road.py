"""The hub path on real files: the real Phi-3 tokenizer at vocabulary 32064, 45 real rows, real
photographs, random weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from .tiny import make_language, make_vision

pytestmark = pytest.mark.slow

PHOTOGRAPHS = ("truck.jpg", "landscape_exif1.jpg", "landscape_exif6.jpg", "cmyk.jpg", "flower.jpg")


@pytest.fixture(scope="module")
def real(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with parts in hub layout, the 45 rows in LLaVA's schema, a photograph for each, and a
    recipe.
    """
    root = tmp_path_factory.mktemp("real")
    make_language(
        root / "parts" / "language", tokenizer=fixtures / "phi3-tokenizer", rows=32064, window=4096
    )
    make_vision(root / "parts" / "vision", side=56, patch=14)
    (root / "data" / "images").mkdir(parents=True)
    for name in PHOTOGRAPHS:
        shutil.copy(fixtures / "images" / name, root / "data" / "images")
    rows, seen = [], {}
    for i, line in enumerate((fixtures / "instruct" / "qa.jsonl").read_text().splitlines()):
        row = json.loads(line)
        photograph = seen.setdefault(row["image"], PHOTOGRAPHS[len(seen) % len(PHOTOGRAPHS)])
        turns = [
            {"from": "human", "value": f"<image>\n{row['instruction']}"},
            {"from": "gpt", "value": row["output"]},
        ]
        rows.append({"id": f"{row['id']}-{i}", "image": photograph, "conversations": turns})
    (root / "data" / "instruct.json").write_text(json.dumps(rows))
    recipe: dict[str, Any] = {
        "name": "real",
        "root": str(root),
        "language": {"part": "./parts/language"},
        "vision": {"part": "./parts/vision"},
        "data": {
            "images": "data/images",
            "align": ["data/instruct.json"],
            "instruct": ["data/instruct.json"],
            "held_out": ["data/instruct.json"],
        },
        "train": {
            "lora": {"rank": 4, "alpha": 8},
            "align": {
                "batch_size": 8,
                "micro_batch_size": 4,
                "max_steps": 2,
                "learning_rate": 0.001,
                "max_length": 1024,
            },
            "instruct": {
                "batch_size": 8,
                "micro_batch_size": 4,
                "max_steps": 2,
                "learning_rate": 0.0002,
                "max_length": 1024,
            },
        },
        "merge": {"dtype": "float32", "samples": 8},
    }
    (root / "real.yaml").write_text(yaml.safe_dump(recipe))
    return root


def test_there_are_45_rows_without_a_defect(real: Path, verb: Any) -> None:
    found = verb("check", real / "data" / "instruct.json", "--images", real / "data" / "images")
    assert (found["rows"], found["good"], found["defects"]) == (45, 45, [])


def test_labels_are_the_answers_and_nothing_else(real: Path, fixtures: Path, verb: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fixtures / "phi3-tokenizer")
    rows = verb("show", real / "data" / "instruct.json", "-n", 45, "--recipe", real / "real.yaml")
    answers = [
        json.loads(line)["output"]
        for line in (fixtures / "instruct" / "qa.jsonl").read_text().splitlines()
    ]
    for row, answer in zip(rows, answers, strict=True):
        taught = [label for label in row["labels"] if label != -100]
        assert taught[-1] == 32007
        assert taught[:-1] == tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
        assert row["ids"].count(32011) == 16


def test_the_whole_road(real: Path, verb: Any) -> None:
    recipe = real / "real.yaml"
    assert verb("features", recipe)["pictures"] == len(PHOTOGRAPHS)
    facts = verb("train", recipe)
    assert facts["projector_change"] > 0
    assert facts["stages"]["instruct"]["steps"] == 2
    report = verb("merge", facts["run"])
    assert abs(report["merged"]["delta_loss"]) <= 0.002
    answer = verb(
        "ask",
        report["model"],
        "--image",
        real / "data" / "images" / "truck.jpg",
        "-q",
        "What is this?",
        "--max-new-tokens",
        8,
    )
    assert isinstance(answer["answer"], str)
    scores = verb(
        "evaluate",
        report["model"],
        "--data",
        real / "data" / "instruct.json",
        "--images",
        real / "data" / "images",
        "--condition",
        "real",
        "--limit",
        4,
        "--max-new-tokens",
        8,
        "--out",
        real / "report",
    )
    assert scores["questions"] > 0
    assert "rouge_l" in scores["real"]["figures"]
