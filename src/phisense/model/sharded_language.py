"""Loads a language part in shards: first its outline, which takes no memory, then layer by layer
its weights, of which each process keeps its rows.

A whole model would not fit where sharding is needed. So adapters are put on the outline, and each
layer is read from the safetensors, checked, sharded and let go before the next one is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import PartError
from ..families import family_of_config
from ..opening.headers import StoredTensor
from ..opening.shape_checks import (
    build_meta_model,
    check_stored_weights,
    normalize_weight_name,
)
from ..parts import check_finite, stored_weights
from .sharding import is_sharded, shard_module
from .tied_head import KEY

#: A weight's name in its file, and its header entry, by its normalized name.
StoredNames = Mapping[str, tuple[str, StoredTensor]]
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def outline_language(folder: Path, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The language model of a folder, which may be a model folder, with parameters of the right
    shapes that take no memory and are all zero, until `load_in_shards`.

    Raises PartError for weights that do not fit the configuration.
    """
    model_class: Any = family_of_config(config).load_class()
    language = build_meta_model(model_class, config, folder)
    stored = _stored(folder)
    check_stored_weights(folder, language, {name: entry for name, (_, entry) in stored.items()})
    tied = _is_tied(config, stored)
    setattr(config, KEY, tied)
    config.dtype = dtype
    for module in language.modules():
        for name, parameter in module.named_parameters(recurse=False):
            nothing = torch.zeros((), dtype=dtype, device=device).expand(parameter.shape)
            setattr(module, name, nn.Parameter(nothing, requires_grad=False))
    if tied:
        language.lm_head.weight = language.model.embed_tokens.weight
    _compute_buffers(language, device)
    return language.eval()


def _compute_buffers(language: Any, device: torch.device) -> None:
    """Buffers are stored nowhere: a module that has some, as rotary embeddings, is built anew."""
    for name, module in list(language.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            language.set_submodule(name, type(module)(language.config).to(device))
    assert not any(buffer.is_meta for buffer in language.buffers()), "a buffer without values"


def _is_tied(config: Any, stored: StoredNames) -> bool:
    """Whether the output matrix is the embedding: as the configuration says, unless both are stored
    and differ. See tied_head.py.
    """
    if not getattr(config, KEY) or _HEAD not in stored:
        return bool(getattr(config, KEY))
    return torch.equal(_read(stored, _TABLE), _read(stored, _HEAD))


def load_in_shards(model: Any, folder: Path, device: torch.device) -> None:
    """Load the weights of an outlined language part, with or without adapters on it, and shard its
    layers. `model` is the native one; its projector stays whole until `shard_root`.

    Raises PartError for weights that are no numbers.
    """
    language, head = model.model.language_model, model.lm_head
    tied = head.weight is language.embed_tokens.weight
    stored = _stored(folder)
    inside = {id(module): f"model.{name}." for name, module in language.named_modules()}
    groups = list(language.layers) if tied else [language.embed_tokens, *language.layers]
    for group in groups:
        _load(group, inside[id(group)], stored, folder)
        shard_module(group, device)
    if not tied:
        _load(head, "lm_head.", stored, folder)
        shard_module(head, device)
    _load(language, "model.", stored, folder)
    if tied:
        head.weight = language.embed_tokens.weight


def _load(module: nn.Module, prefix: str, stored: StoredNames, folder: Path) -> None:
    """Replace the outlined parameters of a module by the stored weights, in their dtype. Adapters,
    and what is sharded already, stay as they are.
    """
    for name, outlined in list(module.named_parameters()):
        if ".lora_" in name or is_sharded(outlined):
            continue
        weight = _read(stored, prefix + name.replace(".base_layer.", "."))
        # a copy, or the whole file stays mapped as long as one of its weights is used
        made = torch.empty(outlined.shape, dtype=outlined.dtype, device=outlined.device)
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(made.copy_(weight), requires_grad=outlined.requires_grad)
        check_finite(name, parameter, folder)
        setattr(module.get_submodule(owner), leaf, parameter)


def _stored(folder: Path) -> StoredNames:
    found = stored_weights(folder)
    if any("language_model." in name for name in found):
        found = stored_weights(folder, "language_model")
    return {normalize_weight_name(name): one for name, one in found.items()}


def _read(stored: StoredNames, name: str) -> torch.Tensor:
    """A stored weight. Raises PartError if its file cannot be read."""
    there, entry = stored[normalize_weight_name(name)]
    try:
        with safe_open(entry.file, "pt") as file:
            found: torch.Tensor = file.get_tensor(there)
            return found
    except (SafetensorError, OSError) as error:
        raise PartError(
            f"{entry.file} cannot be read",
            got=str(error).splitlines()[0],
            do="Download the whole part again",
        ) from error
