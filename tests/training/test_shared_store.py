"""A store that recipes share: what one adds is nothing to another, and whoever trains reads the
features of the pictures that are there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from phisense.errors import ArtifactError

from ..tiny import make_root

pytestmark = pytest.mark.slow

STORE = ("--set", "features.folder=features/tiny", "--set", "train.eval.questions=0")


@pytest.fixture
def root(tmp_path: Path, verb: Any) -> Path:
    make_root(tmp_path)
    verb("features", tmp_path / "tiny.yaml")
    return tmp_path


def other_recipe(root: Path) -> tuple[str, ...]:
    """About pictures that come before and between this one's by name."""
    rows = []
    for i, name in enumerate(("a.png", "h.png", "z.png")):
        Image.new("RGB", (60, 40), (90 * i, 200, 30)).save(root / "images" / name)
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A colour."},
        ]
        rows.append({"id": name, "image": name, "conversations": turns})
    (root / "more.json").write_text(json.dumps(rows))
    return ("--set", "data.align=[more.json]", "--set", "data.instruct=[more.json]", *STORE)


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / "runs" / name / "adapter" / "adapter_model.safetensors")


def test_another_recipes_pictures_change_nothing(root: Path, verb: Any) -> None:
    verb("train", root / "tiny.yaml", *STORE, "--set", "name=alone")
    before = (root / "features" / "tiny" / "features-00000.safetensors").read_bytes()
    assert verb("features", root / "tiny.yaml", *other_recipe(root))["stored"] == 7
    assert (root / "features" / "tiny" / "features-00000.safetensors").read_bytes() == before
    verb("train", root / "tiny.yaml", *STORE, "--set", "name=shared")
    assert all(
        torch.equal(weights(root, "alone")[key], value)
        for key, value in weights(root, "shared").items()
    )
    # its features are what they were
    verb("train", root / "tiny.yaml", *STORE, "--set", "name=alone", "--resume")
    verb("train", root / "tiny.yaml", *other_recipe(root), "--set", "name=other")
    other = weights(root, "other")
    assert not all(
        torch.equal(other[key], value) for key, value in weights(root, "shared").items()
    ), "the control"


def test_a_picture_that_was_changed_is_not_trained_on(root: Path, verb: Any) -> None:
    Image.new("RGB", (60, 40), (0, 0, 0)).save(root / "images" / "red.png")
    with pytest.raises(
        ArtifactError, match=r"the picture red\.png is another than the one in the feature store"
    ):
        verb("train", root / "tiny.yaml", *STORE, "--set", "name=changed")
    verb("features", root / "tiny.yaml")
    verb("train", root / "tiny.yaml", *STORE, "--set", "name=encoded")


def test_the_command_says_what_the_store_holds(
    root: Path, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verb("features", root / "tiny.yaml", *other_recipe(root))
    assert "3 pictures, 16 tokens of width 16 each" in " ".join(
        (out := capsys.readouterr()).out.split()
    )
    assert "which holds 7" in " ".join(out.out.split())
    with pytest.raises(
        ArtifactError, match="is of another format; got float16; wanted int8.*--overwrite"
    ):
        verb("features", root / "tiny.yaml", "--set", "features.dtype=int8")
    verb("features", root / "tiny.yaml", "--set", "features.dtype=int8", "--overwrite")
    verb("train", root / "tiny.yaml", *STORE, "--set", "name=int8", "--set", "features.dtype=int8")
