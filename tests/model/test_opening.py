"""Every model folder goes through the opener: what hostile ones do, what good ones may be, and that
no source goes around it.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from phisense.errors import ArtifactError, PartError
from phisense.model.folder import load_model
from phisense.opening import sandbox, validate_folder
from phisense.opening.files import load_manifest
from phisense.opening.sandbox import TemplateError, check_patterns, render_chat_template
from phisense.parts import resolve_part

from .. import hostile_folders as made
from ..importing.made import edit, edit_json, make_whole

SOURCES = Path(__file__).parents[2] / "src" / "phisense"
BENCH = Path(__file__).parents[2] / "bench" / "hostile_folders.py"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """The same without a manifest, to be spoilt."""
    shutil.copytree(good, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder"])
def test_hostile_folders_are_refused_or_right(good: Path, kind: str) -> None:
    """The bench's first 44: each way of spoiling four times. The whole of it is 200;
    docs/benchmarks.md has its figures.
    """
    done = subprocess.run(
        [sys.executable, str(BENCH), str(good), "--count", "44"],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    told = json.loads(done.stdout.decode().splitlines()[-1])
    spoilt = {
        key: told[key]
        for key in told
        if key not in ("kind", "opener", "peak_gb", "usual_gb", "slowest")
    }
    assert set(spoilt) <= {"refused", "right", "another model"}, done.stdout.decode()
    assert spoilt["refused"] >= 25
    assert told["peak_gb"] < 2


# Controls: what transformers does with such folders unasked.


@pytest.mark.slow
def test_a_stray_adapter_is_refused_which_transformers_puts_on(folder: Path) -> None:
    before = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    adapted = get_peft_model(
        before, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(folder)
    unasked = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert any("lora" in name for name, _ in unasked.named_parameters())
    with pytest.raises(
        PartError,
        match=(
            "holds an adapter beside its weights; got adapter_config.json.*phisense import ADAPTER"
            " --base FOLDER"
        ),
    ):
        load_model(folder, "cpu")


@pytest.mark.slow
def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    load_model(folder, "cpu")  # beside safetensors it is nothing
    (folder / "model.safetensors").unlink()
    AutoModelForImageTextToText.from_pretrained(folder)  # transformers takes it
    with pytest.raises(PartError, match="weights missing"):
        load_model(folder, "cpu")
    with pytest.raises(
        PartError, match="has no safetensors; .*wanted .* pickled weights are never loaded"
    ):
        resolve_part(str(folder))


def test_an_index_stays_inside_which_transformers_follows(folder: Path, tmp_path: Path) -> None:
    made._index_outside(None, folder)  # type: ignore[arg-type]
    AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(
        PartError,
        match=(
            r"no file of the folder; got \.\./outside.safetensors; wanted names of safetensors"
            r" beside it"
        ),
    ):
        load_model(folder, "cpu")


# The manifest.


@pytest.mark.slow
def test_one_flipped_bit_is_damage(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    load_model(tmp_path / "model", "cpu")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        path = tmp_path / "model" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with pytest.raises(
            ArtifactError, match=f"{name} is damaged; got other content than its manifest names"
        ):
            load_model(tmp_path / "model", "cpu")
        path.write_bytes(whole)
    load_model(tmp_path / "model", "cpu")


def test_what_the_manifest_does_not_name(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    for name in ("README.md", "notes.txt", "modeling_llava.py", "training_args.bin"):
        (tmp_path / "model" / name).write_text("x")
    load_model(tmp_path / "model", "cpu")
    (tmp_path / "model" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(
        ArtifactError,
        match="holds files that its manifest does not name; got preprocessor_config.json",
    ):
        load_model(tmp_path / "model", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "", "."])
def test_a_manifest_names_files_of_its_folder(good: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(good, tmp_path / "model")
    told = json.loads((good / "manifest.json").read_bytes())
    told["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match="names something that is no file of the folder"):
        load_model(tmp_path / "model", "cpu")


@pytest.mark.parametrize(
    "told",
    [
        [],
        3,
        {},
        {"kind": 3},
        {"kind": "model folder", "about": [], "files": {}},
        {"kind": "x", "about": {}, "files": []},
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, told: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    with pytest.raises((ArtifactError, PartError), match="is no manifest|wanted an object"):
        load_manifest(tmp_path)


def test_files_are_read_once_and_again_when_touched(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good, tmp_path / "model")
    first = validate_folder(tmp_path / "model")
    assert validate_folder(tmp_path / "model") is first
    os.utime(tmp_path / "model" / "config.json")
    assert validate_folder(tmp_path / "model") is not first


# Links: a snapshot in the hub's cache is nothing else.


@pytest.mark.slow
def test_a_snapshot_of_the_hub_opens(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--o--n" / "blobs"
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{i:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{i:064x}")
    load_model(snapshot, "cpu")
    (tmp_path / "link").symlink_to(snapshot)
    load_model(tmp_path / "link", "cpu")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(PartError, match="is a link out of its folder"):
        load_model(snapshot, "cpu")


# Configurations.


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("text_config.num_hidden_layers", 10**6, "num_hidden_layers 1000000; wanted 0 to 512"),
        ("text_config.hidden_size", 10**9, "hidden_size 1000000000"),
        ("text_config.hidden_size", 4096, "does not fit its weights"),
        ("text_config.num_hidden_layers", 3, "is incomplete; got 6 weights missing"),
        ("text_config.num_hidden_layers", 1, "has no place for; got 6"),
        ("num_labels", 10**9, "num_labels"),
        (
            "quantization_config",
            {"quant_method": "gptq"},
            "are quantised; got a quantization_config",
        ),
        ("transformers_weights", "other.safetensors", "wanted the model in the folder itself"),
        ("vision_feature_layer", 99, "vision_feature_layer 99"),
        ("text_config.model_type", "bark", "text_config of type bark; wanted phi3 or llama"),
        ("image_token_index", 5, "do not agree on <image>"),
    ],
)
def test_a_configuration_is_held_against_its_weights(
    folder: Path, key: str, value: Any, said: str
) -> None:
    told = json.loads((folder / "config.json").read_bytes())
    made._put(told, tuple(key.split(".")), value)
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(PartError, match=said):
        load_model(folder, "cpu")


def test_attention_is_not_the_folders_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package `kernels` such a name is fetched from the hub and run."""
    told = json.loads((folder / "config.json").read_bytes())
    for config in (told, told["text_config"], told["vision_config"]):
        config |= {
            "_attn_implementation": "kernels-community/flash-attn",
            "attn_implementation": "someone/kernel:fetch",
            "auto_map": {"A": "b.C"},
        }
    (folder / "config.json").write_text(json.dumps(told))
    monkeypatch.setattr(
        "transformers.modeling_utils.is_kernel",
        lambda name: pytest.fail(f"{name} is a kernel") if "/" in str(name) else False,
    )
    built = load_model(folder, "cpu")
    assert {
        built.model.config._attn_implementation,
        built.model.config.text_config._attn_implementation,
    } == {"sdpa"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_weights_are_numbers(folder: Path, number: float) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        next(weight for name, weight in weights.items() if name.endswith("down_proj.weight"))[
            0, 0
        ] = number
        return weights

    edit(folder, spoil)
    with pytest.raises(PartError, match="no numbers of a model"):
        load_model(folder, "cpu")


# What is tried in a process of its own.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            (
                "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999)"
                " %}{% endfor %}{% endfor %}{% endfor %}"
            ),
            "no end in",
        ),
        (
            (
                "{% set ns = namespace(x='x' * 99999) %}{% for i in range(99999) %}{% set ns.x ="
                " ns.x ~ ns.x %}{% endfor %}"
            ),
            "memory|no end",
        ),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ 'x' * 999999 }}", "999,999 characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe|undefined"),
        ("{% for %}", "Expected an expression"),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
