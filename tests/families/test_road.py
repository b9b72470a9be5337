"""Every family from its parts to a model folder: what is trained, saved, read again by plain
transformers, quantized, asked in batches, imported. The tiny parts have grouped key heads and,
besides Phi-3's, a tied head; Qwen2.5's have biases, Qwen3's norms and wide heads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer

from phisense import artifacts
from phisense.chat import ChatSession, Sampling
from phisense.chat.torch_engine import TorchEngine
from phisense.conversations import IMAGE, Message
from phisense.doctor.shapes import read_shapes
from phisense.errors import PartError, TrainingError
from phisense.families import FAMILIES
from phisense.model import Phi3WithProjector, load_model, save_model
from phisense.model.lora import add_lora, check_targets, expected_trainable, target_pattern
from phisense.model.trainable import freeze_all_but_projector
from phisense.parts import load_auto
from phisense.prompt import chat_template
from phisense.recipe import Lora, Projector, load_recipe

from ..tiny import make_root, make_vision
from . import made, templates

NAMES = list(made.FAMILY_PARTS)
TALK = (
    Message("user", f"{IMAGE}\nWhat colour is it?"),
    Message("assistant", "Red.\n\nI'm 12,345 years old."),
    Message("user", "Which colour?"),
    Message("assistant", "Green."),
)


@pytest.fixture(scope="module", params=NAMES)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    made.make_language(folder / "language", request.param)
    make_vision(folder / "vision")
    (folder / "family").write_text(request.param)
    return folder


def name_of(parts: Path) -> str:
    return (parts / "family").read_text()


def assemble(parts: Path, **how: Any) -> Phi3WithProjector:
    language, vision = str(parts / "language"), str(parts / "vision")
    return Phi3WithProjector.assemble(language, vision, device="cpu", dtype=torch.float32, **how)


@pytest.fixture(scope="module")
def built(parts: Path) -> Phi3WithProjector:
    return assemble(parts)


@pytest.fixture(scope="module")
def saved(parts: Path, built: Phi3WithProjector) -> Path:
    return save(built, parts / "model")


def save(built: Phi3WithProjector, folder: Path) -> Path:
    with artifacts.staged_artifact(folder, kind="model folder") as aside:
        save_model(built, aside)
    return folder


def logits(built: Phi3WithProjector) -> torch.Tensor:
    batch = built.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    with torch.inference_mode():
        found: torch.Tensor = built.model(**batch).logits
    return found


def is_tied(built: Phi3WithProjector) -> bool:
    inner = built.model.model.language_model
    return built.model.lm_head.weight is inner.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.parametrize("pool", [1, 2])
def test_a_saved_folder_opens_the_same(parts: Path, tmp_path: Path, pool: int) -> None:
    """In phisense and in plain transformers, with LLaVA's class and the pooled one."""
    family = FAMILIES[name_of(parts)]
    built = assemble(parts, projector=Projector(pool=pool))
    folder = save(built, tmp_path / "model")
    tied = built.model.config.text_config.tie_word_embeddings
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert tied != any("lm_head" in name for name in file.keys())  # noqa: SIM118
    again = load_model(folder, "cpu", torch.float32)
    assert is_tied(built) == is_tied(again) == tied
    assert again.prompt.family is family
    assert again.window == built.window == 1024
    assert type(again.model.model.language_model).__name__ == (
        family.model_class.removesuffix("ForCausalLM") + "Model"
    )
    assert again.model.config.text_config.architectures == [family.model_class]
    torch.testing.assert_close(logits(again), logits(built))
    native: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    batch = again.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    with torch.inference_mode():
        torch.testing.assert_close(native(**batch).logits, logits(again))
    stops = again.prompt.stop_ids
    assert native.generation_config.eos_token_id == stops
    assert native.generation_config.pad_token_id == again.prompt.end_of_text_id
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == stops[0]
    assert tokenizer.convert_tokens_to_ids(IMAGE) == made.FAMILY_PARTS[name_of(parts)].image_id
    assert tokenizer.convert_tokens_to_ids(IMAGE) == native.config.image_token_index
    assert tokenizer.chat_template == chat_template(native.config)


