"""LoRA on exactly the matrices of every layer that the language family names, or an error: PEFT
silently skips names that match nothing.

If the recipe says so, LoRA is also put on the vision tower's matrices.
"""

from __future__ import annotations

import re
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..errors import TrainingError
from ..families import family_of_config
from ..recipe import Lora


def add_lora(model: Any, lora: Lora) -> PeftModel:
    """Wrap the model with a fresh adapter; the projector is trained too.

    Raises TrainingError unless `lora.target_modules` matches exactly the right modules.
    """
    pattern = target_pattern(model, lora)
    check_targets(model, pattern)
    tower = [re.escape(name) for name in tower_matrices(model)] if lora.vision else []
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join([f"(?:{pattern})", *tower]) if tower else pattern,
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def target_pattern(model: Any, lora: Lora) -> str:
    """The recipe's regular expression, or the family's if the recipe leaves it out."""
    if lora.target_modules is not None:
        return lora.target_modules
    return family_of_config(model.config.text_config).lora_pattern


def tower_matrices(model: Any) -> list[str]:
    """Names of the vision tower's Linear layers up to the layer that the projector reads; later
    layers are unused.
    """
    tower = model.model.vision_tower
    stack, layers = next(
        (name, m) for name, m in tower.named_modules() if isinstance(m, nn.ModuleList)
    )
    # hidden state -1 is the last layer's output
    read = len(layers) + 1 + model.config.vision_feature_layer
    return [
        f"model.vision_tower.{stack}.{number}.{name}"
        for number in range(read)
        for name, module in layers[number].named_modules()
        if isinstance(module, nn.Linear)
    ]


def check_targets(model: Any, pattern: str) -> list[str]:
    """The matched module names. Raises TrainingError unless they are the family's matrices of each
    layer and nothing else.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TrainingError(
            "train.lora.target_modules is not a regular expression", got=f"{pattern!r}: {error}"
        ) from error
    layers = model.config.text_config.num_hidden_layers
    names = family_of_config(model.config.text_config).lora_targets
    wanted = {f"model.language_model.layers.{i}.{name}" for i in range(layers) for name in names}
    matched = {name for name, _ in model.named_modules() if compiled.fullmatch(name)}
    if matched != wanted:
        missed, extra = sorted(wanted - matched), sorted(matched - wanted)
        example = f", for example not {missed[0]}" if missed else f", for example also {extra[0]}"
        raise TrainingError(
            "the LoRA pattern matches the wrong modules",
            got=f"{len(matched)} matched by {pattern!r}{example}",
            wanted=(
                f"{len(wanted)}: {', '.join(n.split('.')[-1] for n in names)} in each of {layers}"
                " layers"
            ),
            do="Leave train.lora.target_modules out to use the right pattern",
        )
    return sorted(matched)


def expected_trainable(model: Any, lora: Lora | None, *, projector: Any = None) -> int:
    """Expected number of trainable parameters: the projector, and `rank * (in + out)` for each
    matrix with LoRA.
    """
    count: int = sum(
        p.numel()
        for p in (
            projector if projector is not None else model.model.multi_modal_projector
        ).parameters()
    )
    if lora is not None:
        text, seen = model.config.text_config, model.config.vision_config
        shapes = family_of_config(text).lora_shapes(text)
        count += int(text.num_hidden_layers) * sum(lora.rank * (a + b) for a, b in shapes)
        if lora.vision:
            width = seen.hidden_size
            inner = getattr(seen, "intermediate_size", None) or seen.hidden_size * seen.mlp_ratio
            read = seen.num_hidden_layers + 1 + model.config.vision_feature_layer
            count += int(read * lora.rank * (4 * 2 * width + 2 * (width + inner)))
    return count
