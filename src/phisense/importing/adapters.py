"""Applies LoRA weights to the model that they were trained on.

PEFT only warns about weights that match no module, and merges the rest, so here each weight is
matched by name before PEFT sees any, and the targets in the adapter's configuration must be those
that it holds weights for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn

from ..errors import PartError
from ..opening.documents import read_json_object
from ..opening.files import check_regular_file
from ..opening.headers import read_header
from .adapter_checks import (
    check_full_weights,
    check_lora_options,
    check_matrix_shapes,
    check_module_patterns,
    check_modules,
    check_ranks,
)
from .adapter_names import aliases, is_text_only, native_name
from .source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXTRA_FILES

_LORA = re.compile(r"^(.+)\.lora_([AB])(?:\.default)?\.weight$")


@dataclass(frozen=True)
class Adapter:
    """A checked adapter, by native names: LoRA pairs, and `full_weights` trained without LoRA.

    `native` means that PEFT can read the file's own names.
    """

    folder: Path
    config: LoraConfig
    lora: dict[str, dict[str, torch.Tensor]]
    full_weights: dict[str, torch.Tensor]
    native: bool


def open_adapter(model: Any, folder: Path) -> Adapter:
    """Read and check an adapter for `model`, which is not modified.

    Raises PartError if it is more than LoRA, a weight matches no module, or a target module has no
    weights.
    """
    facts = read_json_object(folder / ADAPTER_CONFIG)
    if facts.get("peft_type") != "LORA":
        raise PartError(
            f"the adapter {folder} is of another kind", got=facts.get("peft_type"), wanted="LORA"
        )
    check_lora_options(folder, facts)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        stored = _weights(folder, ADAPTER_WEIGHTS)
        whole = {
            name: weight
            for file in EXTRA_FILES
            if (folder / file).is_file()
            for name, weight in _weights(folder, file).items()
        }
    except PartError:
        raise
    except Exception as error:  # any error of PEFT with an option of the wrong type
        raise PartError(
            f"the adapter {folder} cannot be read",
            got=" ".join(str(error).split())[:200] or type(error).__name__,
        ) from error
    own_names = not any((folder / file).is_file() for file in EXTRA_FILES)
    own_names &= all(name == f"base_model.model.{native_name(name)}" for name in stored)
    lora: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in stored.items():
        found = _LORA.match(native_name(name))
        if found:
            lora.setdefault(found[1], {})[found[2]] = weight
        else:
            whole[name] = weight
    check_ranks(folder, lora, config)
    check_module_patterns(model, folder, config)
    text_only = any(is_text_only(name) for name in stored)
    check_modules(model, folder, lora, config, text_only)
    check_matrix_shapes(model, folder, lora)
    whole = {native_name(name): weight for name, weight in whole.items()}
    check_full_weights(
        model,
        folder,
        whole,
        [native_name(f"{one}.").rstrip(".") for one in config.modules_to_save or ()],
    )
    return Adapter(folder, config, lora, whole, own_names)


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file in the folder, after its header was checked."""
    check_regular_file(folder / name, folder)
    read_header(folder / name)
    found: dict[str, torch.Tensor] = load_file(folder / name)
    odd = [
        one
        for one, weight in found.items()
        if weight.is_floating_point() and not weight.isfinite().all()
    ]
    if odd:
        raise PartError(f"the adapter {folder} holds weights that are no numbers", got=odd[0])
    return found


def is_peft_compatible(model: Any, adapter: Adapter) -> bool:
    """Whether the adapter's names and targets are those that PEFT itself would use on this
    model.
    """
    if not adapter.native or adapter.config.target_modules == "all-linear":
        return adapter.native
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name for name in linear if check_target_module_exists(adapter.config, name)} == set(
        adapter.lora
    )


def load_with_peft(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter loaded by PEFT alone, without this module's name conversion, in
    float32.
    """
    config = copy.deepcopy(adapter.config)
    config.task_type = None  # it would select a task-specific wrapper
    config.inference_mode = True
    try:
        adapted = PeftModel(model, config)
        report = adapted.load_adapter(str(adapter.folder), "default", torch_device="cpu")
    except Exception as error:  # any error of PEFT
        raise PartError(
            f"the adapter {adapter.folder} does not fit the base",
            got=" ".join(str(error).split())[:200],
        ) from error
    _check_all_placed(adapter.folder, report)
    return adapted.eval()


@torch.no_grad()
def apply_adapter(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter's LoRA layers, not merged, and its fully trained weights copied in,
    in float32.
    """
    own = dict(model.named_parameters())
    for name, weight in adapter.full_weights.items():
        own[name].copy_(weight)
    return _adapted(model, adapter.folder, adapter.lora, adapter.config)


def _adapted(
    model: Any, folder: Path, lora: dict[str, dict[str, torch.Tensor]], config: LoraConfig
) -> Any:
    ranks = {name: int(pair["A"].shape[0]) for name, pair in lora.items()}
    alphas = {}
    for name in lora:
        keys = [get_pattern_key(list(config.alpha_pattern), one) for one in aliases(name)]
        alphas[name] = next(
            (config.alpha_pattern[key] for key in keys if key in config.alpha_pattern),
            config.lora_alpha,
        )
    placed = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=sorted(lora),
        rank_pattern=_exact(ranks),
        alpha_pattern=_exact(alphas),
        use_rslora=config.use_rslora,
        fan_in_fan_out=config.fan_in_fan_out,
        inference_mode=True,
    )
    adapted = PeftModel(model, placed)
    weights = {
        f"base_model.model.{name}.lora_{side}.weight": weight.float()
        for name, pair in lora.items()
        for side, weight in pair.items()
    }
    try:
        loaded = set_peft_model_state_dict(adapted, weights)
    except RuntimeError as error:
        raise PartError(
            f"the adapter {folder} does not fit the base", got=" ".join(str(error).split())[:200]
        ) from error
    _check_all_placed(folder, loaded)
    return adapted.eval()


def _check_all_placed(folder: Path, report: Any) -> None:
    """Raises PartError for each weight of an adapter that PEFT found no place or no value for: it
    only warns.
    """
    lost = [*report.unexpected_keys, *(key for key in report.missing_keys if ".lora_" in key)]
    if lost:
        raise PartError(
            f"the adapter {folder} does not fit the base",
            got=f"{len(lost)} weights without a place, such as {lost[0]}",
        )


def _exact(values: Mapping[str, float]) -> dict[str, float]:
    """Escape the names, which PEFT reads as regular expressions."""
    return {re.escape(name): value for name, value in values.items()}
