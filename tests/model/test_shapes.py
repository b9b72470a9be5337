"""A weight of another shape is named, with both shapes and whose each is, wherever weights are
loaded: never in a library's words.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from phisense import artifacts
from phisense.errors import ArtifactError, MergeError, PartError, PhisenseError
from phisense.model import Phi3WithProjector, load_model
from phisense.model.projectors.weights import load_projector
from phisense.model.trainable import freeze_all_but_projector, load_trainable
from phisense.model.unmerged import load_with_adapter
from phisense.recipe import load_recipe
from phisense.vision.encoders.encode import Encoder

from ..importing import made
from ..tiny import make_language, make_root, make_vision

pytestmark = pytest.mark.slow

#: What PyTorch, PEFT and transformers say of a size that does not match.
LIBRARIES = re.compile(
    r"Error\(s\) in loading|size mismatch|The size of"
    r" tensor|state_dict|RuntimeError|ignore_mismatched_sizes"
)


def wider(side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: torch.cat([weight, weight], min(side, weight.dim() - 1)).contiguous()


def narrower(side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def cut(weight: torch.Tensor) -> torch.Tensor:
        at = min(side, weight.dim() - 1)
        return weight.narrow(at, 0, weight.shape[at] - 1).contiguous()

    return cut


WAYS = [
    pytest.param(how(side), id=f"{how.__name__}-{side}")
    for how in (wider, narrower)
    for side in (0, 1)
]


def change(
    path: Path, like: str, how: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Changes the first weight whose name matches; returns the name, the shape that the file has
    now, and the one it had.
    """
    weights = load_file(path)
    name = next(name for name in sorted(weights) if re.search(like, name))
    before = tuple(weights[name].shape)
    weights[name] = how(weights[name])
    save_file(weights, path, metadata={"format": "pt"})
    return name, tuple(weights[name].shape), before


def said_of(
    error: PhisenseError, name: str, now: tuple[int, ...], before: tuple[int, ...], file: str
) -> None:
    said = str(error)
    assert f"{name} of shape {now} in {file}" in said, said
    assert f"wanted shape {before}, as " in said, said
    assert not LIBRARIES.search(said)
    assert said.count(". ") >= 1, "what to do"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    make_language(folder / "language")
    for encoder in ("clip", "siglip", "dinov2"):
        make_vision(folder / encoder, encoder=encoder)
    made.make_whole(folder / "whole")
    return folder


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "like",
    [
        "embed_tokens",
        r"layers\.1\.self_attn\.qkv_proj",
        "down_proj",
        r"model\.norm\.weight",
        "lm_head",
    ],
)
def test_the_language_part(base: Path, tmp_path: Path, like: str, how: Any) -> None:
    shutil.copytree(base / "language", tmp_path / "language")
    changed = change(tmp_path / "language" / "model.safetensors", like, how)
    with pytest.raises(PartError, match="config.json of .* does not fit its weights") as caught:
        Phi3WithProjector.assemble(str(tmp_path / "language"), str(base / "clip"), device="cpu")
    said_of(caught.value, *changed, "model.safetensors")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize(
    "like",
    [
        "patch_embedding|patch_embeddings",
        "position_embedding",
        r"layers?\.1\..*fc1\.weight",
        "norm.*weight",
    ],
)
def test_the_vision_part(base: Path, tmp_path: Path, encoder: str, like: str, how: Any) -> None:
    shutil.copytree(base / encoder, tmp_path / encoder)
    name, now, before = change(tmp_path / encoder / "model.safetensors", like, how)
    with pytest.raises(PartError) as caught:
        Encoder(str(tmp_path / encoder), encoder)
    said = str(caught.value)
    assert str(now) in said, said
    assert str(before) in said, said
    assert name.split(".")[-2] in said, said
    assert not LIBRARIES.search(said)


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "vocab_size", "num_key_value_heads"]
)
def test_another_configuration(base: Path, tmp_path: Path, key: str) -> None:
    """The weights are right, and config.json is not: the sentence says which of the two says
    what.
    """
    shutil.copytree(base / "language", tmp_path / "language")
    config = json.loads((tmp_path / "language" / "config.json").read_text())
    made.edit_json(
        tmp_path / "language" / "config.json",
        **{key: config[key] // 2 if key == "num_key_value_heads" else config[key] * 2},
    )
    with pytest.raises(
        PartError,
        match=r"of shape \(.*\) in model.safetensors.*; wanted shape \(.*\), as config.json says",
    ) as caught:
        Phi3WithProjector.assemble(str(tmp_path / "language"), str(base / "clip"), device="cpu")
    assert not LIBRARIES.search(str(caught.value))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "like",
    [
        "language_model.*o_proj",
        r"vision_tower.*fc2\.weight",
        r"multi_modal_projector\.linear_1\.weight",
    ],
)
def test_a_model_folder(base: Path, tmp_path: Path, like: str, how: Any) -> None:
    shutil.copytree(base / "whole" / "model", tmp_path / "model")
    changed = change(tmp_path / "model" / "model.safetensors", like, how)
    (tmp_path / "model" / "manifest.json").unlink()  # else the file is called damaged
    with pytest.raises(PartError, match="config.json of .* does not fit its weights") as caught:
        load_model(tmp_path / "model", "cpu")
    said_of(caught.value, *changed, "model.safetensors")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("like", [r"linear_1\.weight", r"linear_1\.bias", r"linear_2\.weight"])
