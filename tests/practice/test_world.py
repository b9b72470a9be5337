"""The practice world: right answers, and nothing held out that training has seen."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from phisense.conversations import check, read_conversations, read_questions
from phisense.practice.dataset import Sizes, write_world
from phisense.practice.dialogue import QUESTION_KINDS, balanced_questions, describe, scene_questions
from phisense.practice.draw import digit_images, draw_scene
from phisense.practice.spoken import spoken_questions, word_error_rate
from phisense.practice.world import HELD_OUT_COMBINATIONS, Scene, Thing, near_miss, sample_scene
from phisense.vision.image_checks import check_image

SCENE = Scene(
    (
        Thing("circle", "red", "small", 0),
        Thing("7", "blue", "large", 3),
        Thing("circle", "blue", "large", 1),
    ),
    5,
)


def asked(text: str) -> str | None:
    return {q.text: q.answer for q in scene_questions(SCENE)}.get(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What digit is in the picture?", "7."),
        ("How many things are there?", "3."),
        ("How many blue things are there?", "2."),
        ("Where is the red circle?", "Top left."),
        ("Is there anything at the bottom left?", "No."),
        ("What colour is the thing at the top right?", "Blue."),
        ("Is the red circle to the left of the blue circle?", "Yes."),
        ("Which is larger, the red circle or the 7?", "The 7."),
        ("Is there a red 7?", "No."),
        ("What colour is the circle?", None),  # there are two
    ],
)
def test_answers_by_hand(text: str, answer: str | None) -> None:
    assert asked(text) == answer


def test_no_question_has_two_answers() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = sample_scene(rng)
        found: dict[str, str] = {}
        for question in scene_questions(scene):
            assert found.setdefault(question.text, question.answer) == question.answer
        assert {q.kind for q in scene_questions(scene)} <= set(QUESTION_KINDS)


@pytest.mark.slow
def test_what_is_held_out_stays_out() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        scene = sample_scene(rng)
        assert not any(t.held_out for t in (*scene.things, *near_miss(scene, rng).things))
    assert all(
        any(t.held_out for t in sample_scene(rng, "combinations").things) for _ in range(200)
    )
    # text, never drawn to be trained on
    assert any(t.held_out for _ in range(50) for t in sample_scene(rng, "read").things)
    train, held_out = digit_images("train"), digit_images("heldout")
    assert sum(map(len, train)) + sum(map(len, held_out)) == 1797
    seen = {image.tobytes() for images in train for image in images}
    assert not [1 for images in held_out for image in images if image.tobytes() in seen]
    assert (
        len({colour for colour, _ in HELD_OUT_COMBINATIONS})
        == len({shape for _, shape in HELD_OUT_COMBINATIONS})
        == 8
    )


def test_training_data_never_shows_or_names_a_held_out_pair(world: Path) -> None:
    for name in ("align", "instruct"):
        text = (world / "data" / f"{name}.json").read_text()
        assert not [pair for pair in HELD_OUT_COMBINATIONS if " ".join(pair) in text.lower()]
    assert any(
        " ".join(pair) in (world / "data" / "combinations.jsonl").read_text()
        for pair in HELD_OUT_COMBINATIONS
    )


def test_a_scene_always_gives_the_same_picture_and_others_another() -> None:
    assert np.array_equal(np.asarray(draw_scene(SCENE)), np.asarray(draw_scene(SCENE)))
    other = Scene(SCENE.things, SCENE.seed + 1)
    assert not np.array_equal(np.asarray(draw_scene(SCENE)), np.asarray(draw_scene(other)))
    assert draw_scene(SCENE).size == (192, 192)


def test_the_written_world_is_llava_and_repeats(tmp_path: Path) -> None:
    sizes = Sizes(train=60, heldout=12, combinations=8, digits=8)
    for name in ("a", "b"):
        write_world(tmp_path / name, seed=7, sizes=sizes)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )
    found = check(
        tmp_path / "a" / "instruct.json",
        [tmp_path / "a" / "images"],
        check_image=partial(check_image, decode=True),
    )
    assert found.rejects == []
    kinds = {c.id.split("-")[0] for c in read_conversations(tmp_path / "a" / "instruct.json")}
    assert kinds == {"conversation", "detail", "reasoning", "talk"}
    assert len(read_questions(tmp_path / "a" / "heldout.jsonl")) == 12 * 4
    row = json.loads((tmp_path / "a" / "instruct.json").read_text())[0]
    assert set(row) <= {"id", "image", "conversations"}
    assert set(row["conversations"][0]) == {"from", "value"}


def test_questions_are_of_every_kind_and_descriptions_complete() -> None:
    rng = random.Random(4)
    kinds = {q.kind for _ in range(50) for q in balanced_questions(sample_scene(rng), rng, 6)}
    assert kinds == set(QUESTION_KINDS)
    assert (
        describe(SCENE) == "There are 3 things. A small red circle is at the top left. "
        "A large blue 7 is at the bottom right. A large blue circle is at the top right."
    )


def test_recordings_are_listed_and_voices_held_out() -> None:
    recordings = spoken_questions()
    assert len(recordings) >= 36
    assert sum(r.heldout for r in recordings) >= 30
    assert {r.voice for r in recordings if r.heldout}.isdisjoint(
        r.voice for r in recordings if not r.heldout
    )
    assert all(r.path.read_bytes().startswith(b"fLaC") for r in recordings)


def test_word_error_rate_agrees_with_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    pairs = [
        ("what colour is the circle", "what colour is a circle"),
        ("how many things are there", "how many are there now"),
        ("hello", ""),
    ]
    assert word_error_rate(pairs) == pytest.approx(
        jiwer.wer([p[0] for p in pairs], [p[1] for p in pairs])
    )
