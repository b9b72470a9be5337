"""What a run says of held-out questions while it trains, that asking them changes nothing, and the
verdict it ends with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.conversations import Question
from phisense.model.batch_generate import Completion, Query
from phisense.pipeline.progress import Event, HeldOutEval, Notice
from phisense.recipe import load_recipe
from phisense.training import Training, checkpoints, eval_callback
from phisense.training.eval_callback import eval_questions, exchange_images, sample_evenly

from ..tiny import make_root

CHANGES = (
    "train.align.max_steps=4",
    "train.instruct.max_steps=10",
    "train.log_every=1",
    "train.lora.dropout=0.1",
    "features.folder=features/tiny",
)
SHORT = (
    "train.align=null",
    "train.instruct.max_steps=2",
    "train.eval.times=1",
    "data.held_out=[many.jsonl]",
)
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def root(tmp_path: Path, verb: Any) -> Path:
    make_root(tmp_path)
    verb("features", tmp_path / "tiny.yaml")
    rows = [
        {
            "image": f"{COLOURS[i % 4]}.png",
            "text": f"What colour is it, number {i}?",
            "answer": COLOURS[i % 4],
        }
        for i in range(24)
    ]
    rows += [{"text": f"Which colour is the sky, number {i}?", "answer": "blue"} for i in range(6)]
    (tmp_path / "many.jsonl").write_text(
        "".join(json.dumps({"question_id": i, **row}) + "\n" for i, row in enumerate(rows))
    )
    return tmp_path


def run(
    root: Path, name: str, *changes: str, **options: Any
) -> tuple[list[HeldOutEval], dict[str, Any]]:
    """The evaluations on held-out questions that were reported, and what train.json says."""
    told: list[Event] = []
    Training(
        load_recipe(root / "tiny.yaml", (*CHANGES, f"name={name}", *changes)),
        told.append,
        device="cpu",
        **options,
    )()
    return [event for event in told if isinstance(event, HeldOutEval)], json.loads(
        (root / "runs" / name / "train.json").read_text()
    )


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / "runs" / name / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_it_asks_and_changes_nothing(root: Path) -> None:
    asked, _ = run(root, "watched", is_correct=lambda said, right: True)
    silent, unasked = run(root, "alone")
    assert [(event.stage, event.step) for event in asked] == [
        *(("align", step) for step in (1, 2, 3, 4)),
        *(("instruct", step) for step in (2, 5, 8, 10)),
    ]
    assert all(
        event.accuracy == event.blind == 1.0 and event.questions == 12 and len(event.answers) == 3
        for event in asked
    )
    assert {one.right for event in asked for one in event.answers} <= {
        "Red.",
        "Green.",
        "Blue.",
        "White.",
    }
    assert silent == []
    assert (unasked["looks"]["verdict"], unasked["looks"]["questions"]) == ("too few", 0)
    watched, alone = weights(root, "watched"), weights(root, "alone")
    assert all(torch.equal(watched[name], alone[name]) for name in watched), (
        "also the dropout's random numbers are the same"
    )
    written = [
        json.loads(line)
        for line in (root / "runs" / "watched" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in written if "held_out" in row] == [1, 2, 3, 4, 2, 5, 8, 10]
    assert all(row["blind"] == 1.0 for row in written if "held_out" in row)
    assert all(row["memory"] > 1e8 for row in written)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "cut"), [(4, 4), (64, eval_callback.MAX_NEW_TOKENS)])
def test_answers_are_cut_where_the_evaluation_cuts_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, recipe: int, cut: int
) -> None:
    """Or at its own bound, if the recipe's is longer."""
    generate, seen = eval_callback.batch_generate, set()

    def noted(*args: Any, max_new_tokens: int, **more: Any) -> Any:
        seen.add(max_new_tokens)
        return generate(*args, max_new_tokens=max_new_tokens, **more)

    monkeypatch.setattr(eval_callback, "batch_generate", noted)
    changes = ("train.eval.questions=2", f"evaluate.max_new_tokens={recipe}")
    run(root, "cut", *SHORT, *changes, is_correct=lambda said, right: True)
    assert seen == {cut}


@pytest.mark.slow
def test_the_judge_decides(root: Path) -> None:
    changes = (
        "train.align=null",
        "train.eval.times=2",
        "train.eval.questions=4",
        "train.eval.final_questions=8",
    )
    (first, last), facts = run(
        root, "judged", *changes, is_correct=lambda said, right: "Red." in right
    )
    assert (first.accuracy, first.blind, first.questions) == (0.25, 0.25, 4)
    assert last.questions == 8, "more at the end of the last stage"
    assert facts["stages"]["instruct"]["held_out"] == last.accuracy
    assert facts["stages"]["instruct"]["blind"] == last.blind
    assert "looks" not in facts["stages"]["instruct"], "the run has it"
    assert facts["looks"]["verdict"] == "too few"


