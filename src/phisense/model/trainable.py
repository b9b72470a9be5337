"""Trainable weights of a stage: the projector first, then LoRA or the whole language part with it;
and their files in a run folder.

adapter/    LoRA and projector, in PEFT's format
weights/    after full fine-tuning instead: language part and projector
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import ArtifactError, TrainingError
from ..opening.shape_checks import check_shapes
from ..pipeline.records import Record
from ..recipe import Recipe
from .assembly import Phi3WithProjector
from .lora import add_lora, expected_trainable
from .sharded_files import read_rows, write_gathered
from .sharding import is_sharded, local, local_rows, whole

ADAPTER_FOLDER, WEIGHTS_FOLDER = "adapter", "weights"
TRAINABLE_FILE = "trainable.safetensors"


def freeze_all_but_projector(built: Phi3WithProjector) -> None:
    """Freeze everything except the projector, which is cast to float32."""
    built.model.requires_grad_(False)
    built.projector.float().requires_grad_(True)


def unfreeze_language(built: Phi3WithProjector, recipe: Recipe) -> Any:
    """The model with a trainable language part: with LoRA, or all of its weights if the recipe has
    no LoRA.
    """
    if recipe.train.lora is not None:
        return add_lora(built.model, recipe.train.lora)
    built.model.model.language_model.requires_grad_(True)
    built.model.lm_head.requires_grad_(True)
    return built.model


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableCount(Record):
    """The number of trained parameters, the number computed from the shapes, which must be equal,
    and the names of the trained modules.
    """

    trainable: int
    trainable_expected: int
    modules: tuple[str, ...]


def count_trainable(model: Any, recipe: Recipe) -> TrainableCount:
    """Count the weights that require a gradient. Raises TrainingError unless it is the number
    expected.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    expected = expected_trainable(inner, recipe.train.lora, projector=get_projector(model))
    if recipe.train.lora is None:
        language = (*inner.model.language_model.parameters(), *inner.lm_head.parameters())
        # tied weights count once
        expected += sum(p.numel() for p in {id(p): p for p in language}.values())
    if trainable != expected:
        raise TrainingError(
            "what is trained has the wrong size",
            got=f"{trainable:,} trainable parameters",
            wanted=f"{expected:,}",
            do="Check train.lora",
        )
    named = [name for name, p in model.named_parameters() if p.requires_grad]
    modules = {name.rsplit(".lora_", 1)[0] for name in named if ".lora_" in name} or {
        "model.language_model",
        "lm_head",
    }
    return TrainableCount(
        trainable=trainable, trainable_expected=expected, modules=tuple(sorted(modules))
    )


def save_trained(model: Any, run: Path, *, write: bool = True) -> None:
    """Save the trained weights into the run's folder: a PEFT adapter, or the weights themselves.
    A collective for a sharded model, of which one process has to `write`.
    """
    if not isinstance(model, PeftModel):
        save_trainable(model, run / WEIGHTS_FOLDER, write=write)
        return
    state = trainable_state(model, keep=write)
    if write:
        model.save_pretrained(run / ADAPTER_FOLDER, state_dict=state)


def trainable_state(model: Any, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Every trainable weight, by name; without `keep` none, and sharded ones are only gathered for
    another process.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (keep or is_sharded(parameter)):
            weight = whole(parameter.detach())
            if keep:
                state[name] = weight.cpu().contiguous()
    return state


def save_trainable(model: Any, folder: Path, *, write: bool = True) -> None:
    """Save the weights that require a gradient as safetensors in `folder`. A collective for a
    sharded model, of which one process has to `write`, one weight after another.
    """
    if write:
        folder.mkdir(parents=True, exist_ok=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(is_sharded(parameter) for parameter in trained.values()):
        write_gathered(trained, folder / TRAINABLE_FILE if write else None)
    elif write:
        save_file(trainable_state(model), folder / TRAINABLE_FILE)


def load_trainable(model: Any, folder: Path, rename: Callable[[str], str] = str) -> None:
    """Load the trainable weights from `folder`, with stored names mapped by `rename`.

    Raises ArtifactError unless the file holds exactly the model's trainable weights.
    """
    path = folder / TRAINABLE_FILE
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            stored = {rename(name): name for name in file.keys()}  # noqa: SIM118, it is no dict
            shapes = {name: file.get_slice(there).get_shape() for name, there in stored.items()}
            check_shapes(
                f"{folder} belongs to another run",
                {name: (tuple(shape), f"in {TRAINABLE_FILE}") for name, shape in shapes.items()},
                {name: tuple(p.shape) for name, p in own.items()},
                wanted_by="as the recipe has it",
                do="Train without --resume, or with the recipe that it was made with",
                error_type=ArtifactError,
            )
            for name, parameter in own.items():
                read_rows(file, stored[name], local(parameter), local_rows(parameter))
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read", got=str(error).splitlines()[0], do="Train without --resume"
        ) from error


def get_projector(model: Any) -> nn.Module:
    """The projector that is trained: PEFT trains a copy of the original one."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    module = inner.model.multi_modal_projector
    found: nn.Module = (
        module.modules_to_save["default"] if hasattr(module, "modules_to_save") else module
    )
    return found


def snapshot(projector: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the projector's current weights, in float32 on the CPU."""
    return {
        name: whole(p.detach()).float().cpu().clone() for name, p in projector.named_parameters()
    }


def relative_change(before: dict[str, torch.Tensor], projector: nn.Module) -> float:
    """Relative change of the projector: the norm of the difference over the norm before."""
    after = snapshot(projector)
    moved = sum(float((after[name] - old).square().sum()) for name, old in before.items())
    return float((moved / sum(float(old.square().sum()) for old in before.values())) ** 0.5)