def test_a_template_of_others_has_limits(
    template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS", 2)
    with pytest.raises(TemplateError, match=said):
        render_chat_template(template, [{"role": "user", "content": "What?"}], {})


@pytest.mark.slow
def test_a_good_template_is_rendered() -> None:
    text = render_chat_template(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        [{"role": "user", "content": "é?"}],
        {"bos_token": "<s>"},
    )
    assert text == "<s>é?"


@pytest.mark.slow
def test_an_import_survives_a_template_without_an_end(
    folder: Path, verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS", 2)
    (folder / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    edit_json(folder / "tokenizer_config.json", chat_template=None)
    assert "no end in" in verb("import", folder, "--out", tmp_path / "out")["prompt"]["refused"]


@pytest.mark.slow
def test_patterns_are_tried_on_the_names_they_will_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TEMPLATE_SECONDS", 2)
    assert (
        check_patterns(
            [r".*language_model.*\.(qkv_proj|o_proj)"], ["model.language_model.layers.0.o_proj"]
        )
        is None
    )
    assert "no end in" in str(
        check_patterns([r"((\w|\.)+)+!"], ["model.language_model.layers.0.self_attn.o_proj"])
    )
    assert "is none" in str(check_patterns(["(("], ["a"]))


# Nothing goes around it.

#: Where files are opened that are no model folder's, or that are judged right before.
ALLOWED = {
    "parts.py": {"from_pretrained", "safe_open"},
    "model/adapter_beside.py": {"safe_open"},
    "model/projectors/weights.py": {"safe_open"},
    "publish/weights.py": {"safe_open"},
    "importing/adapters.py": {"from_pretrained", "load_file"},
    "model/unmerged.py": {"from_pretrained"},
    "model/sharded_language.py": {"safe_open"},  # after `check_stored_weights`
    "model/trainable.py": {"safe_open"},
    # a run's own checkpoints, whose digests were verified; tensors and numbers only (weights_only)
    "training/optimizer_state.py": {"safe_open", "load"},
    "training/trainer.py": {"load"},
    "training/checkpoints.py": {"load_file"},
    "vision/store/shards.py": {"safe_open"},
    "speech/ctranslate2_model.py": set(),
}


def _calls(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            owner = (
                node.func.value.id
                if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
                else ""
            )
            if name in ("from_pretrained", "safe_open", "load_file") or (
                name == "load" and owner == "torch"
            ):
                found.add(name)
    return found


@pytest.mark.slow
def test_nothing_in_the_sources_goes_around_the_opener() -> None:
    around = {
        path.relative_to(SOURCES).as_posix(): odd
        for path in SOURCES.rglob("*.py")
        if "pretrain" not in path.parts
        and (odd := _calls(path) - ALLOWED.get(path.relative_to(SOURCES).as_posix(), set()))
    }
    assert around == {}
