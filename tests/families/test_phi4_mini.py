"""Phi-4-mini, the second family: Phi-3's class with other positions, heads, embeddings, ids and
template, from the tokenizer to llama.cpp's files.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText

from phisense import artifacts
from phisense.chat import ChatSession, Sampling
from phisense.chat_tokenizer import _rename_token, prepare_tokenizer
from phisense.conversations import IMAGE, Message
from phisense.doctor.shapes import read_shapes
from phisense.errors import PartError
from phisense.families import FAMILIES, family_of_config, family_of_tokenizer
from phisense.model import Phi3WithProjector, load_model, save_model
from phisense.model.lora import add_lora, expected_trainable
from phisense.model.trainable import freeze_all_but_projector
from phisense.opening.tokenizer_checks import validate_tokenizer
from phisense.pipeline.progress import ignore
from phisense.prompt import IGNORE_INDEX, Prompt
from phisense.recipe import Lora, Projector, load_recipe

from ..tiny import PRACTICE, make_root, make_vision
from . import made

FAMILY = FAMILIES["phi4_mini"]
#: As the model card writes a conversation (section "Input Formats"), in Jinja.
CARD_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% else %}<|endoftext|>{% endif %}"
)
TALK = (
    Message("system", "Be brief."),
    Message("user", f"{IMAGE}\nWhat colour is it?"),
    Message("assistant", "Red.\n\nI'm 12,345 years old."),
    Message("user", "Which colour?"),
    Message("assistant", "Green."),
)


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    tokenizer = made.make_tokenizer()
    assert prepare_tokenizer(tokenizer, made.ROWS) == made.IMAGE_ID  # the first free row
    return Prompt(tokenizer)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phi4")
    made.make_language(folder / "language")
    make_vision(folder / "vision")
    return folder


@pytest.fixture(scope="module")
def built(parts: Path) -> Phi3WithProjector:
    return assemble(parts)


@pytest.fixture(scope="module")
def saved(built: Phi3WithProjector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    with artifacts.staged_artifact(folder, kind="model folder") as aside:
        save_model(built, aside)
    return folder


def assemble(parts: Path, **how: Any) -> Phi3WithProjector:
    language, vision = str(parts / "language"), str(parts / "vision")
    return Phi3WithProjector.assemble(language, vision, device="cpu", dtype=torch.float32, **how)


def plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def is_tied(built: Phi3WithProjector) -> bool:
    inner = built.model.model.language_model
    return built.model.lm_head.weight is inner.embed_tokens.weight


def logits(built: Phi3WithProjector) -> torch.Tensor:
    batch = built.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    with torch.inference_mode():
        found: torch.Tensor = built.model(**batch).logits
    return found


def test_ids_and_stop_tokens(prompt: Prompt) -> None:
    assert prompt.family is FAMILY
    assert prompt.stop_ids == [made.END, made.ASSISTANT, made.END_OF_TEXT]
    asked = prompt.render_for_completion([Message("user", f"{IMAGE}\nWhat?")], [3])
    assert asked[:4] == [made.USER, *[made.IMAGE_ID] * 3]
    assert asked[-2:] == [made.END, made.ASSISTANT]


@pytest.mark.parametrize("template", ["the folder's", "the card's"])
def test_it_renders_what_transformers_renders(prompt: Prompt, template: str) -> None:
    tokenizer = prompt.tokenizer
    told = tokenizer.chat_template if template == "the folder's" else CARD_TEMPLATE
    ours = prompt.render_conversation(TALK, [1])
    text = tokenizer.apply_chat_template(plain(TALK), chat_template=told, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.ids
    asked = tokenizer.apply_chat_template(
        plain(TALK[:2]), chat_template=told, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer(asked, add_special_tokens=False)["input_ids"] == prompt.render_for_completion(
        TALK[:2], [1]
    )
    assert "<|user|>\n" not in text  # the control: Phi-3's template has the line break
    assert "<|user|>\n" in FAMILIES["phi3"].chat.template(IMAGE).replace("\\n", "\n")


def test_answers_and_their_ends_have_labels(prompt: Prompt) -> None:
    rendered = prompt.render_conversation(TALK, [2])
    kept = [label for label in rendered.labels if label != IGNORE_INDEX]
    assert prompt.tokenizer.decode(kept) == "Red.\n\nI'm 12,345 years old.<|end|>Green.<|end|>"
    assert rendered.ids.count(made.IMAGE_ID) == 2


def test_a_full_vocabulary_without_a_token_to_spare_is_refused() -> None:
    tokenizer = made.make_tokenizer()
    for token in FAMILY.image_tokens:
        _rename_token(tokenizer, token, f"{token}?")
    with pytest.raises(
        PartError,
        match="no free row for <image>; got 200029 tokens in 200029 rows; wanted one row more, or"
        ".*<.tag.>.*Rename a special token that the model never reads or writes to <image>",
    ):
        prepare_tokenizer(tokenizer, len(tokenizer))


def test_it_is_told_from_phi3_by_facts(prompt: Prompt) -> None:
    assert family_of_config(made.config()) is FAMILY
    assert family_of_config({"model_type": "phi3", "vocab_size": made.ROWS}) is FAMILY
    phi3 = FAMILIES["phi3"]
    assert family_of_config(made.config(vocab_size=32_064)) is phi3
    assert family_of_config({"model_type": "phi3"}) is phi3
    other_ids = made.make_tokenizer(rows=200_020)  # the tags move by one
    assert family_of_tokenizer(other_ids) is phi3, (
        "the tags are Phi-3's, the ids are not this one's"
    )


def test_a_tokenizer_of_the_other_family_is_refused(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "language", tmp_path / "language")
    for path in (PRACTICE / "language").glob("tokenizer*.json"):
        shutil.copy(path, tmp_path / "language")
    with pytest.raises(PartError, match="different language families; got Phi-4-mini and Phi-3"):
        Phi3WithProjector.assemble(str(tmp_path / "language"), str(parts / "vision"), device="cpu")


def test_its_splitting_is_read_and_no_other_regular_expression(parts: Path) -> None:
    path = parts / "language" / "tokenizer.json"
    document = json.loads(path.read_text())
    validate_tokenizer(path, document)
    (split, _) = document["pre_tokenizer"]["pretokenizers"]
    split["pattern"]["Regex"] += "|(a+)+$"
    with pytest.raises(PartError, match="a regular expression of a stranger's"):
        validate_tokenizer(path, document)


@pytest.mark.parametrize("text", ["A" * 20_000, "ß" * 20_000, " " * 20_000 + "x", "aA" * 10_000])
def test_its_splitting_takes_no_longer_than_the_text(prompt: Prompt, text: str) -> None:
    """Runs that each alternative of the expression could begin."""
    assert len(prompt.tokenizer(text, add_special_tokens=False)["input_ids"]) > 0


@pytest.mark.slow
def test_one_gradient_reaches_what_is_trained(parts: Path) -> None:
    built = assemble(parts)
    freeze_all_but_projector(built)
    adapted = add_lora(built.model, Lora(rank=2))
    projector = built.model.model.multi_modal_projector.modules_to_save["default"]
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    counted = sum(p.numel() for p in trained.values())
    # width 32, 4 heads of 8, 2 key heads, MLP 64, 2 layers
    lora = 2 * 2 * ((32 + 64) + (32 + 32) + (32 + 128) + (64 + 32))
    assert counted == lora + sum(p.numel() for p in projector.parameters())
    assert counted == expected_trainable(built.model, Lora(rank=2), projector=projector)
    batch = built.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    built.model(**batch).loss.backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    assert any(p.grad.abs().max() > 0 for n, p in trained.items() if "qkv_proj.lora_B" in n)


@pytest.mark.slow
def test_a_saved_folder_stays_tied_and_opens_the_same(
    built: Phi3WithProjector, saved: Path
) -> None:
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert not [name for name in names if "lm_head" in name]
    again = load_model(saved, "cpu", torch.float32)
    assert is_tied(built)
    assert is_tied(again)
    assert again.prompt.family is FAMILY
    assert again.window == built.window == 1024
    torch.testing.assert_close(logits(again), logits(built))
    native: Any = AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.float32)
    batch = again.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    with torch.inference_mode():
        torch.testing.assert_close(native(**batch).logits, logits(again))


@pytest.mark.slow
def test_partial_rotation_and_grouped_keys_matter(built: Phi3WithProjector, parts: Path) -> None:
    """The control: with whole rotation the same weights say something else."""
    other = assemble(parts)
    rotary = other.model.model.language_model.rotary_emb
    whole = type(rotary)(made.config(partial_rotary_factor=1.0, rope_scaling=None))
    other.model.model.language_model.rotary_emb = whole
    assert not torch.allclose(logits(other), logits(built), atol=1e-2)


@pytest.mark.slow
def test_a_pooled_projector_keeps_the_tie_too(parts: Path, tmp_path: Path) -> None:
    """AyaVision's class has a default of its own."""
    pooled = assemble(parts, projector=Projector(pool=2))
    assert is_tied(pooled)
    save_model(pooled, tmp_path)
    again = load_model(tmp_path, "cpu", torch.float32)
    assert is_tied(again)
    torch.testing.assert_close(logits(again), logits(pooled))


