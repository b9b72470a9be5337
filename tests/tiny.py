"""Parts with random weights of the real classes, small enough to make in a test."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import (
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

PRACTICE = Path(__file__).parent.parent / "src" / "phisense" / "practice" / "parts"


def make_language(folder: Path, *, tokenizer: Path | None = None, rows: int = 768, window: int = 1024) -> Path:
    """A Phi-3 of 2 layers and width 32 with the tokenizer of `tokenizer`, the practice one's if None."""
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=window, original_max_position_embeddings=window, sliding_window=None, bos_token_id=1,
        eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)
    for path in (tokenizer or PRACTICE / "language").glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


def make_vision(folder: Path, *, encoder: str = "clip", side: int = 32, patch: int = 8) -> Path:
    """A vision tower of 3 layers and width 16: (side / patch)^2 patches a picture."""
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": side, "patch_size": patch}
    model: PreTrainedModel
    if encoder == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(intermediate_size=32, **shape))
    elif encoder == "siglip":
        model = SiglipVisionModel(SiglipVisionConfig(intermediate_size=32, **shape))
    else:
        model = Dinov2Model(Dinov2Config(mlp_ratio=2, **shape))
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder
