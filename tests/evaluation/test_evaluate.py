"""The evaluation finds out who looks: a trained model does, and each kind of blind one is reported
as blind.
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from phisense.errors import ArtifactError, DataError, UsageError
from phisense.evaluation.page.markup import NO_BETTER
from phisense.evaluation.results import ImageUse
from phisense.model import ModelInputs, load_model, pad_rows
from phisense.pipeline.progress import Event, Notice, Progress
from phisense.prompt import Rendered


def run(verb: Any, model: Path, world: Path, out: Path, *more: object) -> dict[str, Any]:
    data = world / "data"
    scores: dict[str, Any] = verb(
        "evaluate",
        model,
        "--data",
        data / "heldout.jsonl",
        "--images",
        data / "images",
        "--out",
        out,
        "--limit",
        600,
        *more,
    )
    return scores


@pytest.fixture(scope="module")
def report(
    model: Path, world: Path, verb: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("reports") / "real"
    return out, run(verb, model, world, out)


def test_a_trained_model_looks(report: tuple[Path, dict[str, Any]]) -> None:
    out, scores = report
    assert scores["looks"]["verdict"] == "looks"
    assert (
        scores["real"]["figures"]["accuracy"]["value"]
        > scores["blind"]["figures"]["accuracy"]["value"] + 0.25
    )
    assert scores["real"]["loss"] < scores["shuffled"]["loss"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * scores["questions"]
    own = {line["id"]: line["image"] for line in lines}
    assert all(
        line["shown"] != own[line["id"]] for line in lines if line["condition"] == "shuffled"
    )
    assert all(line["shown"] is None for line in lines if line["condition"] == "blind")
    right = [line["right"] for line in lines if line["condition"] == "real"]
    assert sum(right) / len(right) == pytest.approx(scores["real"]["figures"]["accuracy"]["value"])


def test_the_report_is_one_file_with_its_pictures(report: tuple[Path, dict[str, Any]]) -> None:
    page = (report[0] / "report.html").read_text()
    assert "The model looks at the picture." in page
    assert page.count("data:image/jpeg;base64,") >= 10
    assert "<svg" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def broken(model: Path, out: Path, change: Any) -> Path:
    """A copy of the model whose projector was changed, its manifest made again."""
    from phisense import artifacts
    from phisense.model.folder import MODEL_KIND

    about = artifacts.read_manifest(model, kind=MODEL_KIND)
    shutil.copytree(model, out)
    weights = load_file(out / "model.safetensors")
    save_file(
        {n: change(w) if "multi_modal_projector" in n else w for n, w in weights.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    artifacts.write_manifest(out, kind=MODEL_KIND, about=about)
    return out


@pytest.mark.parametrize("kind", ["untrained", "zero"])
def test_a_model_that_cannot_see_is_reported_as_blind(
    kind: str, model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    change = torch.zeros_like if kind == "zero" else lambda w: torch.randn_like(w) * w.std()
    scores = run(verb, broken(model, tmp_path / kind, change), world, tmp_path / "report")
    assert scores["looks"]["verdict"] == "blind"
    page = (tmp_path / "report" / "report.html").read_text()
    words = NO_BETTER[ImageUse.from_dict(scores["looks"]).hardest]
    assert words in html.unescape(page)


def said(folder: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return [(line["condition"] + line["id"], line["answer"]) for line in lines]


def test_batches_do_not_change_answers(model: Path, world: Path, verb: Any, tmp_path: Path) -> None:
    """One by one and sixteen at once, padded on the left, in float32."""
    for batch in (1, 16):
        run(
            verb,
            model,
            world,
            tmp_path / str(batch),
            "--condition",
            "real",
            "--limit",
            48,
            "--batch-size",
            batch,
        )
    assert said(tmp_path / "1") == said(tmp_path / "16")
    scores = [json.loads((tmp_path / str(batch) / "scores.json").read_text()) for batch in (1, 16)]
    assert [one["about"]["batch"] for one in scores] == [1, 16]
    assert scores[0]["real"]["loss"] == pytest.approx(scores[1]["real"]["loss"], rel=1e-4)
    assert scores[0]["about"]["dtype"] == "float32"


def test_batches_padded_on_the_right_would_change_answers(
    model: Path, world: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: where an answer begins behind its padding, it is another, if it is generated
    whole: of right answers the draft leaves nothing to generate.
    """
    from phisense.model import batch_generate as generation

    run(verb, model, world, tmp_path / "1", "--condition", "real", "--limit", 48, "--batch-size", 1)

    def on_the_right(prompts: list[list[int]], pad_id: int) -> ModelInputs:
        return pad_rows([Rendered(ids, [-100] * len(ids)) for ids in prompts], pad_id)

    monkeypatch.setattr(generation, "pad_prompts", on_the_right)
    monkeypatch.setattr(generation.ScoredReference, "greedy", lambda *_: ([], False))
    run(
        verb,
        model,
        world,
        tmp_path / "16",
        "--condition",
        "real",
        "--limit",
        48,
        "--batch-size",
        16,
    )
    assert said(tmp_path / "1") != said(tmp_path / "16")


