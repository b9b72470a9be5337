"""Parts with random weights of any size, for the benchmarks that need no learned ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

# 134 million weights with 12 layers
MIDDLING = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}


def make_parts(
    root: Path,
    layers: int,
    text: dict[str, Any] = MIDDLING,
    seen: dict[str, Any] | None = None,
    *,
    window: int = 2048,
    vocabulary: int = 32064,
    cuda: bool = False,
) -> None:
    """A Phi-3 of the shape `text` with `vocabulary` rows, the real number if left out, and a CLIP
    of the shape `seen`, B/16-224's if None.

    With `cuda` they are made on the GPU in bfloat16.
    """
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        Phi3Config,
        Phi3ForCausalLM,
    )

    import phisense

    torch.manual_seed(0)
    language = Phi3Config(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_key_value_heads=text["num_attention_heads"],
        max_position_embeddings=window,
        original_max_position_embeddings=window,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        **text,
    )
    vision = CLIPVisionConfig(**{"image_size": 224, "patch_size": 16, **(seen or {})})
    torch.set_default_dtype(torch.bfloat16 if cuda else torch.float32)
    try:
        with torch.device("cuda" if cuda else "cpu"):
            Phi3ForCausalLM(language).save_pretrained(root / "language")
            CLIPVisionModel(vision).save_pretrained(root / "vision")
    finally:
        torch.set_default_dtype(torch.float32)
    for path in (Path(phisense.__file__).parent / "practice" / "parts" / "language").glob(
        "tokenizer*.json"
    ):
        shutil.copy(path, root / "language")
    side = vision.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(root / "vision")
