"""`phisense evaluate` beside asking one by one with transformers' `generate`, on the CPU.

    python bench/evaluating.py DEMO [--questions 1200]

DEMO is what `phisense demo --out DEMO` left. Both answer the same held-out questions of the same
model folder, in float32, greedily, with as many threads. One by one is what the model card says:
the processor, `generate`, decode, for each question; its answers are normalised and compared as
ours are. Ours is the verb's function whole, from reading pictures to the written report, but for
opening the model. They take turns over all of the questions, since a report costs about a second
however many there are; given are the ratio over all rounds, their median and spread, and how many
answers agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from phisense.conversations import ImageFinder, Question, read_questions
from phisense.evaluation.answer_metrics import is_correct
from phisense.evaluation.predictors import BatchPredictor
from phisense.evaluation.run import evaluate
from phisense.evaluation.tasks import TASKS
from phisense.model import load_model


class OneByOne:
    def __init__(self, folder: Path, images: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder)
        self.images = images

    @torch.inference_mode()
    def __call__(self, question: Question) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = Image.open(self.images / str(question.image))
        inputs = self.processor(
            text=prompt, images=picture, add_special_tokens=False, return_tensors="pt"
        )
        made = self.model.generate(
            **inputs, max_new_tokens=TASKS["own"].max_new_tokens, do_sample=False
        )
        answer: str = self.processor.decode(
            made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        is_correct(answer, question.answers)
        return answer.strip()


def ours(model: BatchPredictor, questions: list[Question], images: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            TASKS["own"],
            questions,
            ImageFinder([images]),
            model,
            out=Path(folder) / "report",
            title="bench",
            conditions=("real",),
        )
        lines = map(
            json.loads, (Path(folder) / "report" / "predictions.jsonl").read_text().splitlines()
        )
        return [line["answer"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="the folder of a demo that has run")
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    folder, images = asked.demo / "models" / "practice", asked.demo / "data" / "images"
    questions = read_questions(asked.demo / "data" / "heldout.jsonl")[: asked.questions]
    batched, single = (
        BatchPredictor(load_model(folder, "cpu"), asked.batch),
        OneByOne(folder, images),
    )
    ours(batched, questions[:16], images), [single(one) for one in questions[:16]]
    seconds: list[tuple[float, float]] = []
    same = 0
    for number in range(asked.rounds):
        began = time.monotonic()
        a = ours(batched, questions, images)
        between = time.monotonic()
        b = [single(one) for one in questions]
        seconds.append((between - began, time.monotonic() - between))
        same += sum(x == y for x, y in zip(a, b, strict=True))
        print(
            f"round {number + 1}: ours {seconds[-1][0]:.1f} s, one by one {seconds[-1][1]:.1f} s",
            flush=True,
        )
    ratios = [theirs / mine for mine, theirs in seconds]
    report: dict[str, Any] = {
        "questions": len(questions),
        "same_answers": same,
        "times": round(sum(t for _, t in seconds) / sum(o for o, _ in seconds), 2),
        "median": round(statistics.median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "questions_per_s": round(asked.rounds * len(questions) / sum(o for o, _ in seconds), 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
