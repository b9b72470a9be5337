"""Parts with random weights of the real classes, small enough to make in a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from phisense import Phi3WithProjector

PRACTICE = Path(__file__).parent.parent / "src" / "phisense" / "practice" / "parts"


def make_language(
    folder: Path, *, tokenizer: Path | None = None, rows: int = 768, window: int = 1024
) -> Path:
    """A Phi-3 of 2 layers and width 32 with the tokenizer of `tokenizer`, the practice one's if
    None.
    """
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=window,
        original_max_position_embeddings=window,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    for path in (tokenizer or PRACTICE / "language").glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


#: As measured in a real SmolLM2-135M-Instruct: one hidden value of the first token, and the median
#: beside it.
MASSIVE, MEDIAN = 24_494.0, 1.9


def make_real_language(
    folder: Path, *, tied: bool = True, layers: int = 2, dtype: torch.dtype = torch.float32
) -> Path:
    """A Phi-3 with what real parts have and random ones lack: a tied head, grouped keys, a massive
    activation at the first token, and logits in which a change of a weight shows.
    """
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=768,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=tied,
    )
    for path in (PRACTICE / "language").glob("tokenizer*.json"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    model = Phi3ForCausalLM(config)
    enlarge(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plant_massive_activation(model, tokenizer.convert_tokens_to_ids(["<|user|>", "<|system|>"]))
    model.to(dtype).save_pretrained(folder)
    return folder


@torch.no_grad()
def enlarge(model: PreTrainedModel, factor: float = 12.0) -> None:
    """Weights drawn at random as the classes draw them hardly move the logits: larger ones do."""
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.mul_(factor)


@torch.no_grad()
def plant_massive_activation(model: Any, openers: list[int]) -> None:
    """Make the first layer write `MASSIVE` into one hidden value of each token of `openers`, with
    which conversations begin, beside a median of about `MEDIAN`.

    A mark in the openers' embeddings drives one neuron of the MLP, as in Sun et al. 2024
    (arXiv:2402.17762). Of any family whose layers have a gated MLP, fused or not.
    """
    inner = model.model
    mark, massive = inner.embed_tokens.weight.shape[1] - 1, 0
    table, mlp = inner.embed_tokens.weight, inner.layers[0].mlp
    table[:, mark] = -table.std()
    table[openers] = 0.0
    table[openers, mark] = 40 * table.std()
    gate, up = gated(mlp)
    for matrix in (gate, up):
        matrix[0] = 0.0
        matrix[0, mark] = 20.0  # closed for all tokens whose mark is negative
    mlp.down_proj.weight[:, 0] = 0.0
    inner.layers[0].self_attn.o_proj.weight[mark] = 0.0  # attention must not open it for the others
    ids = torch.tensor([[openers[0], *range(300, 340)]])
    for _ in range(3):  # the residual grows with the layer's output, which these scale
        hidden = first_layer(model, ids)
        scale = MEDIAN / hidden[1:].abs().median()
        for weight in (mlp.down_proj.weight, inner.layers[0].self_attn.o_proj.weight):
            weight.mul_(scale)
    before = first_layer(model, ids)[0, massive].clone()
    mlp.down_proj.weight[massive, 0] = 1.0
    unit = first_layer(model, ids)[0, massive] - before
    mlp.down_proj.weight[massive, 0] = (MASSIVE - before) / unit


def gated(mlp: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the gate's and the up projection's matrix, which Phi-3 keeps in one."""
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj.weight.chunk(2)
        return gate, up
    return mlp.gate_proj.weight, mlp.up_proj.weight


@torch.inference_mode()
def first_layer(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The hidden values `(T, H)` behind the first layer."""
    hidden: torch.Tensor = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
    return hidden.float()


def make_vision(folder: Path, *, encoder: str = "clip", side: int = 32, patch: int = 8) -> Path:
    """A vision tower of 3 layers and width 16: (side / patch)^2 patches a picture."""
    torch.manual_seed(1)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": patch,
    }
    model: PreTrainedModel
    if encoder == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(intermediate_size=32, **shape))
    elif encoder == "siglip":
        model = SiglipVisionModel(SiglipVisionConfig(intermediate_size=32, **shape))
    else:
        model = Dinov2Model(Dinov2Config(mlp_ratio=2, **shape))
    model.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    return folder


@torch.inference_mode()
def generated(
    built: Phi3WithProjector, conversations: Any, visuals: Any, *, max_new_tokens: int
) -> list[str]:
    """Greedy answers of one batch the plain way: no cache but that of `generate`."""
    inputs = built.inputs(conversations, visuals, supervised=False).to_kwargs()
    made = built.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    # given embeddings, `generate` returns the new ids alone
    new = made[:, inputs["input_ids"].shape[1] if "input_ids" in inputs else 0 :]
    stop = built.prompt.truncate_at_stop
    return [built.prompt.decode(stop(row.tolist())) for row in new]


def make_root(
    root: Path,
    *,
    encoder: str = "clip",
    side: int = 32,
    language: Callable[[Path], Path] = make_language,
) -> dict[str, Any]:
    """Parts, four pictures of one colour, three conversations about each, and `tiny.yaml`, whose
    contents are returned. `language` makes the language part, as `make_real_language` does.
    """
    language(root / "parts" / "language")
    make_vision(root / "parts" / "vision", encoder=encoder, side=side)
    (root / "images").mkdir()
    rows = []
    for colour, pixel in {
        "red": (220, 20, 20),
        "green": (20, 200, 20),
        "blue": (20, 20, 220),
        "white": (240, 240, 240),
    }.items():
        Image.new("RGB", (60, 40), pixel).save(root / "images" / f"{colour}.png")
        for i, question in enumerate(("What colour is it?", "Which colour?", "Name the colour.")):
            turns = [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": f"{colour.title()}."},
            ]
            rows.append({"id": f"{colour}-{i}", "image": f"{colour}.png", "conversations": turns})
    (root / "rows.json").write_text(json.dumps(rows))
    stage = {
        "batch_size": 6,
        "micro_batch_size": 3,
        "max_steps": 2,
        "learning_rate": 0.001,
        "max_length": 256,
    }
    recipe: dict[str, Any] = {
        "name": "tiny",
        "root": str(root),
        "language": {"part": "./parts/language"},
        "vision": {"part": "./parts/vision", "encoder": encoder},
        "data": {
            "images": "images",
            "align": ["rows.json"],
            "instruct": ["rows.json"],
            "held_out": ["rows.json"],
        },
        "train": {"lora": {"rank": 4, "alpha": 8}, "align": stage, "instruct": stage},
        "merge": {"dtype": "float32", "samples": 4},
        "evaluate": {"max_new_tokens": 4},
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return recipe
