"""The plan against models that are really built, and against what autograd really keeps. Tiny, with
every kind of setting.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from phisense import Phi3WithProjector
from phisense.conversations import IMAGE, Message
from phisense.doctor import activations, find_devices, memory
from phisense.doctor.activations import MicroBatch
from phisense.doctor.lengths import QUESTION_TOKENS, measure_lengths, measure_questions
from phisense.doctor.shapes import Shapes, read_shapes
from phisense.model.batch_generate import logits_at
from phisense.model.lora import add_lora, expected_trainable
from phisense.model.varlen_attention import VARLEN
from phisense.prompt import IGNORE_INDEX, Rendered
from phisense.recipe import Lora, Recipe, parse_recipe
from phisense.training import packing
from phisense.training.eval_callback import MAX_NEW_TOKENS, eval_batch_size
from phisense.training.objectives.supervised import supervised_loss
from phisense.training.packing import PackedRow, concatenate_rows

TOKENS = 60
BOUND = 0.03


def saved_by_loss(s: Shapes, x: MicroBatch) -> float:
    """What autograd saves of the loss: the log-probabilities and the labels."""
    return x.rows * x.supervised * (4.0 * s.vocabulary + 8)


def recipe_of(parts: tuple[str, str], *, pool: int = 1, kind: str = "mlp", **train: Any) -> Recipe:
    stage = {"batch_size": 4, "micro_batch_size": 2, "max_length": TOKENS}
    return parse_recipe(
        {
            "name": "tiny",
            "language": {"part": parts[0]},
            "vision": {"part": parts[1]},
            "projector": {"kind": kind, "pool": pool},
            "data": {"images": "none", "instruct": ["none.json"]},
            "train": {
                "align": stage,
                "instruct": stage,
                "quantize": False,
                "gradient_checkpointing": False,
                **train,
            },
        }
    )


def build(recipe: Recipe, quantize: bool, dtype: torch.dtype = torch.float32) -> Phi3WithProjector:
    built = Phi3WithProjector.from_recipe(
        recipe, quantize=quantize, stored_features=True, device="cpu", dtype=dtype
    )
    built.model.requires_grad_(False)
    built.projector.float().requires_grad_(True)
    return built


@pytest.mark.slow
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("rank", [None, 4])
def test_trainable_parameters_are_those_of_the_built_model(
    parts: tuple[str, str], pool: int, rank: int | None
) -> None:
    recipe = recipe_of(parts, pool=pool)
    built = build(recipe, False)
    model = built.model if rank is None else add_lora(built.model, Lora(rank=rank))
    planned = memory.count_trained_weights(read_shapes(recipe), rank)
    assert planned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if rank is None:
        assert planned == expected_trainable(built.model, None)


def test_trainable_parameters_of_a_trained_tower(parts: tuple[str, str]) -> None:
    recipe = recipe_of(parts)
    built = build(recipe, False)
    built.model.model.vision_tower = CLIPVisionModel.from_pretrained(parts[1]).requires_grad_(False)
    model = add_lora(built.model, Lora(rank=4, vision=True))
    assert memory.count_trained_weights(read_shapes(recipe), 4, tower=True) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("quantize", [False, True])
def test_weight_bytes_are_those_of_the_built_model(parts: tuple[str, str], quantize: bool) -> None:
    recipe = recipe_of(parts)
    built = build(recipe, quantize)
    held = 0
    quantised = 0
    for name, p in built.model.named_parameters():
        if "multi_modal_projector" in name:
            continue
        held += p.numel() * p.element_size()
        state = getattr(p, "quant_state", None)
        if (
            state is not None
            # the lookup tables (16 and 256 numbers) are not counted: they do not grow with the
            # model
        ):
            held += sum(
                t.numel() * t.element_size()
                for t in (state.absmax, state.state2.absmax, state.offset)
            )
            quantised += 1
    assert quantised == (8 if quantize else 0)
    assert memory.language_bytes(read_shapes(recipe), 4, quantize) == held


def test_vision_weights_are_those_of_the_tower(parts: tuple[str, str]) -> None:
    tower = CLIPVisionModel.from_pretrained(parts[1])
    assert read_shapes(recipe_of(parts)).vision == sum(p.numel() for p in tower.parameters())


def setting_of(
    rows: int,
    tokens: int,
    rank: int | None,
    dropout: float,
    checkpointing: bool,
    quantize: bool,
    spans: bool,
) -> MicroBatch:
    return MicroBatch(
        rows, tokens, 0, rank, dropout, checkpointing, quantize, 4, spans, False, rows, tokens**2, 0
    )


def end_to_end_of(batch: dict[str, Any], shared: int) -> dict[str, Any]:
    """The rows of a padded batch as they lie end to end, each as two conversations of like length
    if some of it is `shared`.
    """
    made = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        ends = ((shared + len(ids)) // 2, len(ids)) if shared else (len(ids),)
        made.append(PackedRow(Rendered(ids, labels), ("picture",), shared, ends))
    return {**concatenate_rows(made), "pixel_values": batch["pixel_values"]}


def kept_by_autograd(
    built: Phi3WithProjector,
    model: Any,
    rows: int,
    tokens: int,
    spans: bool,
    shared: int,
    tower: bool = False,
) -> tuple[int, int]:
    """Bytes of the storages that the forward pass hands to autograd, parameters and buffers not
    counted; tokens of a row with a loss.
    """
    width = built.model.config.vision_config.hidden_size
    talk = [Message("user", f"{IMAGE}\nWhat?"), Message("assistant", "Red. " * 40)]
    inputs = built.inputs([talk] * rows, [[torch.rand(16, width)]] * rows)
    # the model that trains its tower reads pixels, and embeds the ids itself
    batch: dict[str, Any] = replace(inputs, inputs_embeds=None).to_kwargs()
    for key in ("input_ids", "attention_mask", "labels"):
        batch[key] = batch[key][:, :tokens].contiguous()
    assert batch["input_ids"].shape == (rows, tokens)
    if tower:
        side = built.model.config.vision_config.image_size
        batch["pixel_values"] = torch.rand(rows, 3, side, side)
    if spans:
        batch = end_to_end_of(batch, shared)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(t)  # so that no address is used twice
        return t

    labels = batch.pop("labels")
    supervised = torch.nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), logits_at(model, supervised):
        supervised_loss(model(**batch), labels, int(supervised.sum()))
    return sum(kept.values()), int(supervised.sum()) // rows


CASES = [
    pytest.param(None, 0.0, False, True, 2, id="align"),
    pytest.param(None, 0.0, False, True, 1, id="align, one row"),
    pytest.param(4, 0.0, False, True, 2, id="instruct"),
    pytest.param(4, 0.0, True, True, 2, id="instruct, NF4"),
    pytest.param(4, 0.1, False, True, 2, id="instruct, dropout"),
    pytest.param(4, 0.0, False, False, 2, id="instruct, fused attention"),
    pytest.param(None, 0.0, False, False, 2, id="align, fused attention"),
]


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory, parts: tuple[str, str]) -> tuple[str, str]:
    """A language part whose layers outweigh the rest; fewer key heads than heads would go unnoticed
    with the tiny one.
    """
    from transformers import Phi3Config, Phi3ForCausalLM

    from ..tiny import PRACTICE

    folder = tmp_path_factory.mktemp("wider") / "language"
    config = Phi3Config(
        vocab_size=768,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=256,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    for path in (PRACTICE / "language").glob("tokenizer*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder), parts[1]


def measure(
    parts: tuple[str, str], x: MicroBatch, shared: int = 0
) -> tuple[int, Shapes, MicroBatch]:
    """What autograd keeps; the shapes; and the setting with its supervised tokens counted."""
    recipe = recipe_of(parts)
    narrow = x.itemsize == 2
    # full fine-tuning keeps its weights in float32
    dtype = torch.bfloat16 if narrow and not x.full_finetuning else torch.float32
    built = build(recipe, x.quantize, dtype)
    built.model.set_attn_implementation({"text_config": VARLEN if x.varlen else "sdpa"})
    if x.train_vision:
        built.model.model.vision_tower = CLIPVisionModel.from_pretrained(parts[1]).requires_grad_(
            False
        )
    if x.full_finetuning:
        built.model.model.language_model.requires_grad_(True)
        built.model.lm_head.requires_grad_(True)
    model = (
        built.model
        if x.rank is None
        else add_lora(built.model, Lora(rank=x.rank, dropout=x.dropout, vision=x.train_vision))
    )
    built.model.config.use_cache = False  # as Trainer does
    if x.checkpointing:
        built.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    model.train()
    with torch.autocast("cpu", enabled=narrow), disable_input_dtype_casting(model):
        kept, supervised = kept_by_autograd(
            built, model, x.rows, x.tokens, x.varlen, shared, x.train_vision
        )
    return kept, read_shapes(recipe), replace(x, supervised=supervised)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("rank", "dropout", "quantize", "spans", "rows"), CASES)
def test_activations_are_what_autograd_keeps(
    wider: tuple[str, str],
    rank: int | None,
    dropout: float,
    quantize: bool,
    spans: bool,
    rows: int,
    checkpointing: bool,
) -> None:
    x = setting_of(rows, TOKENS, rank, dropout, checkpointing, quantize, spans)
    kept, s, x = measure(wider, x)
    planned = activations.saved_for_backward(s, x) + saved_by_loss(s, x)
    # holds mask and angles for its second forward pass by itself, not through autograd
    if checkpointing:
        planned -= activations.mask_and_rotary(s, x)
    assert planned == pytest.approx(kept, rel=BOUND)
    # the control: the same plan with one thing forgotten is outside the bound
    if not checkpointing:
        assert planned - activations.decoder_layer(s, x) != pytest.approx(kept, rel=BOUND)


def widened(part: str, folder: Path) -> str:
    """A language part with the same tokenizer whose layers are wide, with two key heads for
    four.
    """
    shutil.copytree(part, folder)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = AutoConfig.from_pretrained(part, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("itemsize", [4, 2])
@pytest.mark.parametrize(("rank", "dropout"), [(4, 0.0), (4, 0.1), (None, 0.0)])
@pytest.mark.parametrize("family", ["phi3", "smollm2", "qwen3"])
def test_activations_of_each_family_in_each_format(
    parts_of: Callable[[str], tuple[str, str]],
    tmp_path: Path,
    family: str,
    rank: int | None,
    dropout: float,
    itemsize: int,
) -> None:
    """LoRA, and every weight: what matrices that read the same input save of it."""
    language, vision = parts_of(family)
    x = replace(
        setting_of(2, TOKENS, rank, dropout, False, False, True),
        itemsize=itemsize,
        full_finetuning=rank is None,
    )
    kept, s, x = measure((widened(language, tmp_path / "wide"), vision), x)
    loss = saved_by_loss(s, x)  # most of it: these vocabularies are the real ones
    planned = activations.saved_for_backward(s, x) + memory.cast_weights(s, x)
    assert planned == pytest.approx(kept - loss, rel=BOUND)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_full_fine_tuning_costs_what_autograd_keeps(
    wider: tuple[str, str], checkpointing: bool
) -> None:
    x = replace(setting_of(2, TOKENS, None, 0.0, checkpointing, False, True), full_finetuning=True)
    kept, s, x = measure(wider, x)
    around = activations.mask_and_rotary(s, x) if checkpointing else 0
    assert activations.saved_for_backward(s, x) + saved_by_loss(s, x) - around == pytest.approx(
        kept, rel=BOUND
    )
    forgotten = replace(x, full_finetuning=False)
    assert activations.saved_for_backward(s, forgotten) + saved_by_loss(
        s, x
    ) - around != pytest.approx(kept, rel=BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_trained_tower_costs_what_autograd_keeps(seeing: tuple[str, str], dropout: float) -> None:
    x = replace(setting_of(2, TOKENS, 4, dropout, False, False, True), train_vision=True)
    kept, s, x = measure(seeing, x)
    without, _, _ = measure(seeing, replace(x, train_vision=False))
    assert activations.vision_tower(s, x) == pytest.approx(kept - without, rel=BOUND)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, parts: tuple[str, str]) -> tuple[str, str]:
    """A vision part with layers that outweigh the rest."""
    folder = tmp_path_factory.mktemp("seeing") / "vision"
    shape = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **shape)).save_pretrained(folder)
    shutil.copy(Path(parts[1]) / "preprocessor_config.json", folder)
    return parts[0], str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 4])
def test_a_shared_picture_costs_what_autograd_keeps(
    wider: tuple[str, str], rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MERGE_BELOW", 0)
    shared, each = 24, (TOKENS - 24) // 2
    seen = {"scores": shared**2 + 2 * each * (shared + each), "behind": 2 * (shared + each)}
    assert seen == dict(
        zip(
            seen,
            packing.count_scores(
                PackedRow(Rendered([0] * TOKENS, []), (), shared, (shared + each, TOKENS))
            ),
            strict=True,
        )
    )
    kept, s, x = measure(
        wider, replace(setting_of(2, TOKENS, rank, 0.0, False, False, True), **seen), shared
    )
    planned = activations.saved_for_backward(s, x) + saved_by_loss(s, x)
    assert planned == pytest.approx(kept, rel=BOUND)
    forgotten = replace(x, scores=TOKENS**2, behind=0)
    assert activations.saved_for_backward(s, forgotten) + saved_by_loss(s, x) != pytest.approx(
        kept, rel=BOUND / 3
    )


def test_checkpointing_is_planned_as_a_saving(wider: tuple[str, str]) -> None:
    x = setting_of(2, TOKENS, 4, 0.0, False, False, True)
    s = read_shapes(recipe_of(wider))
    assert (
        activations.saved_for_backward(s, replace(x, checkpointing=True))
        < activations.saved_for_backward(s, x) / 3
    )


def test_one_recomputed_layer_is_what_a_layer_keeps(wider: tuple[str, str], tmp_path: Path) -> None:
    """Two models that differ in one layer differ by what a layer keeps."""
    x = setting_of(2, TOKENS, 4, 0.0, False, False, True)
    kept, s, x = measure(wider, x)
    fewer = tmp_path / "language"
    shutil.copytree(wider[0], fewer)
    config = json.loads((fewer / "config.json").read_text())
    (fewer / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    weights = load_file(fewer / "model.safetensors")
    last = f"layers.{config['num_hidden_layers'] - 1}."
    assert config["num_hidden_layers"] == 3
    save_file(
        {name: one for name, one in weights.items() if last not in name},
        fewer / "model.safetensors",
        {"format": "pt"},
    )
    kept_fewer, _, _ = measure((str(fewer), wider[1]), x)
    assert activations.decoder_layer(s, x) == pytest.approx(kept - kept_fewer, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_narrow_blocks_are_a_part_of_what_autograd_keeps(
    parts: tuple[str, str], checkpointing: bool
) -> None:
    x = setting_of(2, TOKENS, 4, 0.0, checkpointing, False, True)
    s = read_shapes(recipe_of(parts))
    kept = activations.saved_for_backward(s, x)
    if checkpointing:  # all blocks of the layer that is recomputed, and the inputs of the others
        kept += activations.decoder_layer(s, x)
    every = activations.narrow_blocks(s, x, 1 << 40)
    assert 0.5 * kept < every <= kept
    assert activations.narrow_blocks(s, x, 1) == 0
    narrow = 4 * x.positions * s.hidden + 1
    assert 0 < activations.narrow_blocks(s, x, narrow) < every


def test_questions_asked_in_training_are_planned(parts: tuple[str, str]) -> None:
    recipe = recipe_of(parts)
    asking = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"held_out": (Path("none.jsonl"),)})}
    )
    s, device = read_shapes(recipe), find_devices("A100-80")[0]
    lengths = measure_lengths(recipe, "align", s)

    def moments(one: Recipe) -> dict[str, memory.Peak]:
        found = memory._training_moments(one, "align", s, device, lengths)
        return {peak.moment: peak for peak in found}

    assert "looking" not in moments(recipe)
    looking = moments(asking)["looking"].terms
    rows = min(eval_batch_size(recipe), recipe.train.eval.questions)
    tokens = 2 * s.image_tokens + QUESTION_TOKENS + MAX_NEW_TOKENS
    assert looking["key-value cache"] >= memory.kv_cache_bytes(s, rows, tokens, device.itemsize)
    # no losses: the logits of one position of each row, not those of reference answers
    assert looking["activations"] < rows * MAX_NEW_TOKENS * s.vocabulary * 8


def test_lengths_of_questions_are_those_of_the_file(parts: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "heldout.jsonl"
    rows = [
        {"question_id": str(i), "image": f"{i % 2}.png", "text": "What is it?", "answer": "Red."}
        for i in range(6)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    recipe = recipe_of(parts)
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"held_out": (file,)})}
    )
    found = measure_questions(recipe, read_shapes(recipe), 4)
    assert (found.pictures, found.references) == (2, 4 * found.reference)
    assert 1 < found.reference < found.question < QUESTION_TOKENS
