"""Every part of a run × every way of making it another × every verb that goes on from it: refused
by name, or right; nothing changed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phisense import chat_tokenizer
from phisense.conversations import Message
from phisense.errors import ArtifactError, PartError, PhisenseError, TerminatedError, UsageError
from phisense.merging import steps as merging_steps
from phisense.model import provenance, unmerged
from phisense.pipeline.progress import Event, TrainingStep
from phisense.prompt import Prompt
from phisense.training import Training
from phisense.training import stages as training_run

from ..conftest import LONG
from ..tiny import make_root

pytestmark = pytest.mark.slow

FASTER = ("train.eval.questions=0", "train.log_every=1", "train.instruct.max_steps=24")
SPEECH = "speech.part=./parts/speech"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, verb: Any) -> Path:
    """A root with runs: `done` is finished, `stopped` has a checkpoint in its last stage, `next`
    has finished the first stage alone; three more, `started`, began from a model folder that was
    merged from `done`.
    """
    folder = tmp_path_factory.mktemp("parts")
    make_root(folder)
    speech = folder / "parts" / "speech"
    speech.mkdir()
    (speech / "config.json").write_text('{"model_type": "whisper"}')
    (speech / "tokenizer.json").write_text("{}")
    save_file({"a": torch.randn(9, 9)}, speech / "model.safetensors")
    verb("features", folder / "tiny.yaml")
    for name, step in (("done", None), ("stopped", 23), ("next", 2)):
        train(folder, verb, name, until=step)
    verb("merge", folder / "runs" / "done", "--out", folder / "parts" / "whole")
    again = {"start": "./parts/whole", "language": None, "vision": {"encoder": "clip"}}
    recipe = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "again.yaml").write_text(
        yaml.safe_dump(
            {key: value for key, value in {**recipe, **again}.items() if value is not None}
        )
    )
    verb("features", folder / "again.yaml", *words(*FASTER, "features.folder=features/again"))
    for name, step in (("started", None), ("started-stopped", 23), ("started-next", 2)):
        train(folder, verb, name, until=step, recipe="again", store="again")
    return folder


def words(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def train(
    root: Path,
    verb: Any,
    name: str,
    *more: str,
    until: int | None = None,
    recipe: str = "tiny",
    store: str = "tiny",
) -> Any:
    """Stopped, if it is, at a step of the last stage."""
    call = Training.__call__

    def stopping(self: Training) -> dict[str, Any]:
        on_event = self.on_event

        def stop(event: Event) -> None:
            on_event(event)
            if isinstance(event, TrainingStep) and (event.stage, event.step) == ("instruct", until):
                raise TerminatedError("the test stops it")

        self.on_event = stop
        return call(self)

    changes = words(
        *FASTER,
        f"name={name}",
        f"features.folder=features/{store}",
        *([SPEECH] if recipe == "tiny" else []),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "__call__", stopping)
        if until is None:
            return verb("train", root / f"{recipe}.yaml", *changes, *more)
        with pytest.raises(TerminatedError):
            verb("train", root / f"{recipe}.yaml", *changes, *more)
    return None


# what is done to a part's folder


def one_layer(folder: Path) -> None:
    rewritten(
        folder, lambda name, weight: weight + 0.01 if weight.ndim == 2 else weight, first=True
    )


def other_format(folder: Path) -> None:
    rewritten(folder, lambda name, weight: weight.to(torch.bfloat16))


def rewritten(
    folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor], *, first: bool = False
) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    weights = load_file(path)
    for name in sorted(weights):
        held = weights[name]
        weights[name] = change(name, held).contiguous()
        if first and not torch.equal(weights[name], held):
            break
    save_file(weights, path, metadata=about)


def one_byte(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[random.Random(name).randrange(len(data) // 2, len(data))] ^= 1
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(1, 1))

    return flip


def setting(name: str, key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / name).read_text())
        assert facts.get(key) != value
        (folder / name).write_text(json.dumps({**facts, key: value}))

    return change


def another_file(folder: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(2, 2)}, folder / "model-extra.safetensors")


def told_otherwise(folder: Path) -> None:
    facts = json.loads((folder / "tokenizer.json").read_text())
    known = facts["model"]["vocab"]
    a, b = list(known)[-2:]
    known[a], known[b] = known[b], known[a]
    (folder / "tokenizer.json").write_text(json.dumps(facts))


WEIGHTS = {
    "one layer": one_layer,
    "another format": other_format,
    "one byte": one_byte("model.safetensors"),
    "one file more": another_file,
}
MADE_ANOTHER: dict[str, dict[str, Callable[[Path], None]]] = {
    "language": {**WEIGHTS, "config": setting("config.json", "rope_theta", 5000.0)},
    "tokenizer": {
        "tokens": told_otherwise,
        "one byte": one_byte("tokenizer.json"),
        "config": setting("tokenizer_config.json", "clean_up_tokenization_spaces", True),
    },
    "vision": {**WEIGHTS, "config": setting("config.json", "layer_norm_eps", 1e-3)},
    "processor": {
        "mean": setting("preprocessor_config.json", "image_mean", [0.1, 0.2, 0.3]),
        "one byte": one_byte("preprocessor_config.json"),
    },
    "projector": {"one layer": one_layer, "one byte": one_byte("model.safetensors")},
    "speech": {
        "one byte": one_byte("model.safetensors"),
        "config": setting("config.json", "d_model", 7),
        "tokens": one_byte("tokenizer.json"),
    },
}
FOLDERS = {
    "language": "language",
    "tokenizer": "language",
    "vision": "vision",
    "processor": "vision",
    "projector": "whole",
    "speech": "speech",
}
SAID = {
    "language": "language part",
    "tokenizer": "tokenizer of the language part",
    "vision": "vision part",
    "processor": "picture processor of the vision part",
    "projector": "projector to start from",
    "speech": "speech part",
}
VERBS = ("merge", "evaluate", "resume", "next stage")


def go_on(root: Path, verb: Any, what: str, part: str = "language") -> Any:
    """From a run of `root`, whose parts lie in `root`, where it was moved to."""
    start = part == "projector"
    if what in ("resume", "next stage"):
        name = ("started-" if start else "") + ("stopped" if what == "resume" else "next")
        return train(
            root,
            verb,
            name,
            "--resume",
            recipe="again" if start else "tiny",
            store="again" if start else "tiny",
        )
    run = root / "runs" / ("started" if start else "done")
    names = {"start": "whole", "language.part": "whole", "vision.part": "whole"} if start else {
        "language.part": "language", "vision.part": "vision", "speech.part": "speech"
    }  # fmt: skip
    here = words(*(f"{key}={root / 'parts' / name}" for key, name in names.items()))
    if what == "merge":
        return verb("merge", run, *here)
    return verb(
        "evaluate",
        run,
        *here,
        "--data",
        root / "rows.json",
        "--images",
        root / "images",
        "--condition",
        "real",
        "--out",
        root / "report",
    )


def moved(root: Path, to: Path) -> Path:
    copy = to / "elsewhere"
    shutil.copytree(root, copy)
    for path in copy.glob("*.yaml"):
        facts = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**facts, "root": str(copy)}))
    return copy


def everything(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def cases() -> list[tuple[str, str, str]]:
    """Every change of every part, in turn with one of the verbs; and every part with every verb."""
    found = [
        (part, change, what)
        for part, changes in MADE_ANOTHER.items()
        for number, change in enumerate(changes)
        for at, what in enumerate(VERBS)
        if LONG or at == number % len(VERBS)
    ]
    met = {(part, what) for part, _, what in found}
    return found + [
        (part, next(iter(changes)), what)
        for part, changes in MADE_ANOTHER.items()
        for what in VERBS
        if (part, what) not in met
    ]


@pytest.mark.parametrize(
    ("part", "change", "what"), cases(), ids=[" ".join(case) for case in cases()]
)
def test_another_part_is_refused(
    root: Path, tmp_path: Path, verb: Any, part: str, change: str, what: str
) -> None:
    here = moved(root, tmp_path)
    MADE_ANOTHER[part][change](here / "parts" / FOLDERS[part])
    before = everything(here)
    with pytest.raises(PartError) as told:
        go_on(here, verb, what, part)
    said = str(told.value)
    print(said)
    assert re.search(
        rf"was trained with another (.* and another )?{SAID[part]}( and another .*)?; got ", said
    )
    assert "; wanted " in said
    assert "Put it back as it was" in said
    assert everything(here) == before


@pytest.mark.parametrize("what", VERBS)
def test_a_moved_part_with_other_times_is_fine(
    root: Path, tmp_path: Path, verb: Any, what: str
) -> None:
    here = moved(root, tmp_path)
    for number, path in enumerate(sorted((here / "parts").rglob("*"))):
        os.utime(path, (number, number))
    (here / "parts" / "language" / "README.md").write_text("It is nobody's business.")
    made = go_on(here, verb, what)
    if what == "merge":
        kept = json.loads((Path(made["model"]) / "manifest.json").read_text())["about"]["parts"]
        assert kept == json.loads((here / "runs" / "done" / "parts.json").read_text())
        assert set(kept) == {"language", "tokenizer", "chat", "vision", "processor", "speech"}
    elif what == "evaluate":
        assert made["real"]["loss"] > 0
    else:
        straight = load_file(root / "runs" / "done" / "adapter" / "adapter_model.safetensors")
        again = load_file(Path(made["run"]) / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(straight[name], again[name]) for name in straight)


@pytest.mark.parametrize("what", VERBS)
def test_another_chat_format_is_refused(
    root: Path, tmp_path: Path, verb: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later version of phisense might have one."""
    here = moved(root, tmp_path)
    piece = Prompt._tokenize_message
    monkeypatch.setattr(chat_tokenizer, "check_template", lambda *_, **__: None)
    monkeypatch.setattr(
        Prompt,
        "_tokenize_message",
        lambda self, message, last_answer: piece(
            self, Message(message.role, f"Now: {message.text}"), last_answer
        ),
    )
    with pytest.raises(PartError, match="was trained with another chat format; got "):
        go_on(here, verb, what)


@pytest.mark.parametrize("what", ["resume", "next stage"])
def test_changes_that_are_accepted_are_gone_on_with(
    root: Path, tmp_path: Path, verb: Any, what: str
) -> None:
    """And the merge holds the run to the part that it was finished with."""
    here = moved(root, tmp_path)
    one_layer(here / "parts" / "language")
    name = "stopped" if what == "resume" else "next"
    train(here, verb, name, "--resume", "--accept-changes")
    names = {"language.part": "language", "vision.part": "vision", "speech.part": "speech"}
    verb(
        "merge",
        here / "runs" / name,
        *words(*(f"{key}={here / 'parts' / one}" for key, one in names.items())),
    )


def test_a_store_of_another_vision_part_is_refused(root: Path, tmp_path: Path, verb: Any) -> None:
    here = moved(root, tmp_path)
    one_layer(here / "parts" / "vision")
    with pytest.raises(ArtifactError, match="was made by another encoder"):
        train(here, verb, "fresh")


def test_what_was_trained_cannot_be_changed_at_the_merge(
    root: Path, tmp_path: Path, verb: Any
) -> None:
    here = moved(root, tmp_path)
    with pytest.raises(
        UsageError,
        match=(
            r"a run's recipe cannot be changed there; got train.lora.alpha=99; wanted"
            r" language.part, "
        ),
    ):
        verb("merge", here / "runs" / "done", "--set", "train.lora.alpha=99")
    with pytest.raises(UsageError, match="only a run has a recipe to change"):
        verb(
            "evaluate",
            here / "parts" / "whole",
            "--set",
            "merge.samples=3",
            "--data",
            here / "rows.json",
        )


@pytest.mark.parametrize("quantize", [True, False], ids=["4 bits", "plain"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_base_in_memory_is_compared_too(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, compute: str, quantize: bool
) -> None:
    """The control: with the files' digests switched off it is the numbers that tell; with both off
    the wrong merge goes through.
    """
    make_root(tmp_path)
    changes = words(
        *FASTER, f"train.quantize={str(quantize).lower()}", f"compute_dtype={compute}", "name=one"
    )
    verb("features", tmp_path / "tiny.yaml", *changes)
    run = verb("train", tmp_path / "tiny.yaml", *changes)["run"]
    one_layer(tmp_path / "parts" / "language")
    with pytest.raises(PartError, match="was trained with another language part; got "):
        verb("merge", run)
    for module in (merging_steps, unmerged, training_run):
        monkeypatch.setattr(
            module,
            "check_parts_unchanged",
            lambda run, recipe, **_: provenance.digest_parts(recipe),
        )
    for refused in (
        lambda: verb("merge", run),
        lambda: verb(
            "evaluate", run, "--data", tmp_path / "rows.json", "--images", tmp_path / "images"
        ),
    ):
        with pytest.raises(
            PartError,
            match=(
                r"the base is not the one that .* was trained on; got (plain weights|four bit"
                r" codes) [0-9a-f]{12}"
            ),
        ):
            refused()
    assert not (tmp_path / "models").exists()
    monkeypatch.setattr(unmerged, "_check_base", lambda *_: None)
    verb("merge", run)
    with pytest.raises(ArtifactError, match="parts.language was"):
        verb("train", tmp_path / "tiny.yaml", *changes, "--resume")


def test_a_record_that_is_none_is_a_sentence(root: Path, tmp_path: Path, verb: Any) -> None:
    here = moved(root, tmp_path)
    for wrong in ("[]", '{"language": "x"}', "{"):
        (here / "runs" / "stopped" / "parts.json").write_text(wrong)
        with pytest.raises(PhisenseError, match=r"parts.json is (damaged|not JSON)"):
            go_on(here, verb, "resume")
