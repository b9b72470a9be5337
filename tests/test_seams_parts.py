"""An encoder, a projector and an engine are added by one file (tests/toys/) and one line, the
`setitem` here; then they go the whole way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from phisense import Phi3WithProjector, seams
from phisense.chat import ChatSession
from phisense.chat.open_engine import choose_engine, open_engine
from phisense.conversations import IMAGE, Message
from phisense.doctor.shapes import read_shapes
from phisense.errors import ArtifactError, PartError, RecipeError, UsageError
from phisense.evaluation.predictors import EnginePredictor
from phisense.model import load_model, save_model
from phisense.model.projectors.base import NativeModel
from phisense.opening.registered import composite_model_types, vision_model_types
from phisense.opening.shape_checks import normalize_weight_name
from phisense.recipe import Projector, load_recipe
from phisense.vision.encoders.encode import Encoder

from .tiny import make_language, make_root
from .toys import projector_toy

PATCHES = 16  # of a picture: 32 pixels a side, 8 a patch


@pytest.fixture
def toy_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seams.ENCODER_MODULES, "toy", "tests.toys.encoder_toy")


@pytest.fixture
def toy_projector_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seams.PROJECTOR_MODULES, "toy", "tests.toys.projector_toy")


@pytest.fixture
def toy_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seams.ENGINE_MODULES, "toy", "tests.toys.engine_toy")


@pytest.fixture
def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((60, 40)).convert("RGB")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A ViT of 3 layers and width 16, in a folder as it was trained for classification: its weights
    begin with `vit.`.
    """
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    save_file({f"vit.{name}": one for name, one in load_file(file).items()}, file, {"format": "pt"})
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ToyImageProcessor",
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    return tmp_path / "vit"


def loss(built: Phi3WithProjector, picture: Image.Image) -> float:
    """Loss of one conversation about a picture."""
    messages = [Message("user", f"{IMAGE}\nWhat is it?"), Message("assistant", "A circle.")]
    with torch.inference_mode():
        return float(built.model(**built.inputs([messages], [[picture]]).to_kwargs()).loss)


@pytest.mark.usefixtures("toy_encoder")
def test_an_encoder_encodes(vit: Path, picture: Image.Image) -> None:
    from transformers import ViTModel

    encoder = Encoder(str(vit), "toy")
    features = encoder.encode([picture])
    assert features.shape == (1, PATCHES, 16)
    plain: Any = ViTModel.from_pretrained(vit).eval()
    with torch.inference_mode():
        pixels = encoder.processor([picture], return_tensors="pt")["pixel_values"]
        hidden = plain(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(features, hidden[:, 1:])


@pytest.mark.usefixtures("toy_encoder", "toy_projector_kind")
def test_both_go_from_a_recipe_to_a_model_folder(
    vit: Path, picture: Image.Image, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    recipe = make_root(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "parts" / "vision")
    recipe |= {"vision": {"part": str(vit), "encoder": "toy"}, "projector": {"kind": "toy"}}
    (tmp_path / "root" / "toy.yaml").write_text(yaml.safe_dump(recipe))
    asked = load_recipe(tmp_path / "root" / "toy.yaml")
    assert read_shapes(asked).image_tokens == PATCHES

    built = Phi3WithProjector.from_recipe(asked, device="cpu", dtype=torch.float32)
    first = built.projector.linear_1.weight
    torch.testing.assert_close(first.T @ first, torch.eye(16))  # as the toy begins
    assert built.image_tokens == PATCHES
    before = loss(built, picture)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(built, folder)
    again = load_model(folder, "cpu", torch.float32)
    assert again.model.config.projector_hidden_act == "relu"
    assert loss(again, picture) == before


@pytest.mark.usefixtures("toy_projector_kind")
def test_a_projector_refuses_what_it_does_not_do() -> None:
    with pytest.raises(RecipeError, match="a toy does not pool"):
        load_recipe("practice", ("projector.kind=toy", "projector.pool=2"))
    with pytest.raises(RecipeError, match="'mlp', 'pixel_shuffle' or 'toy'; got 'resampler'"):
        load_recipe("practice", ("projector.kind=resampler",))


@pytest.mark.usefixtures("toy_projector_kind")
def test_a_projectors_native_model_may_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    known = composite_model_types()
    own = NativeModel("toy_llava", lambda: None)
    monkeypatch.setattr(type(projector_toy.PROJECTOR), "natives", (own,))
    assert composite_model_types() == (*known, "toy_llava")


def test_what_is_in_no_table_is_refused(vit: Path, tmp_path: Path) -> None:
    """The control: without their lines, the same folders and names are unknown."""
    language = make_language(tmp_path / "language")
    assert "vit" not in vision_model_types()
    with pytest.raises(UsageError, match="unknown encoder; got toy; wanted clip, siglip, dinov2"):
        Encoder(str(vit), "toy")
    with pytest.raises(PartError, match="model type vit"):
        Phi3WithProjector.assemble(str(language), str(vit), Projector(), device="cpu")
    for change in ("vision.encoder=toy", "projector.kind=toy"):
        with pytest.raises(RecipeError, match="got 'toy'"):
            load_recipe("practice", (change,))
    with pytest.raises(UsageError, match="wanted auto, torch, llama or remote"):
        choose_engine(vit, "toy")


def heavy_after(*modules: str) -> set[str]:
    """Which heavy packages a process has loaded that imported these modules."""
    code = (
        f"import sys; from importlib import import_module; list(map(import_module, {modules}));"
        " print(*{'torch', 'transformers', 'llama_cpp'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.slow
def test_the_modules_in_the_tables_are_light() -> None:
    """Recipes and the checks of folders ask them before anything heavy is wanted."""
    tables = (seams.ENCODER_MODULES, seams.PROJECTOR_MODULES, seams.ENGINE_MODULES)
    assert heavy_after(*(module for table in tables for module in table.values())) == set()
    assert "torch" in heavy_after("phisense.chat.torch_engine")  # the control


def test_an_encoders_prefix_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert normalize_weight_name("vit.layernorm.weight") == "vit.layernorm.weight"
    monkeypatch.setitem(seams.ENCODER_MODULES, "toy", "tests.toys.encoder_toy")
    assert normalize_weight_name("vit.layernorm.weight") == "layernorm.weight"
    assert normalize_weight_name("vision_model.layernorm.weight") == "layernorm.weight"
    assert normalize_weight_name("vision_tower.vit.a") == "vision_tower.vit.a"  # not published so


@pytest.mark.usefixtures("toy_engine")
def test_an_engine_answers(tmp_path: Path, verb: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "bird"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with caplog.at_level("INFO", logger="phisense"):
        engine = open_engine(folder, engine="toy")
    assert "bird: a branch" in caplog.text
    session = ChatSession(engine)
    assert "".join(session.ask("Who is there?")) == "Who is there?"
    assert verb("ask", folder, "--engine", "toy", "--question", "Hello")["answer"] == "Hello"
    assert EnginePredictor(engine).about["engine"] == "toy"
    assert EnginePredictor(engine).identity == {}
    assert choose_engine(folder) == "torch"  # the first that opens such a folder

    with pytest.raises(UsageError, match="only the torch engine quantises .*; got the toy engine"):
        open_engine(folder, engine="toy", quantize=True)
    with pytest.raises(UsageError, match="asked by the remote engine, not by toy"):
        choose_engine(folder, "toy", "http://x/v1")
    with pytest.raises(ArtifactError, match="is not a model folder"):
        choose_engine(tmp_path, "toy")