ASKING = """
import os, sys
from phisense.cli import run_verb
from phisense.evaluation.predictors import BatchPredictor

answer, lives = BatchPredictor.answer, int(sys.argv[1])

def dying(self, *args, **more):
    global lives
    lives -= 1
    if lives < 0:
        os.kill(os.getpid(), 9)
    return answer(self, *args, **more)

BatchPredictor.answer = dying
run_verb(*sys.argv[2:])
"""


def asking(model: Path, world: Path) -> list[object]:
    data = world / "data"
    return [
        "evaluate",
        model,
        "--data",
        data / "heldout.jsonl",
        "--images",
        data / "images",
        "--limit",
        60,
        "--batch-size",
        16,
    ]


def test_a_killed_evaluation_goes_on_and_ends_the_same(
    model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    """kill -9 after two batches, after five more, then to the end; and the last line of the journal
    is torn once.
    """
    words = asking(model, world)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    verb(*words, "--out", whole)
    for lives in (2, 5):
        ran = subprocess.run(
            [sys.executable, "-c", ASKING, str(lives), *map(str, words), "--out", str(killed)],
            check=False,
            timeout=300,
        )
        assert ran.returncode == -9
        assert not killed.exists()
    (journal,) = tmp_path.glob(".killed.*.asked.jsonl")
    assert len(journal.read_bytes().splitlines()) == 1 + 7
    with journal.open("ab") as file:
        file.write(b'["shuffled",3,[["Re')
    scores = verb(*words, "--out", killed)
    # the first condition whole, three batches of the second
    assert scores["about"]["answers_kept"] == 16 + 16 + 16 + 12 + 16 * 3
    assert said(killed) == said(whole)
    assert (killed / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert not journal.exists()


class Stop(Exception):  # noqa: N818
    pass


def interrupt(verb: Any, words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `words` say, until a batch is smaller than the others."""
    from phisense.evaluation.predictors import BatchPredictor

    answer = BatchPredictor.answer

    def interrupted(self: BatchPredictor, put: Any, *args: Any, **more: Any) -> Any:
        if len(put) < self.batch_size:
            raise Stop
        return answer(self, put, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(BatchPredictor, "answer", interrupted)
        with pytest.raises(Stop):
            verb(*words)


def test_only_the_very_same_evaluation_goes_on(
    model: Path, world: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """With other settings, or other pictures under the same names, it begins anew and says so; and
    nothing is thrown away by that.
    """
    out, images = tmp_path / "out", tmp_path / "images"
    shutil.copytree(world / "data" / "images", images)
    words = [
        "evaluate",
        model,
        "--data",
        world / "data" / "heldout.jsonl",
        "--images",
        images,
        "--condition",
        "real",
        "--limit",
        20,
    ]
    words += ["--batch-size", 16, "--out", out]
    interrupt(verb, words, monkeypatch)
    (first,) = tmp_path.glob(".out.*.asked.jsonl")
    assert len(first.read_bytes().splitlines()) == 2
    capfd.readouterr()
    interrupt(verb, [*words, "--batch-size", 12], monkeypatch)
    assert (
        "an interrupted evaluation was another (batch 16), so this one begins anew"
        in capfd.readouterr().err.replace("\n", " ")
    )
    assert len(list(tmp_path.glob(".out.*.asked.jsonl"))) == 2
    for picture in images.iterdir():
        picture.touch()
    interrupt(verb, words, monkeypatch)
    told = capfd.readouterr().err.replace("\n", " ")
    assert "was another (pictures)" in told
    assert "was another (batch 12, pictures)" in told
    assert len(list(tmp_path.glob(".out.*.asked.jsonl"))) == 3
    assert verb(*words)["about"]["answers_kept"] == 16
    assert not list(tmp_path.glob(".out.*"))


def test_ctrl_c_says_what_is_kept(
    model: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phisense.conversations import ImageFinder, read_questions
    from phisense.evaluation.predictors import BatchPredictor
    from phisense.evaluation.run import evaluate
    from phisense.evaluation.tasks import TASKS

    answer = BatchPredictor.answer

    def pressed(self: BatchPredictor, put: Any, *args: Any, **more: Any) -> Any:
        if len(put) < self.batch_size:
            raise KeyboardInterrupt
        return answer(self, put, *args, **more)

    monkeypatch.setattr(BatchPredictor, "answer", pressed)
    questions = read_questions(world / "data" / "heldout.jsonl")[:12]
    images = ImageFinder([world / "data" / "images"])
    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            TASKS["own"],
            questions,
            images,
            BatchPredictor(load_model(model, "cpu"), 8),
            out=tmp_path / "out",
            title="t",
            conditions=("real",),
            on_event=events.append,
        )
    assert events[0] == Progress("real", 8, 12, "questions")
    assert isinstance(events[-1], Notice)
    assert "interrupted: 8 answers are kept" in events[-1].text


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    from phisense.evaluation.journal import Journal

    with (
        Journal(tmp_path / "out", {"task": "own"}),
        pytest.raises(UsageError, match="is being evaluated right now"),
    ):
        Journal(tmp_path / "out", {"task": "own"})


def test_another_server_is_another_evaluation() -> None:
    from phisense.chat.remote_engine import RemoteEngine
    from phisense.chat.sse_client import ServerAddress
    from phisense.evaluation.predictors import EnginePredictor

    engines = [
        RemoteEngine(ServerAddress.parse(url, "secret"), "org/llava", name="llava")
        for url in ("http://a:1", "http://b:1")
    ]
    one, other = (EnginePredictor(engine) for engine in engines)
    assert one.about == other.about
    assert one.identity != other.identity
    assert "secret" not in str(one.identity)
    assert (
        one.identity
        != EnginePredictor(
            RemoteEngine(ServerAddress.parse("http://a:1"), "other/llava", name="llava")
        ).identity
    )


def test_nothing_of_another_making_is_replaced(
    model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    precious, file = tmp_path / "precious", tmp_path / "questions.jsonl"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    file.write_text("{}")
    for out, what in (
        (precious, "files of another making"),
        (file, "a file"),
        (model, "a model folder"),
    ):
        with pytest.raises(
            UsageError, match=f"would be overwritten; got {what}; wanted nothing there, or a report"
        ):
            verb(*asking(model, world), "--out", out)
    assert (precious / "thesis.txt").read_text() == "years"
    assert file.read_text() == "{}"


def test_any_engine_answers_as_the_batches_do(model: Path, world: Path, tmp_path: Path) -> None:
    """The engine of the chat, one question after the other: the same answers, in float32."""
    from phisense.chat.torch_engine import TorchEngine
    from phisense.conversations import ImageFinder, read_questions
    from phisense.evaluation.predictors import BatchPredictor, EnginePredictor
    from phisense.evaluation.run import evaluate
    from phisense.evaluation.tasks import TASKS

    questions = read_questions(world / "data" / "heldout.jsonl")[:40]
    images = ImageFinder([world / "data" / "images"])
    engine = TorchEngine.open(model, "cpu")
    for name, answerer in (
        ("batches", BatchPredictor(engine.built, 16)),
        ("engine", EnginePredictor(engine)),
    ):
        scores = evaluate(
            TASKS["own"],
            questions,
            images,
            answerer,
            out=tmp_path / name,
            title=name,
            conditions=("real", "blind"),
        )
        assert (scores.real.loss is None) == (name == "engine")
    assert said(tmp_path / "batches") == said(tmp_path / "engine")
    assert len({answer for _, answer in said(tmp_path / "engine")}) > 4


def test_llama_cpp_is_evaluated_too(
    exported: Path, model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    for name, folder in (("torch", model), ("llama", exported)):
        scores = run(verb, folder, world, tmp_path / name, "--limit", 16, "--condition", "real")
        assert scores["about"]["engine"] == name
    same = [a == b for a, b in zip(said(tmp_path / "torch"), said(tmp_path / "llama"), strict=True)]
    assert sum(same) >= 15  # the files are in float16
    assert len(scores["about"]["fingerprint"]) == 64


def test_bad_input_is_a_sentence(model: Path, world: Path, verb: Any, tmp_path: Path) -> None:
    data = world / "data"
    with pytest.raises(
        UsageError, match="unknown --condition; got some; wanted real, blind, shuffled or all"
    ):
        run(verb, model, world, tmp_path / "x", "--condition", "some")
    with pytest.raises(
        DataError, match="pictures are missing in .*; got 300, the first heldout-00000.jpg"
    ):
        verb(
            "evaluate",
            model,
            "--data",
            data / "heldout.jsonl",
            "--images",
            tmp_path,
            "--out",
            tmp_path / "x",
        )
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty.jsonl holds no row"):
        verb(
            "evaluate",
            model,
            "--data",
            tmp_path / "empty.jsonl",
            "--images",
            data / "images",
            "--out",
            tmp_path / "x",
        )
    with pytest.raises(ArtifactError, match="is not a model folder; got no such folder"):
        verb(
            "evaluate",
            tmp_path / "none",
            "--data",
            data / "heldout.jsonl",
            "--images",
            data / "images",
            "--out",
            tmp_path / "x",
        )
    assert not (tmp_path / "x").exists()


def test_a_damaged_model_folder_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(
        ArtifactError, match="is damaged; got other content than its manifest names"
    ):
        load_model(tmp_path / "m")
