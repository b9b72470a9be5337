"""Validation of config.json as plain JSON, before a transformers class is built from it.

rejected    unsupported model types; references to other files or code; quantized weights;
            implausible sizes, from which a class would build lists, dictionaries or layers.
            Only keys that a class here computes with must be at least 1: published
            configurations carry dozens of others, where 0 means "off"
dropped     the attention implementation, the path, the dtype and generation settings, which
            phisense sets itself. `auto_map` (remote code) is dropped, too: transformers has a
            class for each supported type. So are special token ids outside the vocabulary,
            including class defaults for absent keys (Phi-3's pad_token_id 32000): the tokenizer
            defines these ids, and building the embedding would fail with them
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PartError
from ..families import FAMILIES, WINDOW_KEY, ConfigDefaults, text_model_types
from .registered import composite_model_types, vision_model_types
from .rope_checks import check_rope, unexpected_value_error

_OTHER_MODEL_TYPES = ("clip_text_model", "siglip_text_model", "whisper")
_REMOTE_KEYS = (
    "configuration_files",
    "transformers_weights",
    "gguf_file",
    "adapter_kwargs",
    "distributed_config",
)
#: Choices that the folder must not make: code, kernels, devices.
_OVERRIDDEN_KEYS = (
    *(
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
    ),
    *(
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "device_map",
    ),
    *("trust_remote_code", "use_kernels", "kernel_config", "tp_plan", "base_model_tp_plan"),
)
#: Generation settings, which transformers wrote into every configuration and its sub-configurations
#: until 4.5x.
_GENERATION_KEYS = (
    *(
        "max_length",
        "min_length",
        "max_new_tokens",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
    ),
    *(
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
    ),
    *(
        "encoder_no_repeat_ngram_size",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "remove_invalid_values",
    ),
    *(
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "task_specific_params",
    ),
)
_DROPPED_KEYS = (
    *(*_OVERRIDDEN_KEYS, *_GENERATION_KEYS, "_name_or_path", "name_or_path", "_commit_hash"),
    *(
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_return_dict",
        "torchscript",
        "problem_type",
        "use_cache",
    ),
)
_DTYPES = ("float32", "float16", "bfloat16", "auto", None)
#: Keys that a class here uses as a weight dimension or as a divisor.
_SIZE_KEYS = (
    *(
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "projection_dim",
        "d_model",
        "head_dim",
        "num_attention_heads",
        "image_size",
    ),
    *(
        "num_key_value_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "patch_size",
    ),
    *(
        "num_mel_bins",
        "num_channels",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "max_source_positions",
    ),
    *("max_target_positions", "mlp_ratio", "projection_size"),
)
# The vocabulary is the largest dimension: Gemma's has 2^18 rows.
MAX_LAYERS, MAX_LABELS, MAX_WIDTH = 512, 10_000, 1 << 24
MAX_LIST_LENGTH = 10_000  # Phi-3.5's LongRoPE has 48 factors
MAX_ROPE_THETA = 10**12  # Llama 3's rope_theta is 5 * 10^5


def validate_config(path: Path, raw: Mapping[str, object]) -> dict[str, object]:
    """Return the configuration without the dropped keys.

    Raises PartError for what is rejected, naming the file and the key.
    """
    found = raw.get("model_type")
    if found not in known_model_types():
        raise PartError(
            f"{path.parent} cannot be opened as config",
            got=f"model type {str(found)[:60]}",
            wanted=f"one of {', '.join(known_model_types())}",
        )
    judged = _validate(path, raw, "")
    if found in composite_model_types():
        _check_submodel(path, judged, "text_config", text_model_types())
        _check_submodel(path, judged, "vision_config", vision_model_types())
    for text in (judged, judged.get("text_config")):
        if isinstance(text, dict) and text.get("model_type") in text_model_types():
            _drop_unknown_ids(text)
    return judged


def known_model_types() -> tuple[str, ...]:
    """Model types for which the effect of every number on their classes is known."""
    return (
        *composite_model_types(),
        *text_model_types(),
        *vision_model_types(),
        *_OTHER_MODEL_TYPES,
    )


def _config_defaults(model_type: str) -> ConfigDefaults:
    """Class defaults of a text part; families of one model type have the same."""
    return next(
        family.config_defaults for family in FAMILIES.values() if family.model_type == model_type
    )


def _drop_unknown_ids(text: dict[str, Any]) -> None:
    """Set special token ids outside the vocabulary to None, in place; lists keep valid ids."""
    defaults = _config_defaults(text["model_type"])
    rows = text.get("vocab_size", defaults.vocab_size)
    for key, usual in defaults.special_token_ids.items():
        told = text.get(key, usual)
        ids = told if isinstance(told, list) else [told]
        if type(rows) is not int or not all(type(one) is int for one in ids if one is not None):
            continue  # the class reports what is wrong
        known = [one for one in ids if one is not None and 0 <= one < rows]
        if known != ids:
            text[key] = known if isinstance(told, list) and known else None


def overridden_keys(config: dict[str, Any], where: str = "") -> list[str]:
    """Keys that phisense drops and another program would honor."""
    found = [
        where + key
        for key in _OVERRIDDEN_KEYS
        if config.get(key) not in (None, "eager", "sdpa", False)
    ]
    for key, value in config.items():
        if isinstance(value, dict):
            found += overridden_keys(value, f"{where}{key}.")
    return found


def _validate(path: Path, config: Mapping[str, object], where: str) -> dict[str, object]:
    judged: dict[str, object] = {}
    for key, value in config.items():
        if key in _DROPPED_KEYS:
            continue
        if key in _REMOTE_KEYS:
            raise unexpected_value_error(path, where + key, value, "the model in the folder itself")
        if key == "quantization_config" and value:
            raise PartError(
                f"the weights in {path.parent} are quantised",
                got=f"a {where}quantization_config",
                wanted="the original weights",
            )
        if key in ("dtype", "torch_dtype"):
            value = value.removeprefix("torch.") if isinstance(value, str) else value
            if not isinstance(value, (str, type(None))) or value not in _DTYPES:
                raise unexpected_value_error(
                    path, where + key, value, "float32, float16 or bfloat16"
                )
        if key == "num_labels" and not (type(value) is int and 0 <= value <= MAX_LABELS):
            raise unexpected_value_error(path, where + key, value, f"at most {MAX_LABELS:,}")
        if key == WINDOW_KEY and not (type(value) is int and 1 <= value <= MAX_WIDTH):
            raise unexpected_value_error(path, where + key, value, f"1 to {MAX_WIDTH:,}")
        if isinstance(value, dict):
            value = _validate(path, value, f"{where}{key}.")
        elif isinstance(value, list) and len(value) > MAX_LIST_LENGTH:
            raise unexpected_value_error(
                path, where + key, f"a list of {len(value):,}", f"at most {MAX_LIST_LENGTH:,}"
            )
        elif type(value) is int:
            _check_size(path, where + key, key, value)
        judged[key] = value
    check_rope(path, judged, where)
    return judged


def _check_size(path: Path, full: str, key: str, value: int) -> None:
    most = (
        MAX_ROPE_THETA
        if key == "rope_theta"
        else MAX_LAYERS
        if key.endswith("layers")
        else MAX_WIDTH
    )
    least = 1 if key in _SIZE_KEYS or key == "rope_theta" else -MAX_WIDTH
    if not least <= value <= most:
        raise unexpected_value_error(path, full, value, f"{max(least, 0)} to {most:,}")


def _check_submodel(path: Path, judged: dict[str, Any], half: str, known: tuple[str, ...]) -> None:
    inner = judged.get(half)
    kind = inner.get("model_type") if isinstance(inner, dict) else inner
    if not isinstance(inner, dict) or (kind is not None and kind not in known):
        raise PartError(
            f"{path.parent} cannot be opened as config",
            got=f"{half} of type {str(kind)[:60]}",
            wanted=" or ".join(known),
        )


def check_usable_config(folder: Path, config: Any) -> None:
    """Raise PartError for a built configuration that would fail only in generation."""
    seen = config.vision_config
    depth, layer = int(seen.num_hidden_layers), config.vision_feature_layer
    if type(layer) is not int or not -depth - 1 <= layer <= depth:
        raise unexpected_value_error(
            folder / "config.json", "vision_feature_layer", layer, f"{-depth - 1} to {depth}"
        )
    if config.vision_feature_select_strategy not in ("default", "full"):
        raise unexpected_value_error(
            folder / "config.json",
            "vision_feature_select_strategy",
            config.vision_feature_select_strategy,
            "default or full",
        )
    if seen.num_channels != 3 or seen.image_size < seen.patch_size:
        got = (
            f"{seen.num_channels} channels, image_size {seen.image_size}, patch_size"
            f" {seen.patch_size}"
        )
        raise unexpected_value_error(
            folder / "config.json",
            "vision_config",
            got,
            "pictures of 3 channels, no smaller than a patch",
        )
    nested = getattr(config, "nested_pooling", [1])
    side = seen.image_size // seen.patch_size
    if not isinstance(nested, list) or not all(
        type(one) is int and 0 < one <= side and side % one == 0 for one in nested
    ):
        raise unexpected_value_error(
            folder / "config.json", "nested_pooling", nested, f"a list of divisors of {side}"
        )
