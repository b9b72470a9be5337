"""`bench/real_parts.py` at the scale of practice parts, so that it does not rot; and what it says
where it cannot go on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import real_parts
from real import steps, walk
from real.walk import Finished, Walk

from phisense.errors import PhisenseError, UsageError

SHAPE = {
    "photographs": {"accuracy", "over_constant", "over_shuffled"},
    "easy_vqa": {"accuracy"},
    "merge": {"delta_loss", "lost"},
    "four_bit": {"delta_accuracy"},
    "export": {"f16", "q8_0", "q4_k_m"},
    "doctor": {"ratio"},
    "speech": {"wer"},
}


def in_this_process(asked: Walk, step: str) -> Finished:
    """Instead of a process for each step, which imports torch for some seconds."""
    walk.run_step(asked, step, steps.STEPS[step])
    found = Finished.load(asked, step)
    assert found is not None
    return found


@pytest.mark.slow
def test_the_walk_goes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(walk, "_run_in_process", in_this_process)
    out = tmp_path / "walk"
    assert real_parts.main(["--tiny", "--out", str(out), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert {name: set(value) for name, value in figures.items() if name != "seconds"} == SHAPE
    for section, names in SHAPE.items():
        for name in names - ({"f16", "q8_0", "q4_k_m", "delta_accuracy"}):
            assert isinstance(figures[section][name], float), (section, name)
    assert (out / "models" / "photographs" / "manifest.json").is_file()
    assert json.loads((out / "figures.json").read_text()) == figures
    merged = Finished.load(Walk.load(out), "photographs.merge")
    assert merged is not None
    assert merged.figures["head"] == "equal"

    assert real_parts.main(["--tiny", "--out", str(out)]) == UsageError.exit_code
    assert "exists. Name another --out" in capsys.readouterr().err
    again = ["--tiny", "--out", str(out), "--resume", "--plots", str(tmp_path / "plots")]
    assert real_parts.main(again) == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "real-parts-accuracy.png",
        "real-parts-speech.png",
    }
    assert "photographs.train" in (said := capsys.readouterr().out)
    assert said.count("finished before") == len(steps.steps_of(Walk.load(out)))


def made(out: Path, **changes: Any) -> Walk:
    return Walk(str(out), str(out / "cache"), None, None, ("speech",), tiny=True, **changes)


def test_a_step_is_a_process_that_says_its_peak(tmp_path: Path) -> None:
    asked = made(tmp_path / "walk")
    walk.begin(asked, resume=False)
    [found] = walk.run_steps(asked, ["parts.packages"], lambda text: None)
    assert found.figures == {"practice": True}
    assert found.peak_bytes > 10**7
    assert (tmp_path / "walk" / "logs" / "parts.packages.log").is_file()


def test_a_failed_step_says_why(tmp_path: Path) -> None:
    asked = made(tmp_path / "walk")
    walk.begin(asked, resume=False)
    with pytest.raises(PhisenseError, match=r"photographs\.data failed; got .*in no|not in any pa"):
        walk.run_steps(asked, ["photographs.data"], lambda text: None)
    assert Finished.load(asked, "photographs.data") is None


def test_a_walk_is_resumed_only_as_it_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "walk"
    walk.begin(made(out), resume=False)
    walk.begin(made(out), resume=True)
    with pytest.raises(UsageError, match="begun with other arguments; got another changes"):
        walk.begin(made(out, changes=("seed=1",)), resume=True)


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="got no walk.json"):
        walk.begin(made(tmp_path), resume=True)
    with pytest.raises(UsageError, match="exists"):
        walk.begin(made(tmp_path), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_photographs_that_are_not_named_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_parts.main(["--out", str(tmp_path / "walk")]) == UsageError.exit_code
    assert "wanted --photographs FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "walk").exists()


def test_each_section_has_its_steps() -> None:
    for section in real_parts.SECTIONS:
        asked = Walk("out", "cache", "p", None, (section,))
        names = steps.steps_of(asked)
        assert names[0] == "parts.packages"
        assert {name.partition(".")[0] for name in names} == {"parts", section}
    assert "speech.photographs" not in names
    whole = steps.steps_of(Walk("out", "cache", "p", None, real_parts.SECTIONS))
    assert sorted(whole) == sorted(steps.STEPS)


def test_what_was_not_walked_is_null() -> None:
    heard = Finished("speech.english", {"wer": 0.02}, 1.0, 1)
    found = real_parts.summarize([heard])
    assert found["speech"] == {"wer": 0.02}
    assert found["photographs"] == dict.fromkeys(SHAPE["photographs"])
    assert found["seconds"] == 1
