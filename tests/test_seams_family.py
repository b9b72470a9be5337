"""A language family is one file and one line: a toy one renders, assembles, trains and opens."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from phisense import artifacts, families, seams
from phisense.chat_tokenizer import prepare_tokenizer
from phisense.conversations import IMAGE, Message
from phisense.errors import PartError, TrainingError, UsageError
from phisense.model import Phi3WithProjector, load_model, save_model
from phisense.model.lora import add_lora, check_targets, expected_trainable, target_pattern
from phisense.model.trainable import count_trainable, freeze_all_but_projector, unfreeze_language
from phisense.opening.configs import validate_config
from phisense.opening.rope_checks import check_rope
from phisense.opening.tokenizer_checks import validate_tokenizer_config
from phisense.prompt import IGNORE_INDEX, Prompt, chat_template
from phisense.publish.gguf_text import format_of
from phisense.recipe import Lora, load_recipe

from .tiny import make_language, make_vision
from .toys import family_toy

ROWS = 400
TALK = (
    Message("user", f"{IMAGE}\nWhat is it?"),
    Message("assistant", "A cat."),
    Message("user", "Sure?"),
    Message("assistant", "Yes."),
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> families.Family:
    """One line."""
    monkeypatch.setitem(seams.FAMILY_MODULES, "toy", "tests.toys.family_toy")
    return family_toy.FAMILY


def make_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["system user assistant What is it? A cat. Sure? Yes."] * 9, trainer)
    tags = family_toy.FAMILY.chat.special_tokens
    inner.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")


def make_toy_language(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=None,
        eos_token_id=None,
    )
    Olmo2ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def assemble(folder: Path) -> Phi3WithProjector:
    language, vision = make_toy_language(folder / "language"), make_vision(folder / "vision")
    return Phi3WithProjector.assemble(str(language), str(vision), device="cpu", dtype=torch.float32)


def logits(built: Phi3WithProjector) -> torch.Tensor:
    with torch.inference_mode():
        batch = built.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]])
        found: torch.Tensor = built.model(**batch.to_kwargs()).logits
    return found


def test_the_prompt_writes_its_format(toy: families.Family) -> None:
    """Tags of several tokens, and a line break behind each end that nothing is learned from."""
    tokenizer = make_tokenizer()
    prepare_tokenizer(tokenizer, ROWS)
    prompt = Prompt(tokenizer)
    assert prompt.family is toy
    rendered = prompt.render_conversation(TALK, [1])
    plain = [{"role": m.role, "content": m.text} for m in TALK]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    assert text.startswith(f"<|im_start|>user\n{IMAGE}\nWhat is it?<|im_end|>\n<|im_start|>assist")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == rendered.ids
    kept = [label for label in rendered.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(kept) == "A cat.<|im_end|>Yes.<|im_end|>"
    asked = tokenizer.apply_chat_template(plain[:3], tokenize=False, add_generation_prompt=True)
    assert tokenizer(asked, add_special_tokens=False)["input_ids"] == prompt.render_for_completion(
        TALK[:3], [1]
    )
    names = tokenizer.convert_ids_to_tokens(prompt.stop_ids)
    assert names == ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]


@pytest.mark.slow
def test_it_assembles_and_its_folder_opens(toy: families.Family, tmp_path: Path) -> None:
    built = assemble(tmp_path)
    assert type(built.model.model.language_model).__name__ == "Olmo2Model"
    assert built.model.config.text_config.architectures == ["Olmo2ForCausalLM"]
    assert built.window == 512
    with artifacts.staged_artifact(tmp_path / "model", kind="model folder") as aside:
        save_model(built, aside)
    again = load_model(tmp_path / "model", "cpu", torch.float32)
    assert again.prompt.family is toy
    torch.testing.assert_close(logits(again), logits(built))
    assert chat_template(again.model.config) == again.processor.tokenizer.chat_template
    part = Phi3WithProjector.assemble(  # a model folder as a part
        str(tmp_path / "model"), str(tmp_path / "vision"), device="cpu", dtype=torch.float32
    )
    head = built.model.lm_head.weight
    torch.testing.assert_close(part.model.lm_head.weight, head)


@pytest.mark.slow
def test_lora_goes_to_its_matrices(toy: families.Family, tmp_path: Path) -> None:
    built = assemble(tmp_path)
    recipe = load_recipe("practice")
    lora = Lora(rank=2)
    assert target_pattern(built.model, lora) == toy.lora_pattern
    assert len(check_targets(built.model, toy.lora_pattern)) == 2 * 7
    freeze_all_but_projector(built)
    adapted = unfreeze_language(built, recipe)
    counted = count_trainable(adapted, recipe)  # raises unless it is what the shapes say
    assert counted.trainable == counted.trainable_expected > 0
    adapted(
        **built.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    ).loss.backward()
    assert any(
        p.grad.abs().max() > 0 for n, p in adapted.named_parameters() if "q_proj.lora_B" in n
    )


@pytest.mark.slow
def test_a_pattern_of_another_family_is_refused(toy: families.Family, tmp_path: Path) -> None:
    built = assemble(tmp_path)
    with pytest.raises(TrainingError, match="matched by '.*qkv_proj.*'.*wanted 14: q_proj"):
        add_lora(built.model, Lora(target_modules=r".*language_model.*\.(qkv_proj|down_proj)"))
    assert expected_trainable(built.model, Lora(rank=2)) > 0


@pytest.mark.slow
def test_without_the_line_it_is_refused(tmp_path: Path) -> None:
    """The control: neither config.json nor tokenizer is of a known family."""
    with pytest.raises(PartError, match="model type olmo2; wanted one of llava, .*phi3"):
        assemble(tmp_path)
    with pytest.raises(PartError, match="of which language family it is; got none of SmolLM2"):
        prepare_tokenizer(make_tokenizer(), ROWS)
    with pytest.raises(UsageError, match="unknown language family"):
        families.FAMILIES["toy"]


def test_what_llama_cpp_lacks_is_said(toy: families.Family) -> None:
    with pytest.raises(PartError, match="llama.cpp has no Toy"):
        format_of({"model_type": "olmo2"})


def test_two_families_that_cannot_be_told_apart(
    toy: families.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one of the same model type needs marks; with them it is told."""
    monkeypatch.setitem(seams.FAMILY_MODULES, "twin", "tests.toys.family_twin")
    twin = replace(toy, title="Twin")
    module = type("module", (), {"FAMILY": twin})
    monkeypatch.setitem(sys.modules, "tests.toys.family_twin", module)
    text: dict[str, Any] = {"model_type": "olmo2", "hidden_size": 32}
    with pytest.raises(PartError, match="does not say of which .* family it is; got Toy and Twin"):
        families.family_of_config(text)
    module.FAMILY = replace(twin, config_marks={"hidden_size": 32})
    assert families.family_of_config(text).title == "Twin"
    assert families.family_of_config({**text, "hidden_size": 64}) is toy
    module.FAMILY = replace(twin, config_marks={"hidden_size": 32})
    monkeypatch.setattr(family_toy, "FAMILY", replace(toy, config_marks={"vocab_size": 9}))
    with pytest.raises(PartError, match="got none of Toy, Twin"):
        families.family_of_config({"model_type": "olmo2", "hidden_size": 1})