def told(
    root: Path, name: str, *changes: str, is_correct: Any = lambda said, right: True
) -> tuple[list[str], dict[str, Any]]:
    """The notices about what is not asked, and the facts."""
    events: list[Event] = []
    recipe = load_recipe(root / "tiny.yaml", (*CHANGES, *SHORT[:-1], f"name={name}", *changes))
    result = Training(recipe, events.append, device="cpu", is_correct=is_correct)()
    return [event.text for event in events if isinstance(event, Notice)], result.to_dict()


@pytest.mark.slow
def test_what_is_not_asked_is_said(root: Path, verb: Any, capfd: Any) -> None:
    """For each way in which held-out questions are left out: how many, why, and what helps. Where
    all are asked, nothing is said.
    """
    rows = json.loads((root / "rows.json").read_text())
    (root / "held-out.json").write_text(
        json.dumps([{**row, "image": "later.png"} if i % 2 else row for i, row in enumerate(rows)])
    )
    assert told(root, "all")[0] == []
    assert told(root, "none", "data.held_out=[held-out.json]", is_correct=None)[0] == []
    assert (
        told(root, "not-watched", "data.held_out=[held-out.json]", "train.eval.questions=0")[0]
        == []
    )

    (lost,), facts = told(root, "lost", "data.held_out=[held-out.json]")
    words = (
        r"instruct: 6 of 12 held-out questions are not asked, since .*tiny lacks their pictures"
        r" \(1, the first later.png\)"
    )
    assert re.match(
        rf"{words}. Name the folder of later.png in data.images, and run phisense features.$",
        lost,
    )
    assert facts["stages"]["instruct"]["unasked"] == [
        lost.removeprefix("instruct: ").removesuffix(".")
    ]
    (root / "images" / "red.png").rename(root / "images" / "later.png")
    (late,), _ = told(root, "late", "data.held_out=[held-out.json]")
    assert re.match(rf"{words}. Run phisense features with this recipe.$", late)

    (absent,), _ = told(root, "absent", "data.held_out=[nowhere.json]")
    assert re.match(
        "instruct: There is no .*nowhere.json, so nothing in it is asked while it trains: mend"
        " data.held_out.$",
        absent,
    )

    capfd.readouterr()
    changes = [
        word
        for one in (*CHANGES, *SHORT[:-1], "data.held_out=[held-out.json]", "name=by-verb")
        for word in ("--set", one)
    ]
    verb("train", root / "tiny.yaml", *changes)
    assert "6 of 12 held-out questions are not asked" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
def test_features_says_which_pictures_are_not_there(root: Path, verb: Any, capfd: Any) -> None:
    rows = json.loads((root / "rows.json").read_text())
    (root / "held-out.json").write_text(
        json.dumps([{**row, "image": f"no-{i}.png"} for i, row in enumerate(rows)])
    )
    verb(
        "features",
        root / "tiny.yaml",
        "--set",
        "data.held_out=[held-out.json]",
        "--set",
        "features.folder=features/other",
    )
    said = " ".join(capfd.readouterr().err.split())
    assert (
        "12 pictures of held-out questions are in none of the folders of data.images, or in"
        " several, the first no-0.png" in said
    )
    verb("features", root / "tiny.yaml", "--set", "features.folder=features/third")
    assert "none of the folders" not in capfd.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_asked_is_not(root: Path) -> None:
    rows = json.loads((root / "rows.json").read_text())
    for row in rows:
        row["image"] = "not-encoded.png"
    rows[0]["conversations"][1]["value"] = "A long description " * 8
    (root / "held-out.json").write_text(json.dumps(rows))
    for changes in (
        ("train.eval.questions=0",),
        ("data.held_out=[]",),
        ("data.held_out=[held-out.json]",),
        ("data.held_out=[none.json]",),
    ):
        asked, facts = run(
            root, "unasked", *changes, is_correct=lambda said, right: True, overwrite=True
        )
        assert asked == []
        assert facts["looks"]["verdict"] == "too few"
        assert facts["stages"]["instruct"]["held_out"] is None


def says(answer: Callable[[Query], str]) -> Callable[..., list[Completion]]:
    """A model that answers so, in the place of the real one."""
    return lambda built, asked, **_: [Completion(answer(one), (), 0.0, 0) for one in asked]


def right_answer(one: Query) -> str:
    return one.reference.text


