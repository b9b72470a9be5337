"""A projector's weights: newly initialized, or those of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from ...errors import PartError
from ...opening import validate_folder
from ...opening.headers import StoredTensor
from ...opening.shape_checks import check_shapes
from ...parts import load_auto
from .base import PROJECTORS, native_model

#: Configuration keys that stored weights depend on whatever the native model is, and what to do
#: about another value.
_KEYS = {
    "model_type": "Set projector.pool as it was trained",
    "vision_feature_layer": "Set vision.layer",
    "vision_feature_select_strategy": "Set vision.encoder",
}


def fresh_projector(model: Any, config: PreTrainedConfig, kind: str, seed: int) -> nn.Module:
    """The native model's projector class with newly initialized weights, in float32."""
    torch.manual_seed(seed)
    projector: nn.Module = type(model.model.multi_modal_projector)(config).float()
    PROJECTORS[kind].initialize(projector, config)
    return projector


def xavier_uniform(projector: Any) -> None:
    """Initialize both layers as Glorot and Bengio 2010 do, with biases of zero."""
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def check_projector(
    projector: nn.Module, folder: Path, config: PreTrainedConfig
) -> dict[str, tuple[str, StoredTensor]]:
    """Stored weights of a model folder's projector, by their names in `projector`: the name in the
    file, and its header entry.

    Raises PartError unless kind, shapes and vision layer are the same. No weight is read.
    """
    own = load_auto(AutoConfig, folder)
    for fact, advice in {**_KEYS, **native_model(config).own_keys}.items():
        got, wanted = getattr(own, fact, None), getattr(config, fact, None)
        if got != wanted:
            raise PartError(
                f"the recipe does not fit the projector of {folder}",
                got=f"{fact} {got}",
                wanted=f"{wanted}",
                do=advice,
            )
    stored = {}
    for name, one in validate_folder(folder).headers.items():
        head, found, rest = name.partition("multi_modal_projector.")
        if found and head in ("", "model."):
            stored[rest] = (name, one)
    check_shapes(
        f"the projector of {folder} does not fit the parts",
        {rest: (one.shape, f"in {one.file.name}") for rest, (_, one) in stored.items()},
        {name: tuple(weight.shape) for name, weight in projector.state_dict().items()},
        wanted_by="as the recipe's parts and projector have it",
        do="Take both parts from that folder: leave language.part and vision.part out",
    )
    return stored


def load_projector(projector: nn.Module, folder: Path, config: PreTrainedConfig) -> None:
    """Load the projector weights of a model folder into `projector`. Raises PartError as
    `check_projector` does.
    """
    weights = {}
    for rest, (name, one) in check_projector(projector, folder, config).items():
        with safe_open(one.file, "pt") as file:
            weights[rest] = file.get_tensor(name).float()
    projector.load_state_dict(weights)