def test_a_window_that_is_asked_for_reaches_the_folder(tmp_path: Path) -> None:
    language = make_language(tmp_path / "language", window=1024)
    vision = make_vision(tmp_path / "vision")
    for asked, told, window in ((512, 512, 512), (1024, None, 1024), (4096, None, 1024)):
        built = Phi3WithProjector.assemble(
            str(language), str(vision), device="cpu", dtype=torch.float32, window=asked
        )
        config = built.model.config
        assert getattr(config, families.WINDOW_KEY, None) == told
        assert built.window == window == families.context_window(config.to_dict())


@pytest.mark.parametrize("told", [0, -1, "512", 512.0, True, [512], 1 << 40])
def test_a_window_that_is_none_is_refused(told: object) -> None:
    text = {"model_type": "phi3"}
    config = {"model_type": "llava", "text_config": text, "vision_config": {}}
    validate_config(Path("x/config.json"), {**config, families.WINDOW_KEY: 512})
    with pytest.raises(PartError, match="says what no model here says; got context_window"):
        validate_config(Path("x/config.json"), {**config, families.WINDOW_KEY: told})


def test_what_its_files_may_name_is_read_from_the_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tokenizer class and a kind of position factors are accepted with the family's line, and
    refused without it.
    """

    def check() -> None:
        path = Path("x/config.json")
        validate_tokenizer_config(path, {"tokenizer_class": "GemmaTokenizerFast"})
        check_rope(path, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "")

    with pytest.raises(PartError, match="GemmaTokenizer"):
        check()
    monkeypatch.setitem(seams.FAMILY_MODULES, "toy", "tests.toys.family_toy")
    check()
    monkeypatch.setattr(family_toy, "FAMILY", replace(family_toy.FAMILY, rope_types=("default",)))
    with pytest.raises(PartError, match="rope_type llama3; wanted one of default"):
        check()