class Pictures:
    """Which picture the slots are of: the first that asked with its own picture is told by its
    right answer.
    """

    def __init__(self) -> None:
        self.known: list[tuple[torch.Tensor, str]] = []

    def __call__(self, one: Query) -> str:
        if not one.image_embeds:
            return "none"
        same = [colour for slots, colour in self.known if torch.equal(slots, one.image_embeds[0])]
        if not same:  # a question is first asked with its own picture
            self.known.append((one.image_embeds[0], one.reference.text))
        return same[0] if same else one.reference.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "verdict", "real", "blind", "shuffled"),
    [
        (Pictures(), "looks", 1.0, 0.0, 0.0),
        (
            says(lambda one: one.reference.text if one.image_embeds else "none"),
            "blind",
            1.0,
            0.0,
            1.0,
        ),
        (says(right_answer), "blind", 1.0, 1.0, 1.0),
        (says(lambda one: "none"), "blind", 0.0, 0.0, 0.0),
        (
            says(
                lambda one: one.reference.text if one.reference.text in ("red", "blue") else "none"
            ),
            "blind",
            0.5,
            0.5,
            0.5,
        ),
    ],
    ids=["sees", "any picture will do", "knows without", "knows nothing", "half without"],
)
def test_the_verdict(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    verdict: str,
    real: float,
    blind: float,
    shuffled: float,
) -> None:
    monkeypatch.setattr(
        eval_callback, "batch_generate", says(model) if isinstance(model, Pictures) else model
    )
    monkeypatch.setattr(
        eval_callback, "likeliest_answers", lambda built, asked, texts, **_: ["none"] * len(asked)
    )
    (row,), facts = run(
        root, "verdict", *SHORT, is_correct=lambda said, right: said in right, overwrite=True
    )
    looks = facts["looks"]
    assert (looks["verdict"], looks["real"], looks["blind"], looks["shuffled"]) == (
        verdict,
        real,
        blind,
        shuffled,
    )
    assert (looks["questions"], looks["pictures"]) == (
        24,
        4,
    ), "those about the sky have no picture and say nothing"
    assert looks["constant"] == 0.0, '"Blue." is not "blue" for this judge'
    assert looks["difference"]["value"] == real - blind
    assert looks["difference_shuffled"]["value"] == real - shuffled
    assert row.questions == 30
    sky = 6 if blind else 0  # who knows without a picture knows that, too
    assert row.blind == pytest.approx((24 * blind + sky) / 30)
    assert row.accuracy == pytest.approx((24 * real + sky) / 30)
    assert (root / "runs" / "verdict" / "common_answers.json").is_file()


