"""Adapters onto the folder they were trained on: each weight in its place, or a refusal. PEFT
warns, and a prototype merged nothing so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from phisense.errors import PartError
from phisense.importing import adapters
from phisense.model import load_model

from . import made

pytestmark = pytest.mark.slow

FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
CUT = ["q_proj", "v_proj", "up_proj"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.plain(
        made.make_whole(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("plain") / "base"
    )


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.llama(
        made.make_whole(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("llama") / "base"
    )


@pytest.fixture(scope="module")
def trained(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.adapter(whole, tmp_path_factory.mktemp("adapter") / "trained", FUSED)


def weights_of(folder: Path) -> made.Weights:
    return load_file(folder / "adapter_model.safetensors")


def changed(trained: Path, out: Path, change: Callable[[made.Weights], made.Weights]) -> Path:
    shutil.copytree(trained, out)
    save_file(change(weights_of(out)), out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


def by_peft(base: Path, adapter: Path, matrix: str) -> torch.Tensor:
    """What PEFT itself merges into a matrix of layer 1."""
    adapted: Any = PeftModel.from_pretrained(
        LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32), str(adapter)
    )
    found: torch.Tensor = (
        adapted.merge_and_unload().model.language_model.layers[1].get_submodule(matrix).weight
    )
    return found


def layer(folder: Path) -> Any:
    return load_model(folder, "cpu").model.model.language_model.layers[1]


def test_the_adapter_says_what_its_base_is(
    whole: Path, trained: Path, verb: Any, tmp_path: Path
) -> None:
    """The base is where adapter_config.json says; what is written is what PEFT merges, and the base
    alone is not.
    """
    report = verb("import", trained, "--out", tmp_path / "out")
    assert report["adapter"] is True
    assert report["largest_difference"] <= 1e-3
    merged = by_peft(whole, trained, "mlp.down_proj")
    torch.testing.assert_close(
        layer(tmp_path / "out").mlp.down_proj.weight, merged, rtol=0, atol=1e-6
    )
    verb("import", whole, "--out", tmp_path / "base")
    assert (layer(tmp_path / "base").mlp.down_proj.weight - merged).abs().max() > 0.01
    taught = weights_of(trained)["base_model.model.model.multi_modal_projector.linear_2.weight"]
    assert torch.equal(
        load_model(tmp_path / "out", "cpu").model.model.multi_modal_projector.linear_2.weight,
        taught,
    )


def test_one_that_was_trained_on_a_llama(cut: Path, verb: Any, tmp_path: Path) -> None:
    """Its matrices are merged where they were trained, then joined to Phi-3's."""
    trained = made.adapter(
        cut, tmp_path / "adapter", r".*language_model.*\.(q_proj|v_proj|up_proj)"
    )
    report = verb("import", trained, "--base", cut, "--out", tmp_path / "out")
    assert report["largest_difference"] <= 1e-3
    qkv = layer(tmp_path / "out").self_attn.qkv_proj.weight
    for number, matrix in enumerate(("q_proj", "k_proj", "v_proj")):
        torch.testing.assert_close(
            qkv.chunk(3)[number], by_peft(cut, trained, f"self_attn.{matrix}"), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"down_proj": 32, r"layers.0.self_attn.o_proj": 3},
        },
    ],
)
def test_scales_are_the_adapters(
    whole: Path, verb: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    trained = made.adapter(whole, tmp_path / "adapter", FUSED, **options)
    verb("import", trained, "--out", tmp_path / "out")
    torch.testing.assert_close(
        layer(tmp_path / "out").mlp.down_proj.weight,
        by_peft(whole, trained, "mlp.down_proj"),
        rtol=0,
        atol=1e-6,
    )


def test_names_from_before_and_from_the_text_part_alone(
    whole: Path, verb: Any, tmp_path: Path
) -> None:
    trained = made.adapter(whole, tmp_path / "adapter", FUSED, projector=False)
    verb("import", trained, "--out", tmp_path / "now")
    now = layer(tmp_path / "now").self_attn.qkv_proj.weight
    for number, prefix in enumerate(("language_model.model.", "model.")):
        older = changed(
            trained,
            tmp_path / f"older-{number}",
            lambda weights, prefix=prefix: {
                name.replace("model.language_model.", prefix): weight
                for name, weight in weights.items()
            },
        )
        assert (
            verb("import", older, "--out", tmp_path / "out", "--overwrite")["reference"]
            == "phisense"
        )
        assert torch.equal(layer(tmp_path / "out").self_attn.qkv_proj.weight, now)


@pytest.mark.parametrize("file", ["mm_projector", "non_lora_trainables"])
def test_a_projector_in_a_file_of_its_own(
    whole: Path, verb: Any, tmp_path: Path, file: str
) -> None:
    """LLaVA's names; the same file pickled is refused, since without it the projector would be the
    base's.
    """
    trained = made.adapter(whole, tmp_path / "adapter", FUSED, projector=False)
    own = LlavaForConditionalGeneration.from_pretrained(
        whole
    ).model.multi_modal_projector.state_dict()
    names = {"linear_1": "model.mm_projector.0", "linear_2": "model.mm_projector.2"}
    taught = {
        f"{names[name.split('.')[0]]}.{name.split('.')[1]}": weight + 1
        for name, weight in own.items()
    }
    save_file(taught, trained / f"{file}.safetensors")
    verb("import", trained, "--out", tmp_path / "out")
    found = load_model(tmp_path / "out", "cpu").model.model.multi_modal_projector.linear_1.bias
    assert torch.equal(found, own["linear_1.bias"] + 1)
    save_file(
        {name: weight for name, weight in taught.items() if ".2." not in name},
        trained / f"{file}.safetensors",
    )
    with pytest.raises(
        PartError, match="is incomplete; got no model.multi_modal_projector.linear_2.bias"
    ):
        verb("import", trained, "--out", tmp_path / "out", "--overwrite")
    (trained / f"{file}.safetensors").rename(trained / f"{file}.bin")
    with pytest.raises(
        PartError,
        match=(
            rf"weights in a pickled file; got {file}.bin; wanted {file}.safetensors; nothing is"
            r" ever unpickled"
        ),
    ):
        verb("import", trained, "--out", tmp_path / "out", "--overwrite")


def test_half_precision_is_held_to_what_an_export_is(verb: Any, tmp_path: Path) -> None:
    whole = made.plain(made.make_whole(tmp_path / "made", dtype=torch.bfloat16), tmp_path / "base")
    report = verb(
        "import", made.adapter(whole, tmp_path / "adapter", FUSED), "--out", tmp_path / "out"
    )
    assert (report["dtype"], set(report["gate"])) == ("bfloat16", {"kl", "top1"})
    assert 0 < report["kl"] <= 1e-3


# What must be refused.


def test_the_prototypes_failure(trained: Path, verb: Any, tmp_path: Path) -> None:
    """Keys of a wrapper that is no longer there: PEFT warned, and untrained weights were merged."""
    wrapped = changed(
        trained,
        tmp_path / "x",
        lambda weights: {k.replace("language_model", "phi3"): w for k, w in weights.items()},
    )
    with pytest.raises(
        PartError,
        match=(
            "does not fit the base; got LoRA on 8 modules that the base lacks, such as"
            " model.phi3.layers.0"
        ),
    ):
        verb("import", wrapped, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_reached_nothing(trained: Path, verb: Any, tmp_path: Path) -> None:
    """q_proj, k_proj, v_proj on a Phi-3, which has none of them."""
    shutil.copytree(trained, tmp_path / "x")
    made.edit_json(tmp_path / "x" / "adapter_config.json", target_modules=[*FUSED, "q_proj"])
    with pytest.raises(
        PartError, match="was not put where it says; got no weights for the target q_proj"
    ):
        verb("import", tmp_path / "x", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (
            "layers.1.mlp.down_proj.lora_",
            "7 modules with weights, 1 off, such as model.language_model.layers.1.mlp.down_proj",
        ),
        (
            "layers.1.mlp.down_proj.lora_A",
            (
                "got one of lora_A and lora_B of model.language_model.layers.1.mlp.down_proj;"
                " wanted both"
            ),
        ),
        ("linear_1.bias", "is incomplete; got no model.multi_modal_projector.linear_1.bias"),
        ("multi_modal_projector", "is incomplete; got no model.multi_modal_projector"),
    ],
)
def test_lost_weights(trained: Path, verb: Any, tmp_path: Path, lost: str, said: str) -> None:
    some = changed(
        trained,
        tmp_path / "x",
        lambda weights: {name: weight for name, weight in weights.items() if lost not in name},
    )
    with pytest.raises(PartError, match=said):
        verb("import", some, "--out", tmp_path / "out")


def test_another_base(trained: Path, cut: Path, verb: Any, tmp_path: Path) -> None:
    with pytest.raises(
        PartError,
        match=(
            "LoRA on 4 modules that the base lacks, such as .*gate_up_proj.* Name the folder .*"
            " with --base"
        ),
    ):
        verb("import", trained, "--base", cut, "--out", tmp_path / "out")


def test_a_base_of_another_shape(trained: Path, whole: Path, verb: Any, tmp_path: Path) -> None:
    def wider(weights: made.Weights) -> made.Weights:
        return {
            name: torch.cat([weight, weight], 1) if "down_proj.lora_A" in name else weight
            for name, weight in weights.items()
        }

    said = (
        r"got .*down_proj.lora_A.weight of shape \(\d+, 128\) in adapter_model.safetensors \(1 more"
        r" differ\); wanted shape \(\d+, 64\)"
    )
    with pytest.raises(PartError, match=f"does not fit the base; {said}, as the base"):
        verb("import", changed(trained, tmp_path / "x", wider), "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [5, 6]),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("target_parameters", ["experts.down_proj"]),
        ("kasa_config", {"beta": 0.1}),
        ("from_a_later_peft", "yes"),
    ],
)
def test_what_is_more_than_lora(
    trained: Path, verb: Any, tmp_path: Path, option: str, value: Any
) -> None:
    """Also what this PEFT does not know, and would leave out with a warning."""
    shutil.copytree(trained, tmp_path / "x")
    made.edit_json(tmp_path / "x" / "adapter_config.json", **{option: value})
    with pytest.raises(
        PartError, match=rf"is more than LoRA; got {option} .*; wanted plain LoRA matrices"
    ):
        verb("import", tmp_path / "x", "--out", tmp_path / "out")


