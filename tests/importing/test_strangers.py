"""Folders of strangers: their code is not run, their mistakes are sentences, and no import replaces
what it reads.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phisense.errors import ArtifactError, PartError, UsageError
from phisense.importing import source as sources
from phisense.model.folder import load_model
from phisense.vision.encoders.loading import vision_config

from ..hostile_folders import sign
from . import made

pytestmark = pytest.mark.slow

FILES = [
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
]
AUTO = {
    "AutoConfig": "evil.C",
    "AutoTokenizer": [None, "evil.T"],
    "AutoImageProcessor": "evil.I",
    "AutoProcessor": "evil.P",
}


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.plain(tiny, tmp_path_factory.mktemp("plain") / "base")


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "source")
    return tmp_path / "source"


def bewitch(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """Puts code beside the weights, and somebody who says yes to every question; returns the file
    that it would write.
    """
    if not (folder / file).is_file():
        (folder / file).write_text("{}")
    made.edit_json(folder / file, auto_map=AUTO, **changes)
    trace = folder.parent / "was-run"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nC = T = I = P = None\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    return trace


@pytest.mark.parametrize("file", FILES)
def test_code_in_a_folder_is_refused(
    source: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    trace = bewitch(source, file, monkeypatch)
    with pytest.raises(
        PartError,
        match=(
            f"wants code of its own to be run; got auto_map in {file}; wanted classes of"
            " transformers"
        ),
    ):
        verb("import", source, "--out", tmp_path / "out")
    assert not trace.exists()


def test_no_reader_runs_it_either(
    source: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it not refused by name: a class that transformers does not know would be asked about,
    and `y` is the answer.
    """
    trace = bewitch(
        source,
        "preprocessor_config.json",
        monkeypatch,
        image_processor_type="Evil",
        processor_class="Evil",
    )
    monkeypatch.setattr(sources, "CONFIG_FILES", ())
    with contextlib.suppress(PartError):
        verb("import", source, "--out", tmp_path / "out")
    assert not trace.exists()


def test_nor_that_of_a_part_or_a_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    trace = bewitch(tmp_path / "model", "config.json", monkeypatch, model_type="evil")
    sign(tmp_path / "model")
    with pytest.raises(PartError, match="cannot be opened as config"):
        vision_config(tmp_path / "model", "clip")
    with pytest.raises(ArtifactError, match="another kind of model; got evil"):
        load_model(tmp_path / "model", "cpu")
    assert not trace.exists()


# What is read is not replaced.


@pytest.mark.parametrize("goal", [".", "..", "inside/it"])
def test_the_source_is_not_replaced(source: Path, verb: Any, goal: str) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in source.rglob("*"))
    with pytest.raises(
        UsageError,
        match="would replace what it is made from; got --out .* Name another folder with --out",
    ):
        verb("import", source, "--out", source / goal)
    assert sorted((path, path.stat().st_mtime_ns) for path in source.rglob("*")) == before


def test_nor_by_the_name_it_would_have_got(
    whole: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="models/mine would replace what it is made from"):
        verb("import", "models/mine")
    assert not (tmp_path / "models" / "mine" / "manifest.json").exists()


def test_nor_an_adapter_or_its_base(source: Path, verb: Any, tmp_path: Path) -> None:
    trained = made.adapter(source, tmp_path / "adapter", ["down_proj"], projector=False)
    (tmp_path / "link").symlink_to(source)
    for goal in (trained, source, tmp_path / "link", trained / "merged"):
        with pytest.raises(UsageError, match="would replace what it is made from"):
            verb("import", trained, "--out", goal)


# What used to be a traceback.


def text(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    made.edit_json(folder / "config.json", text_config=config["text_config"] | changes)


def seen(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    made.edit_json(folder / "config.json", vision_config=config["vision_config"] | changes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda at: (at / "config.json").write_text("[]"),
            "config.json cannot be read; got a JSON list; wanted an object",
        ),
        (lambda at: (at / "config.json").write_text("{"), "config.json cannot be read"),
        (
            lambda at: (at / "preprocessor_config.json").write_text("3"),
            "preprocessor_config.json cannot be read; got a JSON int",
        ),
        (
            lambda at: (at / "tokenizer.json").write_text("no JSON"),
            "tokenizer.json cannot be read; got invalid literal",
        ),
        (
            lambda at: made.edit_json(at / "config.json", text_config=[]),
            "cannot be opened as config|is no Phi-3",
        ),
        (
            lambda at: made.edit_json(at / "config.json", vision_feature_layer=-99),
            "reads a layer that the tower lacks; got .* -99; wanted -",
        ),
        (
            lambda at: made.edit_json(at / "config.json", vision_feature_layer="x"),
            "cannot be opened as config|several layers",
        ),
        (
            lambda at: seen(at, patch_size=0),
            "says what no model here says; got vision_config.patch_size 0; wanted 1 to",
        ),
        (lambda at: seen(at, patch_size="x"), "cannot be opened as config"),
        (lambda at: seen(at, image_size=4), "has no patches"),
        (lambda at: seen(at, hidden_act="x"), "cannot be loaded"),
        (lambda at: text(at, vocab_size="x"), "cannot be opened as config; got .*vocab_size"),
        (lambda at: text(at, hidden_act="x"), "cannot be loaded"),
        (
            lambda at: text(at, num_attention_heads=0),
            "got text_config.num_attention_heads 0; wanted 1 to",
        ),
        (
            lambda at: made.edit_json(at / "preprocessor_config.json", image_mean="x"),
            "got image_mean x; wanted three numbers",
        ),
        (
            lambda at: made.edit_json(
                at / "preprocessor_config.json", crop_size={"height": 8, "width": 8}
            ),
            "prepares pictures otherwise",
        ),
    ],
)
def test_a_spoilt_folder_is_a_sentence(
    source: Path, verb: Any, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(source)
    with pytest.raises(PartError, match=said):
        verb("import", source, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "refuses our question"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.nothing.at_all }}", "has no attribute"),
    ],
)
def test_a_template_that_refuses(
    source: Path, verb: Any, tmp_path: Path, template: str, said: str
) -> None:
    """Many published ones call raise_exception: the import goes on by Phi-3's, and says so."""
    made.edit_json(source / "tokenizer_config.json", chat_template=template)
    found = verb("import", source, "--out", tmp_path / "out")["prompt"]
    assert (found["source_has_template"], found["same_ids"]) == (True, None)
    assert found["refused"].startswith("the source's template refuses our question")
    assert said in found["refused"]


def test_an_adapter_that_says_nothing_of_itself(source: Path, verb: Any, tmp_path: Path) -> None:
    trained = made.adapter(source, tmp_path / "adapter", ["down_proj"], projector=False)
    for facts, said in (
        ([], "got a JSON list; wanted an object"),
        ({"peft_type": "NONE"}, "is of another kind; got NONE; wanted LORA"),
    ):
        (trained / "adapter_config.json").write_text(json.dumps(facts))
        with pytest.raises(PartError, match=said):
            verb("import", trained, "--base", source, "--out", tmp_path / "out")
