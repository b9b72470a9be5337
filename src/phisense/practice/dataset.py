"""Writes the practice world to disk in the formats people bring: LLaVA-Instruct JSON for training, question JSONL for evaluation.

images/*.jpg
align.json          captions, as LLaVA's alignment set
instruct.json       its three kinds: conversations, detailed descriptions, reasoning; and small talk without a picture
heldout.jsonl       questions on scenes never seen, their digits from held-out images
combinations.jsonl  questions about colour-shape pairs never seen
digits.jsonl        questions that read a held-out handwritten digit
spoken.jsonl        the recorded questions (`spoken`), each about held-out scenes in which it has one right answer
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .. import artefact
from .draw import draw
from .spoken import spoken_questions
from .talk import DESCRIBE_REQUESTS, SMALL_TALK, Question, balanced_questions, caption, describe, name, questions
from .world import CORNERS, Scene, Split, sample_scene

Progress = Callable[[int, int], None]
REASONING = ("relation", "comparison", "count")
#: Of the things in training scenes; elsewhere it is `sample_scene`'s. Handwriting takes the most examples to learn.
TRAIN_DIGIT_SHARE = 0.45
#: Of things in a training scene, each as likely: fuller than elsewhere, since a scene costs the same whatever is in it.
TRAIN_COUNTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4)
CORNERS_ASKED = 3  # in each training conversation: what is there, digits first
CAPTION_REQUESTS = ("Write a caption for the picture.", "Give a caption.", "Caption the picture.")


@dataclass(frozen=True)
class Sizes:
    """Scenes in each split."""

    train: int = 2_700
    heldout: int = 300
    combinations: int = 150
    digits: int = 400


def write_world(out: Path, *, seed: int = 0, sizes: Sizes | None = None, progress: Progress = lambda done, total: None) -> dict[str, int]:
    """Writes pictures and files to `out`, replacing what was there; returns how many scenes each split has."""
    sizes = sizes or Sizes()
    rng = random.Random(f"practice {seed}")
    scenes = {
        "train": [sample_scene(rng, digit_share=TRAIN_DIGIT_SHARE, counts=TRAIN_COUNTS) for _ in range(sizes.train)],
        "heldout": [sample_scene(rng) for _ in range(sizes.heldout)],
        "combinations": [sample_scene(rng, "combinations") for _ in range(sizes.combinations)],
        "digits": [_scene_with_digit(rng) for _ in range(sizes.digits)],
    }
    with artefact.staged(out, kind="practice world", about={"seed": seed}) as folder:
        (folder / "images").mkdir()
        _draw_all(folder / "images", scenes, progress)
        _write_training(folder, scenes["train"], rng)
        _write_questions(folder / "heldout.jsonl", "heldout", scenes["heldout"], lambda s: balanced_questions(s, rng, 4))
        _write_questions(folder / "combinations.jsonl", "combinations", scenes["combinations"], lambda s: about_held_out(s, rng, 3))
        artefact.write_bytes(folder / "spoken.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in _spoken_rows(scenes["heldout"])))
        _write_questions(
            folder / "digits.jsonl", "digits", scenes["digits"], lambda s: [rng.choice([q for q in questions(s) if q.kind == "digit"])]
        )
    return {split: len(members) for split, members in scenes.items()}


def _draw_all(folder: Path, scenes: dict[str, list[Scene]], progress: Progress) -> None:
    """In threads: most of the time goes into Pillow and NumPy, which do not hold the interpreter's lock."""
    jobs = [(split, i, scene) for split, members in scenes.items() for i, scene in enumerate(members)]

    def paint(job: tuple[str, int, Scene]) -> None:
        split, i, scene = job
        draw(scene, "train" if split == "train" else "heldout").save(folder / picture_name(split, i), quality=92)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(paint, jobs), 1):
            progress(done, len(jobs))


def picture_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.jpg"


