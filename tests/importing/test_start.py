"""Going on from a model folder: a run begins where that model is, and what comes of it merges like
any other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from phisense.conversations import ImageFinder, read_conversations
from phisense.doctor.shapes import read_shapes
from phisense.errors import PartError, RecipeError
from phisense.model import load_model
from phisense.recipe import load_recipe
from phisense.vision.image_io import open_image

from . import made

pytestmark = pytest.mark.slow

ROWS = 12


@pytest.fixture(scope="module")
def root(world: Path, model: Path, verb: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The practice model as a Llama, imported; some of its questions, and a recipe that starts from
    it without moving it.
    """
    folder = tmp_path_factory.mktemp("start")
    verb("import", made.llama(model, folder / "source"), "--out", folder / "models" / "imported")
    (folder / "images").symlink_to(world / "data" / "images")
    rows = json.loads((world / "data" / "instruct.json").read_text())[:ROWS]
    (folder / "rows.json").write_text(json.dumps(rows))
    stage = {
        "batch_size": ROWS,
        "micro_batch_size": ROWS,
        "max_steps": 1,
        "learning_rate": 1e-9,
        "warmup_ratio": 0.0,
        "max_length": 512,
    }
    recipe: dict[str, Any] = {
        "name": "further",
        "root": str(folder),
        "start": "./models/imported",
        "data": {"images": "images", "instruct": ["rows.json"], "held_out": ["rows.json"]},
        "features": {"dtype": "float32"},
        "train": {
            "quantize": False,
            "lora": {"rank": 2, "alpha": 4},
            "instruct": stage,
            "log_every": 1,
            "eval": {"questions": 0},
        },
        "merge": {"dtype": "float32", "samples": 8},
    }
    (folder / "further.yaml").write_text(yaml.safe_dump(recipe))
    # features in bfloat16 differ by more than the 1e-4 below; which format is chosen is timed
    asked = ("--set", "compute_dtype=float32")
    assert verb("features", folder / "further.yaml", *asked)["pictures"] > 1
    return folder


def first_loss(root: Path, name: str) -> float:
    rows = [
        json.loads(line)
        for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]
    return float(next(row["loss"] for row in rows if "loss" in row))


@torch.inference_mode()
def loss_of(folder: Path, root: Path) -> float:
    """The model's loss per supervised token of the rows, one by one, from pixels."""
    built = load_model(folder, "cpu", torch.float32)
    pictures = ImageFinder([root / "images"])
    total, tokens = 0.0, 0
    for row in read_conversations(root / "rows.json"):
        seen = [open_image(pictures.path(name)) for name in row.images]
        batch = built.inputs([row.messages], [seen]).to_kwargs()
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += float(built.model(**batch).loss) * count
        tokens += count
    return total / tokens


@pytest.mark.parametrize(("compute_dtype", "apart"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_run_begins_at_the_models_loss(
    root: Path, model: Path, verb: Any, compute_dtype: str, apart: float
) -> None:
    """In bfloat16 within a twentieth of a loss that is small: each of its words' chances is
    rounded.
    """
    asked = ("--set", f"compute_dtype={compute_dtype}")
    facts = verb("train", root / "further.yaml", *asked, "--overwrite")
    wanted = loss_of(model, root)
    assert first_loss(root, "further") == pytest.approx(wanted, rel=apart)
    assert "calibration" not in facts
    # The control: the same parts, and a projector of its own.
    config = yaml.safe_load((root / "further.yaml").read_text())
    part = config.pop("start")
    (root / "fresh.yaml").write_text(
        yaml.safe_dump(
            config | {"name": "fresh", "language": {"part": part}, "vision": {"part": part}}
        )
    )
    verb(
        "train",
        root / "fresh.yaml",
        "--set",
        "features.folder=features/further",
        *asked,
        "--overwrite",
    )
    assert first_loss(root, "fresh") > 5 * wanted


@pytest.mark.slow
def test_what_was_trained_further_merges_and_answers(root: Path, model: Path, verb: Any) -> None:
    """On NF4, as a recipe has it unless told otherwise, with steps that move."""
    train = {"quantize": True, "instruct.learning_rate": 0.0005, "instruct.max_steps": 3}
    changes = [
        "name=moved",
        "features.folder=features/further",
        "merge.samples=4",
        *(f"train.{key}={value}" for key, value in train.items()),
    ]
    facts = verb(
        "train", root / "further.yaml", *(word for change in changes for word in ("--set", change))
    )
    assert facts["projector_change"] > 0
    report = verb("merge", facts["run"])
    assert abs(report["merged"]["delta_loss"]) <= 0.002
    assert loss_of(Path(report["model"]), root) < loss_of(model, root) + 0.02
    picture = next((root / "images").glob("heldout-*.jpg"))
    assert verb("ask", report["model"], "--image", picture, "-q", "Describe the picture.")["answer"]
    assert read_shapes(load_recipe(root / "further.yaml")).image_tokens == 64
    assert verb("show", root / "rows.json", "-n", 1, "--recipe", root / "further.yaml")


def test_a_start_that_does_not_fit(root: Path, tmp_path: Path, verb: Any) -> None:
    for change, said in (
        (
            "vision.layer=-1",
            (
                "the recipe does not fit the projector of .*; got vision_feature_layer -2; wanted"
                " -1. Set vision.layer"
            ),
        ),
        (
            "projector.kind=linear",
            "got projector_hidden_act gelu; wanted linear. Set projector.kind",
        ),
        (
            "projector.pool=2",
            "got model_type llava; wanted aya_vision. Set projector.pool as it was trained",
        ),
        (
            "vision.encoder=siglip",
            (
                "is no siglip encoder; got clip_vision_model; wanted siglip or siglip_vision_model."
                " Set vision.encoder"
            ),
        ),
    ):
        with pytest.raises(PartError, match=said):
            build(root, change)
    with pytest.raises(
        RecipeError,
        match="start brings its own parts, so language.part cannot be another: leave it out",
    ):
        load_recipe(root / "further.yaml", ("language.part=elsewhere/phi",))
    with pytest.raises(PartError, match="there is no part .*/nowhere"):
        build(root, "start=./nowhere")


def build(root: Path, change: str) -> Any:
    from phisense.model import Phi3WithProjector

    return Phi3WithProjector.from_recipe(
        load_recipe(root / "further.yaml", (change,)), device="cpu"
    )


def test_the_parts_of_a_recipe_are_the_starts(root: Path) -> None:
    recipe = load_recipe(root / "further.yaml", ("language.window=512",))
    assert (
        recipe.language.part
        == recipe.vision.part
        == recipe.start
        == str(root / "models" / "imported")
    )
    assert recipe.language.window == 512
