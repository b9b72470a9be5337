"""LoRA weights onto the model that they were trained on. PEFT only warns of weights without a place, and merges what is left, so here each
one is placed by name before PEFT sees any, and what the adapter says it was put on must be what it holds weights for.

Names are those of the native class in transformers now. Adapters have others too, by where and when they were trained:

    base_model.model.model.language_model.layers.0...     the native class, now
    base_model.model.language_model.model.layers.0...     the same before transformers 4.52
    base_model.model.model.layers.0...                    LLaVA's own classes, or the text part alone
    ... mm_projector.0 and mm_projector.2                 LLaVA's own name of the projector
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import PartError
from .source import ADAPTER, ADAPTER_CONFIG, BESIDE, read_facts

_TEXT = re.compile(r"^model\.(?=layers\.|embed_tokens|norm\.)")
_RENAMES = (
    (re.compile(r"^(?:base_model\.model\.)+"), ""),
    (re.compile(r"\.modules_to_save(?:\.default)?\."), "."),
    (re.compile(r"^language_model\.lm_head"), "lm_head"),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^(?:model\.)?mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^(?:model\.)?mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^(?=vision_tower\.|multi_modal_projector\.)"), "model."),
    (re.compile(r"^model\.vision_tower\.vision_model\."), "model.vision_tower."),
    (_TEXT, "model.language_model."),
)
_LORA = re.compile(r"^(.+)\.lora_([AB])(?:\.default)?\.weight$")


def native(name: str) -> str:
    """A weight's name in the native class."""
    for pattern, by in _RENAMES:
        name = pattern.sub(by, name)
    return name


#: Options that `put_on` carries over, those that only say where (each weight's place is checked), and those that change nothing computed.
_CARRIED = {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "modules_to_save"}
_WHERE = {"exclude_modules", "layers_to_transform", "layers_pattern"}
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "runtime_config"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
#: How A and B began; by PEFT's source all others take something out of the base first, or read what no adapter holds.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits: LoRA's pairs and what was trained `whole`, by native names, and whether PEFT reads the file's own names so."""

    folder: Path
    config: LoraConfig
    lora: dict[str, dict[str, torch.Tensor]]
    whole: dict[str, torch.Tensor]
    native: bool


def open_adapter(model: Any, folder: Path) -> Adapter:
    """Reads an adapter of `model`, which stays as it is.

    Raises PartError if it is more than LoRA, a weight of it finds no place in the model, or a module it names has no weights.
    """
    facts = read_facts(folder / ADAPTER_CONFIG)
    if facts.get("peft_type") != "LORA":
        raise PartError(f"the adapter {folder} is of another kind", got=facts.get("peft_type"), wanted="LORA")
    _check_options(folder, facts)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        stored = load_file(folder / ADAPTER)
        whole = {name: weight for file in BESIDE if (folder / file).is_file() for name, weight in load_file(folder / file).items()}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise PartError(f"the adapter {folder} cannot be read", got=str(error).splitlines()[0]) from error
    own_names = not any((folder / file).is_file() for file in BESIDE)
    own_names &= all(name == f"base_model.model.{native(name)}" for name in stored)
    lora: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in stored.items():
        found = _LORA.match(native(name))
        if found:
            lora.setdefault(found[1], {})[found[2]] = weight
        else:
            whole[name] = weight
    text_only = any(_TEXT.match(_RENAMES[0][0].sub("", name)) for name in stored)
    _check_places(model, folder, lora, config, text_only)
    whole = {native(name): weight for name, weight in whole.items()}
    _check_whole(model, folder, whole, [native(f"{one}.").rstrip(".") for one in config.modules_to_save or ()])
    return Adapter(folder, config, lora, whole, own_names)


def _check_options(folder: Path, facts: dict[str, Any]) -> None:
    """Raises PartError for an option that makes more of the adapter than A and B beside the base's own matrices, known to PEFT or not."""
    usual = LoraConfig().to_dict()
    left = facts.keys() - _CARRIED - _WHERE - _HARMLESS - {"init_lora_weights"}
    odd = sorted(name for name in left if facts[name] and facts[name] != usual.get(name))
    if odd:
        raise PartError(
            f"the adapter {folder} is more than LoRA",
            got=", ".join(f"{name} {facts[name]}"[:80] for name in odd),
            wanted="plain LoRA matrices",
        )
    start = facts.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise PartError(
            f"the adapter {folder} belongs to a changed base",
            got=f"init_lora_weights {start}, which takes a part out of the base before training",
            wanted="an adapter to the base as it is",
            do="Save it where it was trained with path_initial_model_for_weight_conversion, which makes plain LoRA of it",
        )


def fits_peft(model: Any, adapter: Adapter) -> bool:
    """Whether the adapter's names are those that PEFT itself would give it on this model."""
    if not adapter.native or adapter.config.target_modules == "all-linear":
        return adapter.native
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name for name in linear if check_target_module_exists(adapter.config, name)} == set(adapter.lora)


