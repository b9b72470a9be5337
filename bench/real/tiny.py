"""The walk at a scale that a test can afford: the practice parts, drawn images, two steps of
training. Whether the bench runs, not what it measures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phisense.practice.spoken import RECORDINGS_FOLDER, spoken_questions

if TYPE_CHECKING:
    from .voices import Recording

PARTS = {name: RECORDINGS_FOLDER.parent / name for name in ("language", "vision")}
SPEECH = RECORDINGS_FOLDER.parent / "speech"
APART = 2  # images
CAPTION = "Describe the picture in one sentence."
COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (240, 240, 240),
    "black": (9, 9, 9),
    "gray": (120, 120, 120),
}
CHANGES = (
    "vision.encoder=clip",
    "projector.pool=1",
    "train.quantize=false",
    "train.instruct.max_steps=2",
    "train.lora.rank=4",
    "merge.dtype=float32",
    "merge.samples=4",
    "merge.max_delta_loss=1",
    "evaluate.max_new_tokens=4",
)


def make_photographs(folder: Path) -> Path:
    """A folder in the photographs' layout: images of a colour with what is asked of
    photographs; the first image of each colour is trained on, the second held out.
    """
    (folder / "images").mkdir(parents=True)
    ask = {"from": "human", "value": f"<image>\n{CAPTION}"}
    talks: list[object] = []
    captions: list[object] = []
    questions: list[object] = []
    for number, colour in enumerate(COLOURS):
        for name in (f"{colour}.png", f"held-{colour}.png"):
            _draw(folder / "images" / name, colour, 60)
        asked = [
            ("Is there a dog in the picture?", "Yes." if number % 2 else "No."),
            (
                "Where is it: snow, grass, water, sand or street?",
                "Grass." if number % 3 else "Snow.",
            ),
        ]
        turns = []
        for place, (question, answer) in enumerate([*asked, (CAPTION, f"It is {colour}.")]):
            turns += [
                {"from": "human", "value": question if place else f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ]
        row = {"id": colour, "image": f"{colour}.png"}
        talks.append({**row, "conversations": turns})
        captions.append({**row, "conversations": [ask, turns[-1]]})
        questions += [
            {
                "question_id": f"{colour}-{place}",
                "image": f"held-{colour}.png",
                "text": question,
                "answer": answer,
                "category": "yes/no" if place == 0 else "place",
            }
            for place, (question, answer) in enumerate(asked)
        ]
    (folder / "instruct.json").write_text(json.dumps(talks))
    (folder / "align.json").write_text(json.dumps(captions))
    (folder / "heldout.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    return folder


def make_easy_vqa(folder: Path) -> Path:
    """A folder in the layout of easy-VQA's package."""
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True, exist_ok=True)
        rows: list[list[object]] = []
        for number, colour in enumerate(COLOURS):
            _draw(folder / split / "images" / f"{number}.png", colour, 64)
            rows += [
                ["what color is the shape?", colour, number],
                ["is there a red shape?", "yes" if colour == "red" else "no", number],
            ]
        (folder / split / "questions.json").write_text(json.dumps(rows))
    (folder / "answers.txt").write_text("\n".join(["yes", "no", *COLOURS]))
    return folder


def _draw(path: Path, colour: str, side: int) -> None:
    from PIL import Image

    image = Image.new("RGB", (side, side), COLOURS[colour])
    image.paste((200, 170, 90), (side // 4, side // 4, side // 2, side // 3))
    image.save(path)


def recordings() -> list[Recording]:
    """Two of the practice recordings that no part was trained on."""
    from .voices import Recording

    held_out = [one for one in spoken_questions() if one.heldout]
    return [Recording(one.path, one.text, "read") for one in held_out[:2]]


def speak(texts: Sequence[str]) -> dict[str, Path]:
    """A practice recording for each text, whatever it says."""
    known = recordings()
    return {text: known[number % len(known)].path for number, text in enumerate(texts)}