@pytest.mark.slow
def test_training_and_merging_keep_the_tie(parts: Path, tmp_path: Path, verb: Any) -> None:
    recipe = make_root(tmp_path)
    shutil.rmtree(tmp_path / "parts" / "language")
    shutil.copytree(parts / "language", tmp_path / "parts" / "language")
    recipe["language"]["window"] = 600
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    verb("features", tmp_path / "tiny.yaml")
    facts = verb("train", tmp_path / "tiny.yaml")
    report = verb("merge", facts["run"])
    assert abs(report["merged"]["delta_loss"]) <= 0.002
    merged = load_model(Path(report["model"]), "cpu", torch.float32)
    assert is_tied(merged)
    assert merged.prompt.family is FAMILY
    assert merged.window == 600


@pytest.mark.slow
def test_it_is_imported_and_stays_tied(saved: Path, tmp_path: Path, verb: Any) -> None:
    """As another's folder: without a manifest."""
    shutil.copytree(saved, tmp_path / "source", ignore=shutil.ignore_patterns("manifest.json"))
    report = verb("import", tmp_path / "source", "--out", tmp_path / "out")
    assert report["prompt"]["same_ids"] is True
    again = load_model(tmp_path / "out", "cpu", torch.float32)
    assert is_tied(again)
    assert again.prompt.family is FAMILY
    assert again.window == 1024


