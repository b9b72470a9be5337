"""The practice vision part before it is trained: configuration, tokenizer of its captions, image
processor.
"""

from __future__ import annotations

from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, PreTrainedTokenizerFast

from ..world import COLOURS, DIGITS, SHAPES, SIZES

SIDE, PATCH = 96, 12  # pixels: 8x8 patches, 4x4 of them in a corner
EMPTY = "nothing"
MEAN, STD = 0.5, 0.25


def clip_config() -> CLIPConfig:
    """Configuration of the practice CLIP model."""
    text = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "hidden_act": "gelu",
    }
    return CLIPConfig(
        text_config={
            **text,
            "vocab_size": len(_words()) + 4,
            "max_position_embeddings": 40,
            "bos_token_id": 1,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**vision, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=128,
    )


def build_caption_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: the captions have few words."""
    words = ["<pad>", "<s>", "<unk>", "</s>", *_words()]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|,"), "removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=40,
    )


def _words() -> list[str]:
    return [
        "a",
        "at",
        "the",
        ",",
        EMPTY,
        "top",
        "bottom",
        "left",
        "right",
        *SIZES,
        *COLOURS,
        *SHAPES,
        *DIGITS,
    ]


def build_practice_image_processor() -> CLIPImageProcessorPil:
    """Image processor of the practice vision model: resized without a crop, normalized."""
    return CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        resample=Image.Resampling.BICUBIC,
    )
