"""What others' tools wrote, taken as a model folder: every layout the same weights, and everything
that is not what it says refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phisense.artifacts import read_manifest
from phisense.errors import PartError
from phisense.importing import importer as importing
from phisense.importing import llama as rewriting
from phisense.importing import rebuild
from phisense.model import load_model

from ..tiny import make_language
from . import made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def as_llama(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.llama(tiny, tmp_path_factory.mktemp("llama") / "llava-phi-3-mini-hf")


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_model(folder, "cpu").model.state_dict() for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("vision_model", [False, True])
def test_native_folders_under_old_and_new_names(
    tiny: Path, verb: Any, tmp_path: Path, new: bool, vision_model: bool
) -> None:
    source = made.plain(tiny, tmp_path / "source", new=new, vision_model=vision_model)
    report = verb("import", source, "--out", tmp_path / "out")
    assert (report["largest_difference"], report["top1"], report["same_pixels"]) == (0.0, 1.0, True)
    assert report["positions"] > 60
    assert same_weights(tiny, tmp_path / "out")
    assert read_manifest(tmp_path / "out", kind="model folder")["imported"] is True
    assert json.loads((tmp_path / "out" / "import_report.json").read_text())["kl"] == report["kl"]


def test_pictures_are_prepared_as_the_source_does(tiny: Path, verb: Any, tmp_path: Path) -> None:
    verb("import", made.plain(tiny, tmp_path / "source"), "--out", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert facts["image_processor"]["do_pad"] is False, "the source cuts the sides off"
    assert facts["image_processor"]["do_center_crop"] is True


@pytest.mark.parametrize("encoder", ["siglip", "dinov2"])
def test_other_towers(encoder: str, verb: Any, tmp_path: Path) -> None:
    whole = made.make_whole(tmp_path / "whole", encoder=encoder)
    verb(
        "import",
        made.plain(whole, tmp_path / "source", vision_model=encoder == "siglip"),
        "--out",
        tmp_path / "out",
    )
    assert same_weights(whole, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(dtype: torch.dtype, verb: Any, tmp_path: Path) -> None:
    whole = made.make_whole(tmp_path / "whole", dtype=dtype)
    report = verb("import", made.llama(whole, tmp_path / "source"), "--out", tmp_path / "out")
    assert report["dtype"] == str(dtype).removeprefix("torch.")
    assert report["largest_difference"] <= 1e-3
    theirs = load_file(whole / "model.safetensors")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    fused = next(name for name in theirs if name.endswith("layers.1.self_attn.qkv_proj.weight"))
    found = next(
        weight
        for name, weight in ours.items()
        if name.endswith("layers.1.self_attn.qkv_proj.weight")
    )
    assert torch.equal(theirs[fused], found)


def test_a_phi3_rewritten_as_a_llama_is_a_phi3_again(
    tiny: Path, as_llama: Path, verb: Any, tmp_path: Path
) -> None:
    """xtuner's layout: bit for bit what it was before it was cut."""
    report = verb("import", as_llama, "--out", tmp_path / "out")
    assert (report["text_part"], report["prompt"]) == (
        "llama",
        {"source_has_template": False, "same_ids": None},
    )
    assert report["largest_difference"] <= 1e-3
    assert same_weights(tiny, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["Phi3ForCausalLM"]
    assert (config["text_config"]["model_type"], config["text_config"]["sliding_window"]) == (
        "phi3",
        None,
    )


def test_the_practice_model_comes_back_from_a_llama(
    model: Path, world: Path, verb: Any, tmp_path: Path
) -> None:
    """The trained one: it answers as before, and is no less right."""
    verb("import", made.llama(model, tmp_path / "source"), "--out", tmp_path / "out")
    assert same_weights(model, tmp_path / "out")
    picture = world / "data" / "images" / "heldout-00001.jpg"
    says = [
        verb("ask", one, "--image", picture, "-q", "Describe the picture.")["answer"]
        for one in (tmp_path / "out", model)
    ]
    assert len(says[0].split()) > 3


@pytest.mark.parametrize("order", [("k", "q", "v"), ("v", "k", "q")])
def test_matrices_joined_in_another_order_are_refused(
    as_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    monkeypatch.setitem(
        rewriting.FUSED_MATRICES,
        "self_attn.qkv_proj.weight",
        tuple(f"self_attn.{one}_proj.weight" for one in order),
    )
    with pytest.raises(
        PartError,
        match=(
            "does not say what its source says, so it was not written; got a logit .* standard"
            " deviations off"
        ),
    ):
        importing.import_folder(str(as_llama), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_gate_and_up_exchanged_are_refused(
    as_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        rewriting.FUSED_MATRICES,
        "mlp.gate_up_proj.weight",
        ("mlp.up_proj.weight", "mlp.gate_proj.weight"),
    )
    with pytest.raises(PartError, match="does not say what its source says"):
        importing.import_folder(str(as_llama), tmp_path / "out", device="cpu")


def test_the_gate_knows_pictures_prepared_otherwise(
    as_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = rebuild.load_image_processor

    def padded(folder: Path) -> Any:
        found = own(folder)
        found.do_pad = True
        return found

    monkeypatch.setattr(rebuild, "load_image_processor", padded)
    with pytest.raises(PartError, match="got pictures prepared otherwise"):
        importing.import_folder(str(as_llama), tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "k_proj",
        "vision_tower.vision_model.pre_layrnorm",
        "multi_modal_projector.linear_2.bias",
        "lm_head",
    ],
)
def test_a_weight_that_is_missing(as_llama: Path, verb: Any, tmp_path: Path, name: str) -> None:
    shutil.copytree(as_llama, tmp_path / "source")
    made.edit(tmp_path / "source", lambda weights: without(weights, name))
    with pytest.raises(PartError, match="is incomplete; got 1 weights missing"):
        verb("import", tmp_path / "source", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def without(weights: made.Weights, name: str) -> made.Weights:
    gone = next(key for key in weights if name in key)
    return {key: weight for key, weight in weights.items() if key != gone}


def test_a_weight_without_a_place(as_llama: Path, verb: Any, tmp_path: Path) -> None:
    shutil.copytree(as_llama, tmp_path / "source")
    made.edit(tmp_path / "source", lambda weights: weights | {"image_newline": torch.zeros(32)})
    with pytest.raises(
        PartError,
        match="weights that the model it describes has no place for; got 1, such as image_newline",
    ):
        verb("import", tmp_path / "source", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "config.json",
            {"model_type": "llava_next"},
            "is no LLaVA-format folder; got model type llava_next; wanted llava",
        ),
        (
            "config.json",
            {"model_type": "phi3"},
            "got model type phi3; its text part alone is no LLaVA",
        ),
        ("config.json", {"vision_feature_layer": [-2, -5]}, "reads several layers of the tower"),
        (
            "config.json",
            {"vision_feature_select_strategy": "full"},
            "reads other rows than are read here; got full; wanted default",
        ),
        (
            "config.json",
            {"image_token_index": 3},
            "do not agree on <image>; got id 615 in the tokenizer, 3 in config.json",
        ),
        (
            "config.json",
            {"quantization_config": {"quant_method": "awq"}},
            "are quantised; got a quantization_config",
        ),
        (
            "preprocessor_config.json",
            {"image_grid_pinpoints": [[336, 672]]},
            "cuts pictures into tiles",
        ),
    ],
)
def test_what_cannot_be_taken(
    as_llama: Path, verb: Any, tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    shutil.copytree(as_llama, tmp_path / "source")
    made.edit_json(tmp_path / "source" / file, **changes)
    with pytest.raises(PartError, match=said):
        verb("import", tmp_path / "source", "--out", tmp_path / "out")


def test_a_llama_of_another_tokenizer(as_llama: Path, verb: Any, tmp_path: Path) -> None:
    source = tmp_path / "vicuna"
    shutil.copytree(as_llama, source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        one for one in tokenizer["added_tokens"] if not one["content"].startswith("<|")
    ]
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        PartError,
        match=r"is a Llama of another tokenizer; got no <\|im_start\|>, .*; wanted the chat tags of"
        r" Phi-3 or ",
    ):
        verb("import", source, "--out", tmp_path / "out")


def test_tags_that_keep_the_line_break(as_llama: Path, verb: Any, tmp_path: Path) -> None:
    shutil.copytree(as_llama, tmp_path / "source")
    tokenizer = json.loads((tmp_path / "source" / "tokenizer.json").read_text())
    for one in tokenizer["added_tokens"]:
        one["rstrip"] = False
    (tmp_path / "source" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(PartError, match="reads Phi-3's template otherwise"):
        verb("import", tmp_path / "source", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("head_dim", 8),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_a_llama_that_is_no_phi3(as_llama: Path, key: str, value: Any) -> None:
    from transformers import LlamaConfig

    text = json.loads((as_llama / "config.json").read_text())["text_config"]
    with pytest.raises(PartError, match="a Llama that no Phi-3 computes like; got"):
        rewriting.to_phi3_config(LlamaConfig(**(text | {key: value})))


def test_folders_that_are_none(verb: Any, tmp_path: Path) -> None:
    with pytest.raises(PartError, match="there is no part .*none"):
        verb("import", tmp_path / "none", "--out", tmp_path / "out")
    with pytest.raises(PartError, match="its text part alone is no LLaVA"):
        verb("import", make_language(tmp_path / "language"), "--out", tmp_path / "out")
    with pytest.raises(PartError, match="is no adapter, so it has no base"):
        verb("import", tmp_path / "language", "--base", "x", "--out", tmp_path / "out")


def test_with_the_real_tokenizer(fixtures: Path, verb: Any, tmp_path: Path) -> None:
    """Phi-3's own, whose 32,064 rows have room for `<image>` at 32011."""
    from phisense import artifacts
    from phisense.model import Phi3WithProjector, save_model

    from ..tiny import make_vision

    make_language(
        tmp_path / "language", tokenizer=fixtures / "phi3-tokenizer", rows=32064, window=4096
    )
    make_vision(tmp_path / "vision")
    built = Phi3WithProjector.assemble(
        str(tmp_path / "language"), str(tmp_path / "vision"), device="cpu", dtype=torch.float32
    )
    with artifacts.staged_artifact(tmp_path / "model", kind="model folder") as aside:
        save_model(built, aside)
    verb("import", made.llama(tmp_path / "model", tmp_path / "source"), "--out", tmp_path / "out")
    assert same_weights(tmp_path / "model", tmp_path / "out")
    assert load_model(tmp_path / "out", "cpu").prompt.image_id == 32011
