"""Parts with random weights of a middling size, for the benchmarks that need no learned ones."""

from __future__ import annotations

import shutil
from pathlib import Path


def make_parts(root: Path, layers: int) -> None:
    """A Phi-3 of width 768 with the real 32,064-row vocabulary (134 million weights with 12 layers), and a CLIP of B/16-224's shape."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

    import phisense

    torch.manual_seed(0)
    language = Phi3Config(
        vocab_size=32064, hidden_size=768, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=2048, original_max_position_embeddings=2048, sliding_window=None, bos_token_id=1,
        eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    Phi3ForCausalLM(language).save_pretrained(root / "language")
    for path in (Path(phisense.__file__).parent / "practice" / "parts" / "language").glob("tokenizer*.json"):
        shutil.copy(path, root / "language")
    vision = CLIPVisionConfig(image_size=224, patch_size=16)
    CLIPVisionModel(vision).save_pretrained(root / "vision")
    CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(root / "vision")