def test_a_principal_part_is_not_counted_twice(whole: Path, verb: Any, tmp_path: Path) -> None:
    """PiSSA takes it out of the base before training; what PEFT merges is far from A and B on the
    base as it is.
    """
    pissa = made.adapter(
        whole, tmp_path / "pissa", FUSED, projector=False, init_lora_weights="pissa"
    )
    with pytest.raises(
        PartError,
        match=(
            "belongs to a changed base; got init_lora_weights pissa, .*"
            " path_initial_model_for_weight_conversion"
        ),
    ):
        verb("import", pissa, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    own = by_peft(whole, pissa, "mlp.down_proj")
    made.edit_json(pissa / "adapter_config.json", init_lora_weights=True)
    twice = by_peft(whole, pissa, "mlp.down_proj")
    assert (twice - own).norm() > 0.1 * own.norm(), "refused for a reason"


@pytest.mark.parametrize(
    "start", ["pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "mica", "unheard of"]
)
def test_other_changed_bases(trained: Path, verb: Any, tmp_path: Path, start: str) -> None:
    shutil.copytree(trained, tmp_path / "x")
    made.edit_json(tmp_path / "x" / "adapter_config.json", init_lora_weights=start)
    with pytest.raises(
        PartError, match=f"belongs to a changed base; got init_lora_weights {start}"
    ):
        verb("import", tmp_path / "x", "--out", tmp_path / "out")


@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal", "eva"])
def test_starts_that_leave_the_base_alone(
    whole: Path, trained: Path, verb: Any, tmp_path: Path, start: Any
) -> None:
    shutil.copytree(trained, tmp_path / "x")
    made.edit_json(tmp_path / "x" / "adapter_config.json", init_lora_weights=start)
    assert verb("import", tmp_path / "x", "--out", tmp_path / "out")["reference"] == "peft"
    merged = by_peft(whole, tmp_path / "x", "mlp.down_proj")
    torch.testing.assert_close(
        layer(tmp_path / "out").mlp.down_proj.weight, merged, rtol=0, atol=1e-6
    )


def test_a_fault_of_placing_shows(
    whole: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is PEFT's own loading, so scales that we lose on the way are seen."""
    scaled = made.adapter(whole, tmp_path / "adapter", FUSED, alpha_pattern={"down_proj": 64})
    assert verb("import", scaled, "--out", tmp_path / "out")["reference"] == "peft"
    monkeypatch.setattr(adapters, "_exact", lambda values: {})
    with pytest.raises(PartError, match="does not say what its source says, so it was not written"):
        verb("import", scaled, "--out", tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize("targets", ["all-linear", r".*language_model.*(qkv|down)_proj"])
def test_what_peft_is_asked(whole: Path, verb: Any, tmp_path: Path, targets: str) -> None:
    trained = made.adapter(whole, tmp_path / "adapter", targets, projector=False)
    assert verb("import", trained, "--out", tmp_path / "out")["reference"] == "peft"


def test_no_base(trained: Path, verb: Any, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "x")
    made.edit_json(tmp_path / "x" / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(
        PartError, match="does not say what it was trained on. Name the folder with --base"
    ):
        verb("import", tmp_path / "x", "--out", tmp_path / "out")
    (tmp_path / "x" / "adapter_model.safetensors").rename(tmp_path / "x" / "adapter_model.bin")
    with pytest.raises(
        PartError,
        match="got adapter_model.bin; wanted adapter_model.safetensors; nothing is ever unpickled",
    ):
        verb("import", tmp_path / "x", "--out", tmp_path / "out")
    assert json.loads((trained / "adapter_config.json").read_text())["peft_type"] == "LORA"
