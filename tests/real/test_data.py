"""What the walk with real parts trains on and asks, and what stands beside its accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from real import easy_vqa, photographs, probes, tiny, voices

from phisense.conversations import Question
from phisense.errors import DataError
from phisense.pipeline.check import check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make_photographs(tmp_path / "photographs")


def test_images_kept_apart_are_asked_about_and_not_trained_on(folder: Path, tmp_path: Path) -> None:
    data = photographs.prepare(folder, tmp_path / "data", apart=2)
    trained = {row["image"] for row in json.loads(data.instruct.read_text())}
    aligned = {row["image"] for row in json.loads(data.align.read_text())}
    asked = [json.loads(line) for line in data.apart.read_text().splitlines()]
    away = {row["image"] for row in asked}
    assert len(trained) == data.trained_images == 4
    assert aligned == trained
    assert len(away) == 2
    assert not away & trained
    assert {row["category"] for row in asked} == {"yes/no", "place"}
    assert not any(row["text"] == photographs.CAPTION for row in asked)
    for path in (data.align, data.instruct, data.apart, data.held_out):
        assert check(path, images=[data.images]).defects == ()


def test_the_same_images_are_kept_apart_whatever_their_order() -> None:
    names = [f"{number}.jpg" for number in range(50)]
    away = photographs.kept_apart(set(names), 10)
    assert away == photographs.kept_apart({*names[20:], *names[:20]}, 10)
    assert away != set(names[:10])
    assert photographs.kept_apart(set(names), 5) < away


def test_held_out_images_that_are_trained_on_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]
    rows[3]["image"] = "red.png"
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"images that are trained on; got red\.png"):
        photographs.prepare(folder, tmp_path / "data", apart=2)


def test_a_question_of_another_kind_is_refused(folder: Path) -> None:
    [row, *_] = json.loads((folder / "instruct.json").read_text())
    row["conversations"][2]["value"] = "How many dogs are there?"
    with pytest.raises(DataError, match="got How many dogs"):
        photographs.questions_of(row)


def test_easy_vqa_becomes_a_conversation_an_image(tmp_path: Path) -> None:
    source = tiny.make_easy_vqa(tmp_path / "package")
    data = easy_vqa.prepare(source, tmp_path / "data")
    assert (data.trained_images, data.trained_questions, data.held_out_questions) == (6, 12, 12)
    assert check(data.instruct, images=[data.images]).defects == ()
    found = probes.short_questions(data.held_out)
    assert {one.kind for one in found} == {"yes/no", "color"}
    named = [row["conversations"][1]["value"] for row in json.loads(data.align.read_text())]
    assert len(named) == 6
    assert not {"yes", "no"} & set(named)
    assert not {str(one.image) for one in found} & {
        row["image"] for row in json.loads(data.instruct.read_text())
    }


def test_an_answer_that_easy_vqa_does_not_list_is_refused(tmp_path: Path) -> None:
    source = tiny.make_easy_vqa(tmp_path / "package")
    (source / "answers.txt").write_text("yes no red")
    with pytest.raises(DataError, match="does not list; got green"):
        easy_vqa.prepare(source, tmp_path / "data")


ASKED = [
    Question(str(number), f"{number}.png", "Is it light?", ("Yes." if number % 3 else "No.",), "?")
    for number in range(60)
]
TRAINED = [
    probes.Asked("Is it light?", f"t{number}.png", "Yes." if number % 3 else "No.")
    for number in range(60)
]


def light(names: list[str]) -> np.ndarray:
    """One channel that tells, one that does not."""
    numbers = np.array([int(name.strip("t.png")) for name in names])
    return np.stack([numbers % 3 > 0, numbers % 7], 1).astype(np.float32)


def test_the_ridge_finds_what_the_features_tell() -> None:
    found = probes.score(TRAINED, ASKED, light)
    assert (found.constant, found.ridge) == (pytest.approx(2 / 3), 1.0)
    blind = probes.score(TRAINED, ASKED, lambda names: light(names)[:, 1:])
    assert blind.ridge == pytest.approx(2 / 3)


def test_a_question_that_was_never_trained_earns_the_constant_nothing() -> None:
    new = Question("x", "1.png", "Is it far?", ("Yes.",), "?")
    assert probes.constant_credits(TRAINED, [new]) == {"x": 0.0}


def test_words_are_counted_as_whispers_authors_count_them() -> None:
    said = voices.Recording(Path("a.wav"), "Uh, it's SEVEN already -- alright?", "read")
    assert voices.normalize(said.said) == "it is 7 already alright"
    same = voices.Heard(said, "It is seven already, alright.", "en")
    lost = voices.Heard(said, None, None)
    assert voices.word_error_rate([same]) == 0.0
    assert voices.word_error_rate([same, lost]) == 0.5
    assert voices.normalize("こん にちは、世界。", "ja") == "こんにちは世界"


def test_a_listed_recording_that_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("sphinx/cards", "sphinx/librivox", "aligner/wav", "evaluation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sphinx" / "cards" / "cards.transcription").write_text("<s> ten </s> (001)\n")
    with pytest.raises(DataError, match=r"missing; got .*cards/001\.wav"):
        voices.collect(tmp_path / "sphinx", tmp_path / "aligner", tmp_path / "evaluation", None)
