"""Honest folders are taken: configurations as published parts have them, whichever keys their
transformers wrote.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from phisense.errors import PartError
from phisense.opening import configs
from phisense.opening.configs import validate_config
from phisense.opening.headers import read_headers
from phisense.opening.shape_checks import build_meta_model
from phisense.parts import load_auto, load_weights
from phisense.vision.encoders.encode import Encoder

from ..importing.made import edit_json, make_whole
from ..tiny import PRACTICE, make_vision
from .dumps import BASE, PUBLISHED, small

CLASSES = {
    "clip": transformers.CLIPVisionModel,
    "clip_vision_model": transformers.CLIPVisionModel,
    "siglip": transformers.SiglipVisionModel,
    "dinov2": transformers.Dinov2Model,
    "whisper": transformers.WhisperForConditionalGeneration,
    "phi3": transformers.Phi3ForCausalLM,
    "llava": transformers.LlavaForConditionalGeneration,
}
CONFIGS = {
    name: getattr(transformers, name)
    for name in (
        "CLIPConfig",
        "SiglipConfig",
        "Dinov2Config",
        "WhisperConfig",
        "Phi3Config",
        "LlavaConfig",
        "CLIPVisionConfig",
    )
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_taken(name: str, tmp_path: Path) -> None:
    """At its own sizes: judged, built, and a model made of it on the meta device."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    config = load_auto("AutoConfig", tmp_path)
    model_class = CLASSES[config.model_type]
    if not isinstance(config, model_class.config_class):
        config = config.vision_config
    assert (
        sum(
            weight.numel()
            for weight in build_meta_model(model_class, config, tmp_path).parameters()
        )
        > 1e8
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_part_with_a_published_configuration_is_loaded(name: str, tmp_path: Path) -> None:
    """At small sizes, with weights, as a recipe opens a part; it computes."""
    dump = small(PUBLISHED[name])
    config = transformers.CONFIG_MAPPING[dump["model_type"]].from_dict(
        json.loads(json.dumps(dump)) | {"torch_dtype": "float32"}
    )
    whole = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}.get(
        dump["model_type"], CLASSES[dump["model_type"]]
    )
    whole(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dump))
    model = load_weights(CLASSES[dump["model_type"]], tmp_path, dtype=torch.float32)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_classes_themselves_write_is_taken(name: str) -> None:
    """Every key of the installed classes, full and by difference, with the base class's of before
    in each half.
    """
    made = CONFIGS[name]()
    for told in (made.to_dict(), made.to_diff_dict(), BASE | made.to_dict()):
        told = json.loads(json.dumps(told, default=str)) | {"model_type": made.model_type}
        for half in ("text_config", "vision_config"):
            told |= {half: BASE | told[half]} if isinstance(told.get(half), dict) else {}
        validate_config(Path("config.json"), told)


@pytest.mark.parametrize("key", [key for key, value in BASE.items() if type(value) in (int, float)])
def test_how_an_answer_is_searched_does_not_matter(key: str) -> None:
    """0 means "not at all" in most of them."""
    for value in (0, -1, 0.0, 10**6):
        judged = validate_config(Path("config.json"), PUBLISHED["clip tower"] | {key: value})
        assert key not in judged or key in ("chunk_size_feed_forward",)


def test_the_control_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every key that ends in `_size` must be at least 1, the flagship recipe's tower is
    refused.
    """
    monkeypatch.setattr(configs, "_DROPPED_KEYS", ())
    monkeypatch.setattr(configs, "_SIZE_KEYS", [*configs._SIZE_KEYS, "no_repeat_ngram_size"])
    with pytest.raises(PartError, match="no_repeat_ngram_size 0"):
        validate_config(Path("config.json"), PUBLISHED["clip tower"])


@pytest.mark.parametrize(
    "key", ["hidden_size", "patch_size", "num_attention_heads", "image_size", "intermediate_size"]
)
@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_a_size_that_no_model_has_is_refused(key: str, value: int) -> None:
    with pytest.raises(PartError, match=f"{key} {value}"):
        validate_config(Path("config.json"), PUBLISHED["clip tower"] | {key: value})


@pytest.mark.parametrize("told", ["torch.bfloat16", "bfloat16", None, "auto"])
def test_number_formats_by_either_name(told: Any) -> None:
    judged = validate_config(Path("config.json"), PUBLISHED["phi"] | {"torch_dtype": told})
    assert judged["torch_dtype"] == (told.removeprefix("torch.") if told else None)


def test_lists_of_words_that_nobody_opens_do_not_matter(tmp_path: Path) -> None:
    """SigLIP's tokenizer.json has 300,000 characters of a table; vocab.json is a list in some. A
    tokenizer is judged where it is opened.
    """
    tower = make_vision(tmp_path / "tower", encoder="siglip")
    table = {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 300_000},
        "model": {"type": "Unigram", "vocab": []},
    }
    (tower / "tokenizer.json").write_text(json.dumps(table))
    (tower / "vocab.json").write_text(json.dumps([["\u2581", -2.0]] * 1000))
    Encoder(str(tower), "siglip")
    with pytest.raises(PartError, match="precompiled_charsmap of 300,000 characters"):
        load_auto("AutoTokenizer", tower)
    (tower / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(PartError, match="cannot be read"):
        Encoder(str(tower), "siglip")


def test_a_place_on_its_authors_machine_is_left_out(tmp_path: Path) -> None:
    for path in (PRACTICE / "language").glob("*.json"):
        shutil.copy(path, tmp_path)
    edit_json(
        tmp_path / "tokenizer_config.json", tokenizer_file="/home/somebody/.cache/tokenizer.json"
    )
    assert load_auto(transformers.AutoTokenizer, tmp_path).get_vocab()
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_file=str(tmp_path / "tokenizer.json"))
    with pytest.raises(PartError, match="wanted tokenizer.json of the folder itself"):
        load_auto(transformers.AutoTokenizer, tmp_path)


def test_a_folder_of_xtuners_is_imported(tmp_path: Path, verb: Any) -> None:
    """Its files name LLaVA-NeXT's processor."""
    whole = make_whole(tmp_path / "whole")
    for name in ("manifest.json", "chat_template.jinja"):
        (whole / name).unlink(missing_ok=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        edit_json(whole / name, processor_class="LlavaNextProcessor")
    verb("import", whole, "--out", tmp_path / "out")


def test_a_folder_of_any_size_is_described(tmp_path: Path) -> None:
    """Weights are mapped, and taken in half precision or in 4 bits: what is stored says nothing
    about what fits.
    """
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2**18, 2**20], "data_offsets": [0, 2**40]}}
    ).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**40)
    assert read_headers(tmp_path)["a"].shape == (2**18, 2**20)