@pytest.mark.slow
def test_what_the_family_has_matters(built: Phi3WithProjector, parts: Path) -> None:
    """The control: without biases, norms or the image, the logits are others."""
    other = assemble(parts)
    changed = 0
    for name, weight in other.model.model.language_model.named_parameters():
        if name.endswith(("proj.bias", "q_norm.weight", "k_norm.weight")):
            weight.data.fill_(1.0 if "norm" in name else 0.0)
            changed += 1
    assert changed == {"qwen2_5": 6, "qwen3": 4}.get(name_of(parts), 0)
    assert torch.allclose(logits(other), logits(built), atol=1e-3) == (changed == 0)


@pytest.mark.slow
def test_lora_reaches_every_matrix(parts: Path) -> None:
    family = FAMILIES[name_of(parts)]
    built = assemble(parts)
    lora = Lora(rank=2)
    assert target_pattern(built.model, lora) == family.lora_pattern
    linear = {
        name
        for name, module in built.model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    matched = check_targets(built.model, family.lora_pattern)
    assert {name.removeprefix("model.language_model.") for name in matched} == linear
    other = FAMILIES["smollm2" if family.model_type == "phi3" else "phi3"]
    with pytest.raises(TrainingError, match="the LoRA pattern matches the wrong modules"):
        add_lora(built.model, Lora(rank=2, target_modules=other.lora_pattern))
    freeze_all_but_projector(built)
    adapted = add_lora(built.model, lora)
    projector = built.model.model.multi_modal_projector.modules_to_save["default"]
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    counted = sum(p.numel() for p in trained.values())
    assert counted == expected_trainable(built.model, lora, projector=projector)
    batch = built.inputs([TALK], [[Image.new("RGB", (40, 30), "red")]]).to_kwargs()
    built.model(**batch).loss.backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    moved = {
        name.split(".lora_B")[0].split(".")[-1]
        for name, p in trained.items()
        if "lora_B" in name and p.grad is not None and p.grad.abs().max() > 0
    }
    assert moved == {name.split(".")[-1] for name in family.lora_targets}


@pytest.mark.slow
def test_four_bits(parts: Path) -> None:
    """The matrices are quantized, the head and the embedding are not."""
    pytest.importorskip("bitsandbytes")
    built = assemble(parts, quantize=True)
    kinds = {
        type(module).__name__
        for name, module in built.model.model.language_model.named_modules()
        if name.endswith("_proj")
    }
    assert kinds == {"Linear4bit"}
    assert type(built.model.lm_head).__name__ == "Linear"
    assert logits(built).isfinite().all()


@pytest.mark.slow
def test_a_chat_reuses_what_it_read(saved: Path, parts: Path) -> None:
    """The answer of a second turn is that of a session that reads everything anew."""
    engine = TorchEngine(load_model(saved, "cpu", torch.float32), "it")
    picture = Image.new("RGB", (40, 30), "red")
    session = ChatSession(engine, Sampling(max_new_tokens=6))
    session.set_image(picture)
    first = "".join(session.ask("What colour is it?"))
    second = "".join(session.ask("Which colour?"))
    fresh = TorchEngine(load_model(saved, "cpu", torch.float32), "it")
    seen = [fresh.encode_image(picture)]
    said = [
        Message("user", f"{IMAGE}\nWhat colour is it?"),
        Message("assistant", first.strip()),
        Message("user", "Which colour?"),
    ]
    ids = fresh.built.prompt.render_for_completion(said, [len(seen[0])])
    with torch.inference_mode():
        new = fresh.built.model.generate(
            inputs_embeds=fresh.built.embed(torch.tensor([ids]), seen),
            max_new_tokens=6,
            do_sample=False,
        )[0].tolist()
    prompt = fresh.built.prompt
    assert second.strip() == prompt.decode(prompt.truncate_at_stop(new))


@pytest.mark.slow
def test_it_is_imported(saved: Path, tmp_path: Path, verb: Any) -> None:
    """As another's folder: without a manifest."""
    shutil.copytree(saved, tmp_path / "source", ignore=shutil.ignore_patterns("manifest.json"))
    report = verb("import", tmp_path / "source", "--out", tmp_path / "out")
    assert report["prompt"]["same_ids"] is True
    again = load_model(tmp_path / "out", "cpu", torch.float32)
    torch.testing.assert_close(logits(again), logits(load_model(saved, "cpu", torch.float32)))


@pytest.mark.slow
def test_training_and_merging(parts: Path, tmp_path: Path, verb: Any) -> None:
    recipe = make_root(tmp_path)
    shutil.rmtree(tmp_path / "parts" / "language")
    shutil.copytree(parts / "language", tmp_path / "parts" / "language")
    recipe["language"]["window"] = 600
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    verb("features", tmp_path / "tiny.yaml")
    facts = verb("train", tmp_path / "tiny.yaml")
    report = verb("merge", facts["run"])
    assert abs(report["merged"]["delta_loss"]) <= 0.005
    merged = load_model(Path(report["model"]), "cpu", torch.float32)
    assert merged.prompt.family is FAMILIES[name_of(parts)]
    assert is_tied(merged) == merged.model.config.text_config.tie_word_embeddings
    assert merged.window == 600


def test_a_class_that_splits_otherwise_is_passed_over(tmp_path: Path) -> None:
    """SmolLM2's tokenizer_config.json names GPT-2's class, which does not split digits."""
    made.smollm2_config().save_pretrained(tmp_path)
    made.smollm2_tokenizer(4096).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "tokenizer_config.json").read_text())
    document["tokenizer_class"] = "GPT2Tokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(document))

    def splits_digits(tokenizer: Any) -> bool:
        return "Digits" in tokenizer.backend_tokenizer.to_str()

    assert not splits_digits(AutoTokenizer.from_pretrained(tmp_path)), "the control"
    assert splits_digits(load_auto(AutoTokenizer, tmp_path))