def by_peft(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter as PEFT's own loading puts it on: nothing of this module has a hand in it. float32 throughout."""
    config = copy.deepcopy(adapter.config)
    config.task_type = None  # which would choose a wrapper by what is done with it
    try:
        return PeftModel.from_pretrained(model, str(adapter.folder), config=config, torch_device="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise PartError(f"the adapter {adapter.folder} does not fit the base", got=" ".join(str(error).split())[:200]) from error


@torch.no_grad()
def put_on(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter beside its matrices, not yet merged, and whatever else was trained in place. float32 throughout."""
    own = dict(model.named_parameters())
    for name, weight in adapter.whole.items():
        own[name].copy_(weight)
    return _adapted(model, adapter.folder, adapter.lora, adapter.config)


def _check_places(model: Any, folder: Path, lora: dict[str, dict[str, torch.Tensor]], config: LoraConfig, text_only: bool) -> None:
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    homeless = sorted(set(lora) - linear)
    if homeless:
        raise PartError(
            f"the adapter {folder} does not fit the base",
            got=f"LoRA on {len(homeless)} modules that the base lacks, such as {homeless[0]}",
            wanted="modules of the base",
            do="Name the folder that the adapter was trained on with --base",
        )
    half = sorted(name for name, pair in lora.items() if set(pair) != {"A", "B"})
    if half:
        raise PartError(f"the adapter {folder} is incomplete", got=f"one of lora_A and lora_B of {half[0]}", wanted="both")
    part = "model.language_model." if text_only else ""
    aimed = {name for name in linear if name.startswith(part) and any(check_target_module_exists(config, one) for one in _aliases(name))}
    if config.target_modules == "all-linear":
        aimed = {name for name in linear if name != "lm_head"}
    targets = config.target_modules if isinstance(config.target_modules, (set, list)) else ()
    idle = sorted(one for one in targets if not any(name == native(one) or name.endswith(f".{one}") for name in lora))
    if idle or aimed != set(lora):
        odd = sorted(aimed ^ set(lora))
        raise PartError(
            f"the adapter {folder} was not put where it says",
            got=f"no weights for the target {idle[0]}" if idle else f"{len(lora)} modules with weights, {len(odd)} off, such as {odd[0]}",
            wanted=f"weights for each of the {len(aimed)} modules of the base that its target_modules name",
            do="The base may be another than it was trained on: name that with --base",
        )


def _aliases(name: str) -> Iterable[str]:
    """What a module is called now, was called before, and is called in the text part alone."""
    yield name
    old = re.sub(r"^model\.(?=vision_tower|multi_modal_projector)", "", re.sub(r"^model\.language_model\.", "language_model.model.", name))
    yield old
    yield re.sub(r"^vision_tower\.", "vision_tower.vision_model.", old)
    yield re.sub(r"^model\.language_model\.", "model.", name)


def _check_whole(model: Any, folder: Path, whole: dict[str, torch.Tensor], saved: Iterable[str]) -> None:
    """Weights that were trained as they are: the projector, as a rule, all of it or none."""
    own = dict(model.named_parameters())
    for name, weight in whole.items():
        if name not in own or own[name].shape != weight.shape:
            raise PartError(
                f"the adapter {folder} does not fit the base",
                got=f"{name} of shape {tuple(weight.shape)}",
                wanted=f"shape {tuple(own[name].shape)}" if name in own else "a weight of the base",
                do="Name the folder that it was trained on with --base",
            )
    modules = {name.rpartition(".")[0] if "multi_modal_projector" not in name else "model.multi_modal_projector" for name in whole}
    modules |= {name for name, _ in model.named_modules() if any(name == one or name.endswith(f".{one}") for one in saved)}
    lacking = sorted(name for name in own if name not in whole and any(name.startswith(f"{module}.") for module in modules))
    lacking += [one for one in saved if not any(f".{one}." in f".{name}" for name in whole)]
    if lacking:
        raise PartError(f"the adapter {folder} is incomplete", got=f"no {lacking[0]}", wanted="all of what was trained along")


def _adapted(model: Any, folder: Path, lora: dict[str, dict[str, torch.Tensor]], config: LoraConfig) -> Any:
    ranks = {name: int(pair["A"].shape[0]) for name, pair in lora.items()}
    alphas = {}
    for name in lora:
        keys = [get_pattern_key(list(config.alpha_pattern), one) for one in _aliases(name)]
        alphas[name] = next((config.alpha_pattern[key] for key in keys if key in config.alpha_pattern), config.lora_alpha)
    placed = LoraConfig(
        r=config.r, lora_alpha=config.lora_alpha, target_modules=sorted(lora), rank_pattern=_exact(ranks), alpha_pattern=_exact(alphas),
        use_rslora=config.use_rslora, fan_in_fan_out=config.fan_in_fan_out, inference_mode=True,
    )  # fmt: skip
    adapted = PeftModel(model, placed)
    weights = {
        f"base_model.model.{name}.lora_{side}.weight": weight.float() for name, pair in lora.items() for side, weight in pair.items()
    }
    try:
        loaded = set_peft_model_state_dict(adapted, weights)
    except RuntimeError as error:
        raise PartError(f"the adapter {folder} does not fit the base", got=" ".join(str(error).split())[:200]) from error
    lost = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if ".lora_" in key)]
    if lost:
        raise PartError(f"the adapter {folder} does not fit the base", got=f"{len(lost)} weights without a place, such as {lost[0]}")
    return adapted.eval()


def _exact(values: dict[str, Any]) -> dict[str, Any]:
    """PEFT reads these names as regular expressions."""
    return {re.escape(name): value for name, value in values.items()}
