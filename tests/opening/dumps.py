"""Configurations as published parts have them: transformers before 4.50 wrote every key of its base
class into each, and into each half.

The keys are those of the files; their sizes are what the test makes of them. What is of no part
here (a translation of labels, a link) stays as it was found, since a reader must take it.
"""

from __future__ import annotations

from typing import Any

#: What `PretrainedConfig.to_dict` of transformers 4.2x to 4.4x wrote, with its own defaults.
BASE: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": None,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.21.0.dev0",
    "typical_p": 1.0,
    "use_bfloat16": False,
    "use_cache": True,
}

_CLIP_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_CLIP_VISION = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "image_size": 336,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}

#: openai/clip-vit-large-patch14-336, with the two dictionaries that earlier uploads of the family
#: carry beside the halves.
CLIP = {
    "_name_or_path": "clip-vit-large-patch14-336",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": None,
    "text_config": BASE | _CLIP_TEXT,
    "vision_config": BASE | _CLIP_VISION,
    "text_config_dict": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "vision_config_dict": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
CLIP_TOWER = (
    BASE | _CLIP_VISION | {"architectures": ["CLIPVisionModel"], "torch_dtype": "torch.float16"}
)
#: google/siglip-so400m-patch14-384: what differs from the defaults alone.
SIGLIP = {
    "architectures": ["SiglipModel"],
    "initializer_factor": 1.0,
    "model_type": "siglip",
    "torch_dtype": "float32",
    "transformers_version": "4.37.0.dev0",
    "text_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_text_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "projection_size": 1152,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
SIGLIP_FULL = SIGLIP | {
    "text_config": BASE | SIGLIP["text_config"],  # type: ignore[operator]
    "vision_config": BASE | SIGLIP["vision_config"],  # type: ignore[operator]
}
#: facebook/dinov2-large: trained at 224, its positions are of 518.
DINOV2 = {
    "apply_layernorm": True,
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "out_features": ["stage24"],
    "out_indices": [24],
    "patch_size": 14,
    "qkv_bias": True,
    "reshape_hidden_states": True,
    "stage_names": ["stem", *(f"stage{i}" for i in range(1, 25))],
    "torch_dtype": "float32",
    "transformers_version": "4.31.0.dev0",
    "use_swiglu_ffn": False,
}
#: openai/whisper-small.
WHISPER = BASE | {
    "_name_or_path": "openai/whisper-small",
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "apply_spec_augment": False,
    "architectures": ["WhisperForConditionalGeneration"],
    "attention_dropout": 0.0,
    "begin_suppress_tokens": [220, 50257],
    "bos_token_id": 50257,
    "classifier_proj_size": 256,
    "d_model": 768,
    "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 12,
    "decoder_start_token_id": 50258,
    "dropout": 0.0,
    "encoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 12,
    "eos_token_id": 50257,
    "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]],
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "mask_feature_length": 10,
    "mask_feature_min_masks": 0,
    "mask_feature_prob": 0.0,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_time_prob": 0.05,
    "max_length": 448,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "median_filter_width": 7,
    "model_type": "whisper",
    "num_hidden_layers": 12,
    "num_mel_bins": 80,
    "pad_token_id": 50257,
    "scale_embedding": False,
    "suppress_tokens": [1, 2, 7, 8, 9, 10, 14, 25, 26, 27],
    "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0",
    "use_weighted_layer_sum": False,
    "vocab_size": 51865,
}
#: microsoft/Phi-3.5-mini-instruct.
PHI = {
    "_name_or_path": "Phi-3.5-mini-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.08 + i for i in range(48)],
        "short_factor": [1.0 + i / 40 for i in range(48)],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
    "vocab_size": 32064,
}
PHI_FULL = BASE | PHI | {"rope_theta": 10000}
#: xtuner/llava-phi-3-mini-hf: a Phi-3 written as a Llama. Its halves have what differs from the
#: defaults.
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32038,
    "model_type": "llava",
    "pad_token_id": 32039,
    "projector_hidden_act": "gelu",
    "torch_dtype": "float16",
    "transformers_version": "4.40.1",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projection_dim": 768,
    "vocab_size": 32064,
    "text_config": {
        "_name_or_path": "microsoft/Phi-3-mini-4k-instruct",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "pad_token_id": 32000,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_hidden_layers": 32,
        "torch_dtype": "bfloat16",
        "vocab_size": 32064,
    },
    "vision_config": {
        "architectures": ["CLIPVisionModel"],
        "dropout": 0.0,
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "torch_dtype": "float32",
    },
}
LLAVA_FULL = (
    BASE
    | LLAVA
    | {
        "text_config": BASE | LLAVA["text_config"],  # type: ignore[operator]
        "vision_config": BASE | LLAVA["vision_config"],  # type: ignore[operator]
    }
)

PUBLISHED = {
    "clip": CLIP,
    "clip tower": CLIP_TOWER,
    "siglip": SIGLIP,
    "siglip full": SIGLIP_FULL,
    "dinov2": DINOV2,
    "dinov2 full": BASE | DINOV2,
    "whisper": WHISPER,
    "phi": PHI,
    "phi full": PHI_FULL,
    "llava": LLAVA,
    "llava full": LLAVA_FULL,
}

_SMALL = {
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "projection_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "projection_dim": 16,
    "vocab_size": 640,
    "image_size": 28,
}


def small(config: Any) -> Any:
    """The same keys with sizes that a test can make weights of."""
    if isinstance(config, list):
        return config[: _SMALL["hidden_size"] // 4] if len(config) == 48 else config
    if not isinstance(config, dict):
        return config
    made = {
        key: _SMALL[key] if key in _SMALL and value is not None else small(value)
        for key, value in config.items()
    }
    if "stage_names" in made:
        made |= {
            "stage_names": ["stem", "stage1", "stage2"],
            "out_features": ["stage2"],
            "out_indices": [2],
        }
    tokens = [
        key
        for key, value in made.items()
        if key.endswith(("token_id", "token_index")) and type(value) is int
    ]
    return made | {key: made[key] % 640 for key in tokens}
