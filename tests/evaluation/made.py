"""Reports made up for tests: pictures, predictions and figures whose truth is known, without any
model.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from phisense import artifacts
from phisense.conversations import ImageFinder, Question
from phisense.evaluation.measurement import Measurement
from phisense.evaluation.model_facts import ModelFacts
from phisense.evaluation.report import REPORT_KIND, AttentionGrid, Report, read_report
from phisense.evaluation.report_writer import write_report
from phisense.evaluation.scores import Prediction, score_predictions
from phisense.evaluation.task import score_answer
from phisense.evaluation.tasks import TASKS

WORDS = ("Red.", "Green.", "Blue.", "White.")


def questions(pictures: Path, count: int = 60) -> list[Question]:
    """Of three kinds, one of them yes/no, and a description of every tenth picture."""
    pictures.mkdir(exist_ok=True)
    made = []
    for i in range(count):
        name = f"{i % 20:02}.png"
        if not (pictures / name).exists():
            Image.new("RGB", (48, 32), (i * 11 % 256, i * 29 % 256, 90)).save(pictures / name)
        if i % 10 == 9:
            made.append(
                Question(
                    f"q{i}",
                    name,
                    "Describe it.",
                    ("A plain rectangle of one colour and nothing else.",),
                    "description",
                )
            )
        elif i % 3 == 0:
            made.append(
                Question(f"q{i}", name, "Is it red?", ("Yes." if i % 2 else "No.",), "exists")
            )
        else:
            made.append(
                Question(
                    f"q{i}",
                    name,
                    "What colour is it?",
                    (WORDS[i % 4],),
                    "colour" if i % 3 == 1 else "place",
                )
            )
    return made


def said(asked: list[Question], right: float, seed: int) -> list[str]:
    """So large a share of right answers."""
    chance = random.Random(seed)
    return [q.answers[0] if chance.random() < right else "Maybe." for q in asked]


def report(
    folder: Path,
    pictures: Path,
    model: str,
    right: float = 0.9,
    *,
    asked: list[Question] | None = None,
    blind: float = 0.3,
    conditions: tuple[str, ...] = ("real", "blind", "shuffled"),
    facts: dict[str, Any] | None = None,
    gaze: dict[str, AttentionGrid] | None = None,
    task: str = "own",
    **about: Any,
) -> Report:
    """A whole report folder, read back."""
    asked = asked or questions(pictures)
    answers = {
        name: said(asked, right if name == "real" else blind, seed)
        for seed, name in enumerate(conditions)
    }
    used = TASKS[task] if task in TASKS else replace(TASKS["own"], name=task)
    scores = score_predictions(used, asked, answers)
    record = {
        "seed": 0,
        "model": model,
        "engine": "torch",
        "device": "cpu",
        "dtype": "float32",
        "data": [{"name": "heldout.jsonl", "sha256": "ab" * 32}],
        "seconds": 12.5,
        "max_new_tokens": 64,
        "batch": 8,
        "limit": None,
        "prompt": "<image>\nWhat colour is it?",
        "fingerprint": model * 20,
    } | about
    predictions = [
        Prediction(
            q.id,
            q.kind,
            q.image,
            q.image if name == "real" else None,
            q.text,
            q.answers,
            name,
            answer,
            score_answer(used, q, answer).score,
            choices=q.choices,
            group=q.group,
        )
        for name in conditions
        for q, answer in zip(asked, answers[name], strict=True)
    ]
    with artifacts.staged_artifact(
        folder, kind=REPORT_KIND, about={"title": f"{model} on heldout"}
    ) as aside:
        write_report(
            aside,
            title=f"{model} on heldout",
            scores=replace(scores, about=Measurement(record)),
            predictions=predictions,
            facts=ModelFacts.from_dict(facts or {}),
            images=ImageFinder([pictures]),
            attention=gaze,
        )
    return read_report(folder)


FACTS: dict[str, Any] = {
    "name": "practice",
    "recipe": {
        "name": "practice",
        "seed": 3,
        "language": {"part": "microsoft/Phi-3.5-mini-instruct"},
    },
    "parts": {
        "language": {"name": "microsoft/Phi-3.5-mini-instruct", "kind": "phi3", "layers": 32},
        "vision": {"name": "clip", "kind": "clip"},
    },
    "data": [{"stage": "align", "name": "captions.json", "rows": 558128, "weight": 1.0}],
    "held_out": ["heldout.jsonl"],
    "hours": 17.25,
    "stages": {
        "align": {
            "samples": 558128,
            "steps": 2180,
            "last_loss": 2.1,
            "held_out": 0.25,
            "blind": 0.125,
            "tokens": 10**8,
            "tokens_per_second": 8865.0,
        }
    },
    "curves": {
        "align": {
            "step": [10, 20, 30],
            "loss": [5.0, 3.0, 2.1],
            "learning_rate": [1e-3, 1e-3, 0.0],
            "held_out": {"step": [30], "accuracy": [0.25], "blind": [0.125]},
        }
    },
    "looks": {
        "verdict": "looks",
        "questions": 128,
        "pictures": 99,
        "real": 0.25,
        "blind": 0.125,
        "shuffled": 0.14,
        "difference": {"value": 0.125, "low": 0.062, "high": 0.19},
        "difference_shuffled": {"value": 0.11, "low": 0.031, "high": 0.17},
    },
    "trainable": 25165824,
    "projector_change": 0.42,
    "merge": {
        "reference": "the unmerged adapter on the dequantised NF4 base",
        "reference_loss": 0.5,
        "probes": 64,
        "dtype": "bfloat16",
        "projector_change": 0.0,
        "merged": {"loss": 0.5001, "delta_loss": 0.0001, "same_answers": 1.0},
        "shuffled": {"loss": 4.5, "delta_loss": 4.0, "same_answers": 0.1},
        "gate": {"most_delta_loss": 0.002, "least_same_answers": 0.995},
    },
}
