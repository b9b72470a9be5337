"""`import phisense` is light, every public name resolves, and a model is made in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import phisense
from phisense.errors import DataError, PhisenseError, UsageError
from phisense.pipeline.check import require_usable
from phisense.pipeline.features import plan_features

from ..tiny import make_root

HEAVY = ("torch", "transformers", "pydantic", "numpy", "yaml", "typer", "rich")


def test_the_import_is_light() -> None:
    code = (
        "import sys, phisense; dir(phisense);"
        f" print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    control = code.replace("dir(phisense)", "phisense.load_recipe")
    ran = subprocess.run(
        [sys.executable, "-c", control], capture_output=True, text=True, check=True
    )
    assert "pydantic" in ran.stdout, "the control: a name that is used is imported"


def test_every_public_name_is_there() -> None:
    assert set(phisense._PUBLIC) | {"__version__"} == set(phisense.__all__)
    assert set(phisense.__all__) <= set(dir(phisense))
    for name in phisense.__all__:
        assert getattr(phisense, name) is not None
    for name, where in phisense._PUBLIC.items():
        assert isinstance(where, str)
        assert getattr(phisense, name).__doc__ or name in ("Event", "OnEvent"), name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = phisense.trian


def test_a_root_is_where_a_recipe_begins(tmp_path: Path) -> None:
    recipe = phisense.load_recipe("practice", root=tmp_path)
    assert recipe.run == tmp_path / "runs" / "practice"
    assert phisense.load_recipe("practice", ("seed=7",), root=str(tmp_path)).seed == 7


@pytest.mark.slow
def test_from_data_to_report(tmp_path: Path) -> None:
    """Every step in Python, on parts with random weights; what it returns is what is on disk."""
    make_root(tmp_path)
    recipe = phisense.load_recipe(
        tmp_path / "tiny.yaml", ("train.eval.times=1", "train.eval.questions=4")
    )
    events: list[phisense.Event] = []

    found = phisense.check(
        tmp_path / "rows.json",
        images=[tmp_path / "images"],
        rejects=tmp_path / "rejects.jsonl",
        on_event=events.append,
    )
    assert found.rows == found.good + found.rejected == 12
    assert (found.rejects is not None) == (found.rejected > 0)
    planned = plan_features(recipe, device="cpu")
    assert (planned.images, planned.recommended) == (4, "float16")
    encoded = phisense.encode_features(recipe, device="cpu", on_event=events.append)
    assert (encoded.images, encoded.tokens, encoded.width) == (4, 16, 16)
    assert encoded.folder == recipe.store
    assert phisense.encode_features(recipe, device="cpu") == encoded, (
        "it goes on, with nothing to do"
    )

    trained = phisense.train(recipe, device="cpu", on_event=events.append)
    assert trained.folder == recipe.run
    assert trained.to_dict() == json.loads((recipe.run / "train.json").read_text())
    shown = [event for event in events if isinstance(event, phisense.HeldOutEval)]
    assert [(event.stage, event.step) for event in shown] == [("align", 2), ("instruct", 2)]
    assert shown[-1].accuracy == trained.stages["instruct"].held_out_accuracy
    logged = [json.loads(line) for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["held_out"] for row in logged] == [event.accuracy for event in shown]
    steps = [event for event in events if isinstance(event, phisense.TrainingStep)]
    assert {event.stage for event in steps} == {"align", "instruct"}
    with pytest.raises(UsageError, match="tiny"):
        phisense.train(recipe, device="cpu")
    again = phisense.train(recipe, resume=True, device="cpu", on_event=events.append)
    assert again == trained
    last = events[-1]
    assert isinstance(last, phisense.Notice)
    assert "was finished before" in last.text

    model = phisense.merge(trained.folder, device="cpu", on_event=events.append)
    assert model.folder == recipe.model
    assert model.to_dict() == json.loads((model.folder / "merge_report.json").read_text())
    report = phisense.evaluate(
        model.folder,
        data=[tmp_path / "rows.json"],
        images=recipe.image_folders,
        out=tmp_path / "report",
        device="cpu",
        on_event=events.append,
    )
    scores = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert report.folder == tmp_path / "report"
    assert report.real.accuracy.value == scores["real"]["figures"]["accuracy"]["value"]
    counted = [event for event in events if isinstance(event, phisense.Progress)]
    assert {event.unit for event in counted if event.task == "encoding pictures"} == {"images"}
    assert {event.detail for event in counted if event.task == "merging and measuring"} >= {
        "merged",
        "shuffled",
    }

    session = phisense.ChatSession(phisense.open_engine(model.folder, device="cpu"))
    assert "".join(session.ask("What colour is it?")) is not None


@pytest.mark.slow
def test_a_run_that_is_stopped_is_discarded_if_asked(tmp_path: Path) -> None:
    """As a search does with a trial that is behind; else it is there to be resumed."""
    make_root(tmp_path)
    recipe = phisense.load_recipe(tmp_path / "tiny.yaml", ("train.eval.questions=0",))
    phisense.encode_features(recipe, device="cpu")

    def stop(event: phisense.Event) -> None:
        if isinstance(event, phisense.TrainingStep) and event.stage == "instruct":
            raise KeyboardInterrupt

    for discard in (False, True):
        with pytest.raises(KeyboardInterrupt):
            phisense.train(
                recipe, overwrite=True, discard_unfinished=discard, device="cpu", on_event=stop
            )
        assert recipe.run.exists() == (not discard)


def test_rows_that_cannot_be_used_are_an_error_on_request(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "a", "conversations": []}]))
    found = phisense.check(tmp_path / "rows.json")
    assert found.rejected == 1
    assert found.rejects is None, "nothing is written unless a file is named"
    require_usable(found, tmp_path / "rows.json", max_rejects=1)
    with pytest.raises(DataError, match="has 1 rows of 1 that cannot be used"):
        require_usable(found, tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda at: phisense.check(at / "none.json"), "none.json"),
        (lambda at: phisense.merge(at), "is not a finished run"),
        (lambda at: phisense.export(at, data=[at / "q.jsonl"]), "both their rows and"),
        (lambda at: phisense.export(at), "phisense merge"),
        (lambda at: phisense.load_recipe(at / "none.yaml"), "none.yaml"),
    ],
)
def test_what_is_wrong_is_one_sentence(call: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PhisenseError, match=said):
        call(tmp_path)


def test_no_step_calls_the_command_line() -> None:
    """Nothing below the command line imports it, or runs a verb by its name."""
    source = Path(phisense.__file__).parent
    for path in sorted(source.rglob("*.py")):
        if path.parent.name == "cli" or path.name == "__main__.py":
            continue
        text = path.read_text()
        assert "run_verb" not in text, path
        assert "from ..cli" not in text, path
        assert 'verb("' not in text, path
