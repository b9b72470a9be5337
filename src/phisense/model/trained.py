"""What a stage moves: the projector first, then LoRA beside it or the whole language part; and how that is kept in a run folder.

adapter/    LoRA and projector, in PEFT's format
weights/    instead of it after full fine-tuning: language part and projector
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import ArtefactError, TrainingError
from ..recipe import Recipe
from .assembly import Phi3WithProjector
from .lora import add_lora, expected_trainable

ADAPTER, WEIGHTS = "adapter", "weights"
FILE = "trainable.safetensors"


def only_projector(built: Phi3WithProjector) -> None:
    """Everything but the projector is frozen, and that is float32 whatever the rest is."""
    built.model.requires_grad_(False)
    built.projector.float().requires_grad_(True)


def with_language(built: Phi3WithProjector, recipe: Recipe) -> Any:
    """The model with its language part trained along: by LoRA, or itself if the recipe has none."""
    if recipe.train.lora is not None:
        return add_lora(built.model, recipe.train.lora)
    built.model.model.language_model.requires_grad_(True)
    built.model.lm_head.requires_grad_(True)
    return built.model


def count(model: Any, recipe: Recipe) -> dict[str, Any]:
    """`trainable`, `trainable_expected` and the trained `modules`. Raises TrainingError if another number is trained than should be."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    expected = expected_trainable(inner, recipe.train.lora, projector=projector_of(model))
    if recipe.train.lora is None:
        language = (*inner.model.language_model.parameters(), *inner.lm_head.parameters())
        expected += sum(p.numel() for p in {id(p): p for p in language}.values())  # tied weights are one
    if trainable != expected:
        raise TrainingError(
            "what is trained has the wrong size", got=f"{trainable:,} trainable parameters", wanted=f"{expected:,}", do="Check train.lora"
        )
    named = [name for name, p in model.named_parameters() if p.requires_grad]
    modules = {name.rsplit(".lora_", 1)[0] for name in named if ".lora_" in name} or {"model.language_model", "lm_head"}
    return {"trainable": trainable, "trainable_expected": expected, "modules": sorted(modules)}


def write(model: Any, run: Path) -> None:
    if isinstance(model, PeftModel):
        model.save_pretrained(run / ADAPTER)
    else:
        save_trainable(model, run / WEIGHTS)


def trainable_state(model: Any) -> dict[str, torch.Tensor]:
    """Every weight that training moves, by name."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def save_trainable(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trainable_state(model), folder / FILE)


def load_trainable(model: Any, folder: Path, rename: Callable[[str], str] = str) -> None:
    """Raises ArtefactError unless the file holds exactly the model's trainable weights, under other names if `rename` says so."""
    stored = {rename(name): weight for name, weight in load_file(folder / FILE).items()}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if stored.keys() != own.keys():
        odd = sorted(stored.keys() ^ own.keys())
        raise ArtefactError(
            f"{folder} belongs to another run", got=f"{len(odd)} weights that differ, such as {odd[0]}", do="Train without --resume"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name].to(parameter.device))


def projector_of(model: Any) -> nn.Module:
    """PEFT trains a copy of the projector; this is the copy. Without PEFT there is one only."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    module = inner.model.multi_modal_projector
    found: nn.Module = module.modules_to_save["default"] if hasattr(module, "modules_to_save") else module
    return found


def snapshot(projector: nn.Module) -> dict[str, torch.Tensor]:
    """Its weights as they are now, in float32 on the CPU."""
    return {name: p.detach().float().cpu().clone() for name, p in projector.named_parameters()}


def change(before: dict[str, torch.Tensor], projector: nn.Module) -> float:
    """How far the projector moved: the norm of the difference over the norm before."""
    after = snapshot(projector)
    moved = sum(float((after[name] - old).square().sum()) for name, old in before.items())
    return float((moved / sum(float(old.square().sum()) for old in before.values())) ** 0.5)