@pytest.mark.slow
def test_the_same_is_asked_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twelve questions are three texts about each of four pictures: blind they are three, with
    another's picture none is new.
    """
    asked: list[Query] = []

    def ask(
        built: Any, some: Sequence[Query], *, max_new_tokens: int, losses: bool
    ) -> list[Completion]:
        asked.extend(some)
        assert not losses
        return [Completion("Red.", (), 0.0, 0) for _ in some]

    monkeypatch.setattr(eval_callback, "batch_generate", ask)
    run(root, "once", *SHORT[:-1], is_correct=lambda said, right: said in right)
    assert len([one for one in asked if not one.image_embeds]) == 3
    assert len([one for one in asked if one.image_embeds]) == 12


@pytest.mark.slow
def test_a_finished_stage_keeps_its_verdict(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_callback, "batch_generate", says(Pictures()))
    _, facts = run(root, "kept", *SHORT, is_correct=lambda said, right: said in right)
    assert facts["looks"]["verdict"] == "looks"
    (root / "runs" / "kept" / "manifest.json").unlink()
    (root / "runs" / "kept" / "train.json").unlink()
    monkeypatch.setattr(eval_callback, "batch_generate", None)
    rows, again = run(
        root, "kept", *SHORT, is_correct=lambda said, right: said in right, resume=True
    )
    assert rows == [], "nothing is asked again"
    assert again["looks"] == facts["looks"]
    assert again["stages"]["instruct"]["held_out"] == facts["stages"]["instruct"]["held_out"]


@pytest.mark.slow
def test_a_stage_killed_behind_its_last_checkpoint_asks_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are all taken, so no step will end: the questions are asked once more, and their
    row is there already.
    """
    monkeypatch.setattr(eval_callback, "batch_generate", says(Pictures()))
    is_correct: Any = lambda said, right: said in right  # noqa: E731

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "finish_stage", killed)
        run(root, "killed", *SHORT, is_correct=is_correct)
    rows, facts = run(root, "killed", *SHORT, is_correct=is_correct, resume=True)
    assert rows == []
    assert (facts["looks"]["verdict"], facts["stages"]["instruct"]["blind"]) == ("looks", 0.0)
    written = [
        json.loads(line)
        for line in (root / "runs" / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len([row for row in written if "held_out" in row]) == 1


@pytest.mark.slow
def test_the_command_line_warns_of_a_model_that_does_not_look(
    root: Path, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are random, so it cannot look; with the twelve questions of the root nothing
    could be said.
    """
    sets = [
        word
        for change in (*CHANGES, *SHORT, "data.held_out=[many.jsonl]")
        for word in ("--set", change)
    ]
    assert verb("train", root / "tiny.yaml", *sets)["looks"]["verdict"] == "blind"
    told, warned = (" ".join(text.replace("│", " ").split()) for text in capsys.readouterr())
    assert "IT DOES NOT LOOK" in warned
    assert (
        "It is not shown to look at its pictures: of 24 held-out questions it answered 0.0% right"
        " with the picture" in warned
    )
    assert "held-out questions right, 0% without the picture" in warned
    assert "look" not in told
    few = [word for change in (*CHANGES, *SHORT[:-1]) for word in ("--set", change)]
    assert (
        verb("train", root / "tiny.yaml", *few, "--json", "--overwrite")["looks"]["verdict"]
        == "too few"
    )
    out, err = capsys.readouterr()
    assert "NOBODY KNOWS WHETHER IT LOOKS" in err
    assert json.loads(out)["looks"]["questions"] == 12


@pytest.mark.slow
def test_the_command_line_says_that_it_looks(
    root: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(eval_callback, "batch_generate", says(Pictures()))
    verb(
        "train",
        root / "tiny.yaml",
        *(word for change in (*CHANGES, *SHORT) for word in ("--set", change)),
    )
    told, warned = capsys.readouterr()
    assert (
        "It looks at its pictures: of 24 held-out questions it answered 100.0% right with the"
        " picture, 0.0% without it" in " ".join(told.split())
    )
    assert "IT DOES NOT LOOK" not in warned


def test_questions_are_spread_evenly_and_not_by_turns() -> None:
    """Of POPE's answers every second one is yes: so must be half of those that are asked, not all
    or none.
    """
    pope = [
        Question(str(i), "a.png", "Is it?", (("yes", "no")[i % 2],), "other") for i in range(3000)
    ]
    some = sample_evenly(pope, 125)
    assert len(some) == 125
    assert [int(q.id) // 24 for q in some] == list(range(125)), "one of each stretch"
    assert 0.35 < sum(q.answers == ("yes",) for q in some) / 125 < 0.65
    assert some == sample_evenly(pope, 125)
    assert sample_evenly(pope[:3], 5) == pope[:3]
    assert sample_evenly(pope, 0) == sample_evenly([], 5) == []


def test_as_many_as_the_last_look_wants(root: Path) -> None:
    for wanted, found in (
        (("questions=4", "final_questions=20"), 20),
        (("questions=30", "final_questions=20"), 30),
        (("questions=0",), 0),
    ):
        changes = ("data.held_out=[many.jsonl]", *(f"train.eval.{one}" for one in wanted))
        assert len(eval_questions(load_recipe(root / "tiny.yaml", changes))) == found


def test_nobody_keeps_its_picture() -> None:
    names = ["a", "b", None, "c", "a", "d", "e"]
    other = exchange_images(names)
    assert [one is None for one in other] == [name is None for name in names]
    assert all(one != name for one, name in zip(other, names, strict=True) if name is not None)
    assert other[0] == other[4]
    assert sorted(map(str, {*other} - {None})) == ["a", "b", "c", "d", "e"]


@pytest.mark.slow
@pytest.mark.parametrize("likes", ["red", "right"])
def test_without_its_picture_content_is_measured(
    root: Path, monkeypatch: pytest.MonkeyPatch, likes: str
) -> None:
    """A model that says "There is no picture." without one, and finds the right answer likeliest,
    has lost its form alone: it is no better with it.
    """
    rows = json.loads((root / "rows.json").read_text())
    (root / "rows.json").write_text(json.dumps(rows * 3))
    monkeypatch.setattr(
        eval_callback,
        "batch_generate",
        says(lambda one: one.reference.text if one.image_embeds else "There is no picture."),
    )
    chosen: list[tuple[str, ...]] = []

    def likeliest(
        built: Any, asked: Sequence[Query], texts: Sequence[Sequence[str]], **_: Any
    ) -> list[str]:
        chosen.extend(map(tuple, texts))
        return ["red" if likes == "red" else one.reference.text for one in asked]

    monkeypatch.setattr(eval_callback, "likeliest_answers", likeliest)

    def judge(said: str, right: Sequence[str]) -> bool:
        return said.strip(".").lower() in {one.strip(".").lower() for one in right}

    _, facts = run(root, "content", *SHORT, is_correct=judge)
    looks = facts["looks"]
    assert looks["by_content"] == 24
    assert {frozenset(texts) for texts in chosen} == {
        frozenset({"Red.", "Green.", "Blue.", "White."})
    }
    assert looks["blind"] == (0.25 if likes == "red" else 1.0)
    assert (looks["constant"], looks["constant_source"]) == (0.25, "training")
    assert looks["verdict"] == "blind", "any picture will do"
    assert facts["stages"]["instruct"]["blind"] == pytest.approx(0), "as it was answered"
