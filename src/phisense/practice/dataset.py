"""Writes the practice data set in common formats: LLaVA-Instruct JSON for training, question JSONL
for evaluation.

images/*.jpg
align.json          captions, as in LLaVA's alignment set
instruct.json       LLaVA's three kinds: conversations, detailed descriptions, reasoning; and small
                    talk without an image
heldout.jsonl       questions about unseen scenes, with held-out digit images
combinations.jsonl  questions about unseen color-shape pairs
digits.jsonl        questions about a held-out handwritten digit
spoken.jsonl        the recorded questions (`spoken`), each with held-out scenes in which it has
                    exactly one right answer
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import orjson

from .. import artifacts
from ..pipeline.progress import OnEvent, Progress, ignore
from .dialogue import (
    DESCRIBE_REQUESTS,
    SMALL_TALK,
    SceneQuestion,
    balanced_questions,
    caption,
    describe,
    referring_phrase,
    scene_questions,
)
from .draw import draw_scene
from .spoken import spoken_questions
from .world import CORNERS, Scene, Split, sample_scene

WORLD_KIND = "practice world"
REASONING = ("relation", "comparison", "count")
#: Share of digits among the things in training scenes; elsewhere the default of `sample_scene`.
#: Handwriting takes the most examples to learn.
TRAIN_DIGIT_SHARE = 0.45
#: Numbers of things in a training scene, equally likely: more than elsewhere, since a scene costs
#: the same whatever it contains.
TRAIN_COUNTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4)
CORNER_QUESTIONS = 3  # per training conversation, digits first
CAPTION_REQUESTS = ("Write a caption for the picture.", "Give a caption.", "Caption the picture.")


@dataclass(frozen=True)
class Sizes:
    """Number of scenes in each split."""

    train: int = 2_700
    heldout: int = 300
    combinations: int = 150
    digits: int = 400


def write_world(
    out: Path,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> dict[str, int]:
    """Write images and files to `out` atomically; returns the number of scenes per split."""
    sizes = sizes or Sizes()
    rng = random.Random(f"practice {seed}")
    scenes = {
        "train": [
            sample_scene(rng, digit_share=TRAIN_DIGIT_SHARE, counts=TRAIN_COUNTS)
            for _ in range(sizes.train)
        ],
        "heldout": [sample_scene(rng) for _ in range(sizes.heldout)],
        "combinations": [sample_scene(rng, "combinations") for _ in range(sizes.combinations)],
        "digits": [_scene_with_digit(rng) for _ in range(sizes.digits)],
    }
    about = {"seed": seed, "scenes": sizes.train}
    with artifacts.staged_artifact(
        out, kind=WORLD_KIND, about=about, overwrite=overwrite
    ) as folder:
        (folder / "images").mkdir()
        _draw_all(folder / "images", scenes, on_event)
        _write_training(folder, scenes["train"], rng)
        _write_questions(
            folder / "heldout.jsonl",
            "heldout",
            scenes["heldout"],
            lambda s: balanced_questions(s, rng, 4),
        )
        _write_questions(
            folder / "combinations.jsonl",
            "combinations",
            scenes["combinations"],
            lambda s: held_out_questions(s, rng, 3),
        )
        artifacts.write_bytes(
            folder / "spoken.jsonl",
            b"".join(orjson.dumps(row) + b"\n" for row in _spoken_rows(scenes["heldout"])),
        )
        _write_questions(
            folder / "digits.jsonl",
            "digits",
            scenes["digits"],
            lambda s: [rng.choice([q for q in scene_questions(s) if q.kind == "digit"])],
        )
    return {split: len(members) for split, members in scenes.items()}


def _draw_all(folder: Path, scenes: dict[str, list[Scene]], on_event: OnEvent) -> None:
    """Draw all images in threads: Pillow and NumPy, which take most time, release the GIL."""
    jobs = [
        (split, i, scene) for split, members in scenes.items() for i, scene in enumerate(members)
    ]

    def paint(job: tuple[str, int, Scene]) -> None:
        split, i, scene = job
        draw_scene(scene, "train" if split == "train" else "heldout").save(
            folder / scene_image_name(split, i), quality=92
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(paint, jobs), 1):
            on_event(Progress("drawing pictures", done, len(jobs), "images"))


def scene_image_name(split: str, number: int) -> str:
    """File name of image `number` of a split."""
    return f"{split}-{number:05d}.jpg"


def held_out_questions(scene: Scene, rng: random.Random, count: int) -> list[SceneQuestion]:
    """Questions whose wording or answer names the held-out color or shape.

    A model can only answer these by compositional generalization.
    """
    things = scene.find(lambda t: t.held_out)
    names = {referring_phrase(scene, thing) for thing in things} | {
        f"{t.colour} {t.noun}" for t in things
    }
    asked = [
        q
        for q in scene_questions(scene)
        if any(n is not None and n in q.text for n in names) or _answers_held_out(q, scene)
    ]
    by_kind: dict[str, list[SceneQuestion]] = {}
    for question in asked:
        by_kind.setdefault(question.kind, []).append(question)
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    return [rng.choice(by_kind[kind]) for kind in kinds[:count]]


def _answers_held_out(question: SceneQuestion, scene: Scene) -> bool:
    """Whether the held-out thing is the answer to a color or shape question."""
    things = scene.find(lambda t: t.held_out)
    return question.kind in ("colour", "shape") and any(
        question.answer.lower().rstrip(".") in (t.colour, t.noun) for t in things
    )


def _scene_with_digit(rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng)
        if any(q.kind == "digit" for q in scene_questions(scene)):
            return scene


def _write_training(folder: Path, scenes: Sequence[Scene], rng: random.Random) -> None:
    align, instruct = [], []
    for i, scene in enumerate(scenes):
        picture = scene_image_name("train", i)
        align.append(
            _row(
                f"caption-{i}",
                picture,
                [(rng.choice(CAPTION_REQUESTS), f"{_capital(caption(scene))}.")],
                rng,
            )
        )
        turns = [(q.text, q.answer) for q in _conversation(scene, rng)]
        instruct.append(_row(f"conversation-{i}", picture, turns, rng))
        if i % 4 == 0:
            instruct.append(
                _row(
                    f"detail-{i}", picture, [(rng.choice(DESCRIBE_REQUESTS), describe(scene))], rng
                )
            )
        if i % 4 == 1:
            reasons = [q for q in scene_questions(scene) if q.kind in REASONING]
            instruct.append(
                _row(
                    f"reasoning-{i}",
                    picture,
                    [(q.text, q.answer) for q in rng.sample(reasons, 3)],
                    rng,
                )
            )
        if i % 20 == 2:
            instruct.append(
                _row(f"talk-{i}", None, [rng.choice(SMALL_TALK) for _ in range(2)], rng)
            )
    rng.shuffle(instruct)
    artifacts.write_bytes(folder / "align.json", orjson.dumps(align))
    artifacts.write_bytes(folder / "instruct.json", orjson.dumps(instruct))


def _conversation(scene: Scene, rng: random.Random) -> list[SceneQuestion]:
    """Questions of every kind, and one about the content of up to three corners.

    Corners are the hardest to read, above all handwriting.
    """
    asked = balanced_questions(scene, rng, rng.randint(4, 7))
    known = {q.text for q in asked}
    reading = {
        q.text: q
        for q in scene_questions(scene)
        if q.kind in ("digit", "shape") and " at the " in q.text
    }
    for thing in sorted(
        rng.sample(scene.things, len(scene.things)), key=lambda thing: not thing.is_digit
    )[:CORNER_QUESTIONS]:
        kind = "digit" if thing.is_digit else "shape"
        text = f"{rng.choice(('What', 'Which'))} {kind} is at the {CORNERS[thing.corner]}?"
        if text not in known:
            asked.insert(rng.randrange(len(asked) + 1), reading[text])
    return asked


LlavaTurn = TypedDict("LlavaTurn", {"from": str, "value": str})


class LlavaRow(TypedDict):
    """A conversation in LLaVA's format, about one image or none."""

    id: str
    image: NotRequired[str]
    conversations: list[LlavaTurn]