def about_held_out(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """Questions whose wording or answer names the held-out colour or shape: those a model can only get right by combining anew."""
    things = scene.find(lambda t: t.held_out)
    names = {name(scene, thing) for thing in things} | {f"{t.colour} {t.noun}" for t in things}
    asked = [q for q in questions(scene) if any(n is not None and n in q.text for n in names) or _answers_held_out(q, scene)]
    by_kind: dict[str, list[Question]] = {}
    for question in asked:
        by_kind.setdefault(question.kind, []).append(question)
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    return [rng.choice(by_kind[kind]) for kind in kinds[:count]]


def _answers_held_out(question: Question, scene: Scene) -> bool:
    """Whether a colour or shape question is answered by the held-out thing."""
    things = scene.find(lambda t: t.held_out)
    return question.kind in ("colour", "shape") and any(question.answer.lower().rstrip(".") in (t.colour, t.noun) for t in things)


def _scene_with_digit(rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng)
        if any(q.kind == "digit" for q in questions(scene)):
            return scene


def _write_training(folder: Path, scenes: Sequence[Scene], rng: random.Random) -> None:
    align, instruct = [], []
    for i, scene in enumerate(scenes):
        picture = picture_name("train", i)
        align.append(_row(f"caption-{i}", picture, [(rng.choice(CAPTION_REQUESTS), f"{_capital(caption(scene))}.")], rng))
        turns = [(q.text, q.answer) for q in _conversation(scene, rng)]
        instruct.append(_row(f"conversation-{i}", picture, turns, rng))
        if i % 4 == 0:
            instruct.append(_row(f"detail-{i}", picture, [(rng.choice(DESCRIBE_REQUESTS), describe(scene))], rng))
        if i % 4 == 1:
            reasons = [q for q in questions(scene) if q.kind in REASONING]
            instruct.append(_row(f"reasoning-{i}", picture, [(q.text, q.answer) for q in rng.sample(reasons, 3)], rng))
        if i % 20 == 2:
            instruct.append(_row(f"talk-{i}", None, [rng.choice(SMALL_TALK) for _ in range(2)], rng))
    rng.shuffle(instruct)
    artefact.write_bytes(folder / "align.json", orjson.dumps(align))
    artefact.write_bytes(folder / "instruct.json", orjson.dumps(instruct))


def _conversation(scene: Scene, rng: random.Random) -> list[Question]:
    """Questions of every kind, and what is in each of some corners: that is the hardest to see, of handwriting above all."""
    asked = balanced_questions(scene, rng, rng.randint(4, 7))
    known = {q.text for q in asked}
    reading = {q.text: q for q in questions(scene) if q.kind in ("digit", "shape") and " at the " in q.text}
    for thing in sorted(rng.sample(scene.things, len(scene.things)), key=lambda thing: not thing.is_digit)[:CORNERS_ASKED]:
        kind = "digit" if thing.is_digit else "shape"
        text = f"{rng.choice(('What', 'Which'))} {kind} is at the {CORNERS[thing.corner]}?"
        if text not in known:
            asked.insert(rng.randrange(len(asked) + 1), reading[text])
    return asked


def _row(row_id: str, picture: str | None, turns: list[tuple[str, str]], rng: random.Random) -> dict[str, Any]:
    """One LLaVA row; as in the published set, the picture's marker opens or closes the first question."""
    spoken = [part for asked, told in turns for part in ({"from": "human", "value": asked}, {"from": "gpt", "value": told})]
    if picture is None:
        return {"id": row_id, "conversations": spoken}
    first = spoken[0]["value"]
    spoken[0]["value"] = f"<image>\n{first}" if rng.random() < 0.9 else f"{first}\n<image>"
    return {"id": row_id, "image": picture, "conversations": spoken}


def _write_questions(path: Path, split: str, scenes: Sequence[Scene], ask: Callable[[Scene], list[Question]]) -> None:
    rows: list[dict[str, Any]] = []
    for i, scene in enumerate(scenes):
        for question in ask(scene):
            row = {"question_id": f"{split}-{i}-{len(rows)}", "image": picture_name(split, i)}
            rows.append({**row, "text": question.text, "answer": question.answer, "category": question.kind})
    artefact.write_bytes(path, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _spoken_rows(scenes: Sequence[Scene], each: int = 3) -> list[dict[str, Any]]:
    """Every recorded question, with the first `each` scenes that it can be asked about."""
    known: dict[str, list[tuple[int, Question]]] = {}
    for i, scene in enumerate(scenes):
        for question in questions(scene):
            known.setdefault(question.text, []).append((i, question))
    rows: list[dict[str, Any]] = []
    for recording in spoken_questions():
        for i, question in known.get(recording.text, [])[:each]:
            row = {"question_id": f"{recording.path.stem}-{i}", "image": picture_name("heldout", i), "text": question.text}
            rows.append({**row, "answer": question.answer, "category": question.kind, "sound": recording.path.name})
    return rows


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


__all__ = ["Sizes", "Split", "about_held_out", "picture_name", "write_world"]