@pytest.mark.slow
def test_llama_cpp_says_the_same(saved: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

    from phisense.chat.llama_engine import LlamaEngine
    from phisense.publish import gguf_agreement
    from phisense.publish.export import export

    drawn = gguf_agreement.drawn_set()
    questions, pictures = drawn.compared
    asked = dataclasses.replace(drawn, compared=(questions[::6], pictures[::6]))
    report = export(saved, tmp_path / "out", "f16", asked, ignore)
    assert report.f16.kl <= 1e-4
    assert report.f16.top1 >= 0.99
    engine = LlamaEngine.open(tmp_path / "out")
    assert engine.prompt.family is FAMILY
    session = ChatSession(engine, Sampling(max_new_tokens=4))
    session.set_image(pictures[0])
    assert list(session.ask("What colour is it?"))
    file = llama_cpp.Llama(str(tmp_path / "out" / "model-f16.gguf"), vocab_only=True, verbose=False)
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-4o"
    assert file.metadata["tokenizer.chat_template"] == FAMILY.chat.llama_cpp_template("")
    for text in ("I'm 12,345 years OLD.", "<|user|>What colour is it?<|end|><|assistant|>"):
        theirs = file.tokenize(text.encode(), add_bos=False, special=True)
        assert theirs == engine.prompt.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_doctor_knows_its_size() -> None:
    """3,836,021,760 weights, as its files hold, of which the shared matrix counts once."""
    recipe = load_recipe("phi3.5-clip-l336")
    part = recipe.language.model_copy(update={"part": "microsoft/Phi-4-mini-instruct"})
    shapes = read_shapes(recipe.model_copy(update={"language": part}))
    assert shapes.language == 3_836_021_760
    assert (shapes.key_heads, shapes.head) == (8, 128)