def _row(
    row_id: str, picture: str | None, turns: list[tuple[str, str]], rng: random.Random
) -> LlavaRow:
    """One LLaVA row; as in the published set, the image marker starts or ends the first turn."""
    spoken = [
        LlavaTurn({"from": speaker, "value": text})
        for asked, told in turns
        for speaker, text in (("human", asked), ("gpt", told))
    ]
    if picture is None:
        return {"id": row_id, "conversations": spoken}
    first = spoken[0]["value"]
    spoken[0]["value"] = f"<image>\n{first}" if rng.random() < 0.9 else f"{first}\n<image>"
    return {"id": row_id, "image": picture, "conversations": spoken}


def _write_questions(
    path: Path, split: str, scenes: Sequence[Scene], ask: Callable[[Scene], list[SceneQuestion]]
) -> None:
    rows: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        for question in ask(scene):
            row = {"question_id": f"{split}-{i}-{len(rows)}", "image": scene_image_name(split, i)}
            rows.append(
                {**row, "text": question.text, "answer": question.answer, "category": question.kind}
            )
    artifacts.write_bytes(path, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _spoken_rows(scenes: Sequence[Scene], each: int = 3) -> list[dict[str, Any]]:
    """Every recorded question, with the first `each` scenes that it can be asked about."""
    known: dict[str, list[tuple[int, SceneQuestion]]] = {}
    for i, scene in enumerate(scenes):
        for question in scene_questions(scene):
            known.setdefault(question.text, []).append((i, question))
    rows: list[dict[str, Any]] = []
    for recording in spoken_questions():
        for i, question in known.get(recording.text, [])[:each]:
            row = {
                "question_id": f"{recording.path.stem}-{i}",
                "image": scene_image_name("heldout", i),
                "text": question.text,
            }
            rows.append(
                {
                    **row,
                    "answer": question.answer,
                    "category": question.kind,
                    "metadata": {"recording": recording.path.name},
                }
            )
    return rows


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


__all__ = ["Sizes", "Split", "held_out_questions", "scene_image_name", "write_world"]
