"""A Phi-4-mini with random weights: the real class, ids, vocabulary size and splitting, small
matrices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from phisense.families import FAMILIES

ROWS = 200_064
END_OF_TEXT, ASSISTANT, END, USER, SYSTEM = 199_999, 200_019, 200_020, 200_021, 200_022
IMAGE_ID = 200_029
LINES = (
    "What colour is it? Which colour? Name the colour.",
    "Red. Green. Blue. White. A red square beside a blue circle.",
    "What is in the picture? Describe the picture in detail. I'm 12,345 years old.",
)


def make_tokenizer(*, rows: int = 200_019) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each special token of Phi-4-mini has its id; ids that no merge makes
    are fillers.
    """
    (split,) = FAMILIES["phi4_mini"].tokenizer_patterns
    inner = Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.Split(Regex(split), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(LINES, trainer)
    learned = sorted(inner.get_vocab().items(), key=lambda item: item[1])
    vocab = {piece: i for i, (piece, _) in enumerate(learned)}
    vocab |= {f"filler{i}": i for i in range(len(vocab), rows)}
    for i, name in ((END_OF_TEXT, "<|endoftext|>"), (200_018, "<|endofprompt|>")):
        del vocab[f"filler{i}"]
        vocab[name] = i
    merges = [tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    whole.pre_tokenizer = inner.pre_tokenizer
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in FAMILIES["phi4_mini"].chat.special_tokens
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def config(**changes: Any) -> Phi3Config:
    """Partial rotary embeddings, grouped key heads, tied embeddings, LongRoPE."""
    settings: dict[str, Any] = {
        "vocab_size": ROWS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "original_max_position_embeddings": 1024,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.3, 1.6],
            "long_factor": [2.0, 3.0, 4.0],
        },
        "sliding_window": 262_144,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "pad_token_id": END_OF_TEXT,
        "tie_word_embeddings": True,
    }
    return Phi3Config(**settings | changes)


def make_language(folder: Path) -> Path:
    """The language part, with weights large enough that what it reads shows in its logits."""
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config())
    for name, weight in model.named_parameters():
        if name.endswith(("qkv_proj.weight", "o_proj.weight", "embed_tokens.weight")):
            weight.data.mul_(12)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