@pytest.mark.parametrize(
    ("part", "weights", "heads"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, (3, 64)),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, (32, 64)),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, (2, 128)),
        ("Qwen/Qwen3-1.7B", 1_720_574_976, (8, 128)),
    ],
)
def test_doctor_knows_their_sizes(part: str, weights: int, heads: tuple[int, int]) -> None:
    """The shared matrix counts once."""
    recipe = load_recipe("phi3.5-clip-l336")
    language = recipe.language.model_copy(update={"part": part})
    shapes = read_shapes(recipe.model_copy(update={"language": language}))
    assert shapes.language == weights
    assert (shapes.key_heads, shapes.head) == heads


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path) -> None:
    made.make_language(tmp_path / "language", "smollm2")
    made.practice_tokenizer().save_pretrained(tmp_path / "language")
    make_vision(tmp_path / "vision")
    with pytest.raises(PartError, match="different language families; got SmolLM2 and Phi-3"):
        assemble(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smollm2", "qwen2_5", "qwen3"])
def test_a_published_folder_is_imported_with_its_own_template(
    family: str, tmp_path: Path, verb: Any
) -> None:
    """Its template, and not ours, is what the ids are compared with."""
    made.make_language(tmp_path / "language", family)
    make_vision(tmp_path / "vision")
    folder = save(assemble(tmp_path), tmp_path / "model")
    shutil.copytree(folder, tmp_path / "source", ignore=shutil.ignore_patterns("manifest.json"))
    (tmp_path / "source" / "chat_template.jinja").write_text(templates.OWN[family])
    report = verb("import", tmp_path / "source", "--out", tmp_path / "out")
    assert report["prompt"]["same_ids"] is True
    again = load_model(tmp_path / "out", "cpu", torch.float32)
    assert again.processor.tokenizer.chat_template == FAMILIES[family].chat.template(IMAGE)
