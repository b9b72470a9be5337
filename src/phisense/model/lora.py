"""LoRA on exactly Phi-3's four fused matrices of every layer, or an error: names that match nothing are skipped silently by PEFT.

Where the recipe says so, on the vision tower's matrices, too."""

from __future__ import annotations

import re
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..errors import TrainingError
from ..recipe import Lora

_FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def add_lora(model: Any, lora: Lora) -> PeftModel:
    """The model with a fresh adapter, its projector trained along. Raises TrainingError unless `lora.targets` matches what it must."""
    check_targets(model, lora.targets)
    tower = [re.escape(name) for name in tower_matrices(model)] if lora.vision else []
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join([f"(?:{lora.targets})", *tower]) if tower else lora.targets,
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def tower_matrices(model: Any) -> list[str]:
    """The names of the vision tower's matrices in the layers that the projector's input comes through: what lies behind is not read."""
    tower = model.model.vision_tower
    stack, layers = next((name, m) for name, m in tower.named_modules() if isinstance(m, nn.ModuleList))
    read = len(layers) + 1 + model.config.vision_feature_layer  # hidden layer -1 is the last layer's
    return [
        f"model.vision_tower.{stack}.{number}.{name}"
        for number in range(read)
        for name, module in layers[number].named_modules()
        if isinstance(module, nn.Linear)
    ]


def check_targets(model: Any, pattern: str) -> list[str]:
    """The matched module names: 4 for each layer, no more and no less."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TrainingError("train.lora.targets is not a regular expression", got=f"{pattern!r}: {error}") from error
    layers = model.config.text_config.num_hidden_layers
    wanted = {f"model.language_model.layers.{i}.{name}" for i in range(layers) for name in _FUSED}
    matched = {name for name, _ in model.named_modules() if compiled.fullmatch(name)}
    if matched != wanted:
        missed, extra = sorted(wanted - matched), sorted(matched - wanted)
        example = f", for example not {missed[0]}" if missed else f", for example also {extra[0]}"
        raise TrainingError(
            "the LoRA pattern matches the wrong modules",
            got=f"{len(matched)} matched by {pattern!r}{example}",
            wanted=f"{len(wanted)}: {', '.join(n.split('.')[-1] for n in _FUSED)} in each of {layers} layers",
            do="Leave train.lora.targets out to use the right pattern",
        )
    return sorted(matched)


def expected_trainable(model: Any, lora: Lora | None, *, projector: Any = None) -> int:
    """Trainable parameters as the configuration says: the projector, and `rank * (in + out)` for each matrix with LoRA."""
    count: int = sum(p.numel() for p in (projector if projector is not None else model.model.multi_modal_projector).parameters())
    if lora is not None:
        text, seen = model.config.text_config, model.config.vision_config
        hidden, mlp = text.hidden_size, text.intermediate_size
        head = hidden // text.num_attention_heads
        qkv = head * (text.num_attention_heads + 2 * text.num_key_value_heads)
        shapes = ((hidden, qkv), (head * text.num_attention_heads, hidden), (hidden, 2 * mlp), (mlp, hidden))
        count += int(text.num_hidden_layers) * sum(lora.rank * (a + b) for a, b in shapes)
        if lora.vision:
            width, inner = seen.hidden_size, getattr(seen, "intermediate_size", None) or seen.hidden_size * seen.mlp_ratio
            read = seen.num_hidden_layers + 1 + model.config.vision_feature_layer
            count += int(read * lora.rank * (4 * 2 * width + 2 * (width + inner)))
    return count