def test_a_projector_to_start_from(base: Path, tmp_path: Path, like: str, how: Any) -> None:
    shutil.copytree(base / "whole" / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    built = load_model(base / "whole" / "model", "cpu")
    load_projector(built.projector, tmp_path / "model", built.model.config)
    name, now, before = change(
        tmp_path / "model" / "model.safetensors", f"multi_modal_projector.*{like}", how
    )
    with pytest.raises(PartError, match="the projector of .* does not fit the parts") as caught:
        load_projector(built.projector, tmp_path / "model", built.model.config)
    said_of(
        caught.value, name.partition("multi_modal_projector.")[2], now, before, "model.safetensors"
    )


@pytest.mark.parametrize("lost", [True, False])
def test_a_projector_with_a_weight_too_few_or_too_many(
    base: Path, tmp_path: Path, lost: bool
) -> None:
    shutil.copytree(base / "whole" / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    built = load_model(base / "whole" / "model", "cpu")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "linear_2.bias" in name)
    if lost:
        del weights[name]
    else:
        weights[name.replace("linear_2", "linear_3")] = weights[name].clone()
    save_file(weights, path, metadata={"format": "pt"})
    said = (
        r"got no linear_2.bias; wanted one of shape \(32,\)"
        if lost
        else r"got linear_3.bias of shape \(32,\) in .*; wanted no such weight"
    )
    with pytest.raises(PartError, match=said):
        load_projector(built.projector, tmp_path / "model", built.model.config)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "like", ["o_proj.lora_A", "o_proj.lora_B", r"linear_1\.weight", r"linear_2\.bias"]
)
def test_an_adapter_of_others(base: Path, tmp_path: Path, verb: Any, like: str, how: Any) -> None:
    source = made.plain(base / "whole" / "model", tmp_path / "source", new=True)
    made.adapter(base / "whole" / "model", tmp_path / "adapter", ["o_proj"])
    made.edit_json(
        tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(source)
    )
    change(tmp_path / "adapter" / "adapter_model.safetensors", like, how)
    with pytest.raises(
        PartError, match=r"does not fit .*got .*(\(\d+, \d+\)|\(\d+,\)|rank).*; wanted .*\d"
    ) as caught:
        verb("import", tmp_path / "adapter", "--out", tmp_path / "out")
    assert not LIBRARIES.search(str(caught.value))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from phisense.cli import run_verb

    root = tmp_path_factory.mktemp("run")
    make_root(root)
    run_verb("features", root / "tiny.yaml")
    run_verb("train", root / "tiny.yaml")
    return root


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("like", ["lora_A", "lora_B", r"linear_1\.weight"])
def test_the_adapter_of_a_run(trained: Path, tmp_path: Path, like: str, how: Any) -> None:
    recipe = load_recipe(trained / "tiny.yaml")
    shutil.copytree(trained / "runs" / "tiny", tmp_path / "tiny")
    name, now, before = change(
        tmp_path / "tiny" / "adapter" / "adapter_model.safetensors", like, how
    )
    with pytest.raises(MergeError, match="the adapter does not fit the base") as caught:
        load_with_adapter(recipe, tmp_path / "tiny", "cpu")
    said_of(caught.value, name, now, before, str(tmp_path / "tiny" / "adapter"))


@pytest.mark.parametrize("how", WAYS)
def test_the_weights_of_a_stage(trained: Path, tmp_path: Path, how: Any) -> None:
    built = Phi3WithProjector.from_recipe(
        load_recipe(trained / "tiny.yaml"), stored_features=True, device="cpu", dtype=torch.float32
    )
    freeze_all_but_projector(built)
    shutil.copytree(trained / "runs" / "tiny" / "stages" / "align", tmp_path / "align")
    load_trainable(built.model, tmp_path / "align")
    changed = change(tmp_path / "align" / "trainable.safetensors", r"linear_2\.weight", how)
    before = {name: weight.clone() for name, weight in built.projector.state_dict().items()}
    with pytest.raises(ArtifactError, match="belongs to another run") as caught:
        load_trainable(built.model, tmp_path / "align")
    said_of(caught.value, *changed, "trainable.safetensors")
    assert all(
        torch.equal(weight, before[name]) for name, weight in built.projector.state_dict().items()
    ), "nothing was taken over"


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_the_weights_of_a_stage_that_cannot_be_read(
    trained: Path, tmp_path: Path, damage: str
) -> None:
    built = Phi3WithProjector.from_recipe(
        load_recipe(trained / "tiny.yaml"), stored_features=True, device="cpu", dtype=torch.float32
    )
    freeze_all_but_projector(built)
    shutil.copytree(trained / "runs" / "tiny" / "stages" / "align", tmp_path / "align")
    path = tmp_path / "align" / "trainable.safetensors"
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="trainable.safetensors cannot be read"):
        load_trainable(built.model, tmp_path / "align")


def test_a_change_that_a_manifest_names_is_damage(base: Path, tmp_path: Path) -> None:
    """The control of the tests without one: where there is a manifest it is asked first."""
    shutil.copytree(base / "whole" / "model", tmp_path / "model")
    change(tmp_path / "model" / "model.safetensors", "o_proj", wider(0))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_model(tmp_path / "model", "cpu")
    assert artifacts.MANIFEST in {path.name for path in (tmp_path / "model").iterdir()}
