"""Applies LoRA weights to the model that they were trained on.

PEFT only warns about weights that match no module, and merges the rest, so here each weight is
matched by name before PEFT sees any, and the targets in the adapter's configuration must be those
that it holds weights for.

Names are converted to those of the native class in current transformers. Adapters use other names,
too, depending on where and when they were trained:

    base_model.model.model.language_model.layers.0...   the native class, current
    base_model.model.language_model.model.layers.0...   the same before transformers 4.52
    base_model.model.model.layers.0...                  LLaVA's classes, or the text part alone
    ... mm_projector.0 and mm_projector.2               LLaVA's name of the projector
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
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
from ..opening.sandbox import check_patterns
from ..opening.shape_checks import check_shapes
from .source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXTRA_FILES

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
_PLAIN_NAME = re.compile(r"[\w.]+")
_LORA = re.compile(r"^(.+)\.lora_([AB])(?:\.default)?\.weight$")


def native_name(name: str) -> str:
    """Convert a weight's name to that of the native class."""
    for pattern, by in _RENAMES:
        name = pattern.sub(by, name)
    return name


#: Options that `apply_adapter` carries over, those that only select modules (each weight's module
#: is checked), and those without effect on the result.
_SUPPORTED_OPTIONS = {
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
    "modules_to_save",
}
_PLACEMENT_OPTIONS = {"exclude_modules", "layers_to_transform", "layers_pattern"}
_IGNORED_OPTIONS = {
    *(
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "runtime_config",
    ),
    *(
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
    ),
}
#: Initializations of A and B that leave the base unchanged; all others in PEFT's source modify it
#: first, or need data that no adapter holds.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")


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
    _check_options(folder, facts)
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
    _check_ranks(folder, lora, config)
    _check_patterns(model, folder, config)
    text_only = any(_TEXT.match(_RENAMES[0][0].sub("", name)) for name in stored)
    _check_places(model, folder, lora, config, text_only)
    _check_shapes(model, folder, lora)
    whole = {native_name(name): weight for name, weight in whole.items()}
    _check_whole(
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


def _check_ranks(
    folder: Path, lora: dict[str, dict[str, torch.Tensor]], config: LoraConfig
) -> None:
    """Check configured ranks against the stored ones: PEFT allocates matrices of the configured
    ranks before it reads any.
    """
    stored = {
        int(pair["A"].shape[0]) for pair in lora.values() if "A" in pair and pair["A"].dim() == 2
    }
    told = [config.r, *(config.rank_pattern or {}).values()]
    alphas = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
    if not all(type(one) is int and 0 < one <= max(stored, default=0) for one in told):
        raise PartError(
            f"the adapter {folder} does not fit its weights",
            got=f"rank {str(told)[:80]}",
            wanted=f"{sorted(stored)}",
        )
    if not all(isinstance(one, (int, float)) and abs(one) < 1e6 for one in alphas):
        raise PartError(
            f"the adapter {folder} cannot be read",
            got=f"lora_alpha {str(alphas)[:80]}",
            wanted="a number",
        )


def _check_patterns(model: Any, folder: Path, config: LoraConfig) -> None:
    """Check the adapter's regular expressions, which are untrusted, against the module names in a
    process that can be killed.
    """
    found = [
        config.target_modules,
        getattr(config, "exclude_modules", None),
        getattr(config, "layers_pattern", None),
    ]
    patterns = [one for one in found if isinstance(one, str) and one != "all-linear"]
    patterns += [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]
    patterns = [one for one in patterns if not _PLAIN_NAME.fullmatch(one)]
    if not patterns:
        return
    names = sorted({alias for name, _ in model.named_modules() if name for alias in _aliases(name)})
    wrong = check_patterns(patterns, names)
    if wrong is not None:
        raise PartError(
            f"the adapter {folder} names its modules by a pattern that cannot be used",
            got=wrong,
            wanted="names of modules",
        )


def _check_options(folder: Path, facts: dict[str, Any]) -> None:
    """Raises PartError for an option, known to PEFT or not, that makes the adapter more than plain
    LoRA matrices.
    """
    usual = LoraConfig().to_dict()
    left = (
        facts.keys()
        - _SUPPORTED_OPTIONS
        - _PLACEMENT_OPTIONS
        - _IGNORED_OPTIONS
        - {"init_lora_weights"}
    )
    odd = sorted(name for name in left if facts[name] and facts[name] != usual.get(name))
    if odd:
        raise PartError(
            f"the adapter {folder} is more than LoRA",
            got=", ".join(f"{name} {facts[name]}"[:80] for name in odd),
            wanted="plain LoRA matrices",
        )
    start = facts.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_INITS:
        raise PartError(
            f"the adapter {folder} belongs to a changed base",
            got=f"init_lora_weights {start}, which takes a part out of the base before training",
            wanted="an adapter to the base as it is",
            do=(
                "Save it where it was trained with path_initial_model_for_weight_conversion, which"
                " makes plain LoRA of it"
            ),
        )


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
    try:
        return PeftModel.from_pretrained(
            model, str(adapter.folder), config=config, torch_device="cpu"
        ).eval()
    except Exception as error:  # any error of PEFT
        raise PartError(
            f"the adapter {adapter.folder} does not fit the base",
            got=" ".join(str(error).split())[:200],
        ) from error


@torch.no_grad()
def apply_adapter(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter's LoRA layers, not merged, and its fully trained weights copied in,
    in float32.
    """
    own = dict(model.named_parameters())
    for name, weight in adapter.full_weights.items():
        own[name].copy_(weight)
    return _adapted(model, adapter.folder, adapter.lora, adapter.config)


def _check_places(
    model: Any,
    folder: Path,
    lora: dict[str, dict[str, torch.Tensor]],
    config: LoraConfig,
    text_only: bool,
) -> None:
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
        raise PartError(
            f"the adapter {folder} is incomplete",
            got=f"one of lora_A and lora_B of {half[0]}",
            wanted="both",
        )
    part = "model.language_model." if text_only else ""
    aimed = {
        name
        for name in linear
        if name.startswith(part)
        and any(check_target_module_exists(config, one) for one in _aliases(name))
    }
    if config.target_modules == "all-linear":
        aimed = {name for name in linear if name != "lm_head"}
    targets = config.target_modules if isinstance(config.target_modules, (set, list)) else ()
    idle = sorted(
        one
        for one in targets
        if not any(name == native_name(one) or name.endswith(f".{one}") for name in lora)
    )
    if idle or aimed != set(lora):
        odd = sorted(aimed ^ set(lora))
        raise PartError(
            f"the adapter {folder} was not put where it says",
            got=(
                f"no weights for the target {idle[0]}"
                if idle
                else f"{len(lora)} modules with weights, {len(odd)} off, such as {odd[0]}"
            ),
            wanted=(
                f"weights for each of the {len(aimed)} modules of the base that its target_modules"
                " name"
            ),
            do="The base may be another than it was trained on: name that with --base",
        )


def _check_shapes(model: Any, folder: Path, lora: dict[str, dict[str, torch.Tensor]]) -> None:
    """For a matrix `(N, K)`, A must be `(R, K)` and B `(N, R)`, with any rank R."""
    modules = dict(model.named_modules())
    got: dict[str, tuple[tuple[int, ...], str]] = {}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, pair in lora.items():
        rank = pair["A"].shape[0] if pair["A"].dim() else 0
        got |= {
            f"{name}.lora_{side}.weight": (tuple(weight.shape), f"in {ADAPTER_WEIGHTS}")
            for side, weight in pair.items()
        }
        wanted |= {
            f"{name}.lora_A.weight": (rank, modules[name].in_features),
            f"{name}.lora_B.weight": (modules[name].out_features, rank),
        }
    check_shapes(
        f"the adapter {folder} does not fit the base",
        got,
        wanted,
        wanted_by="as the base and the adapter's rank have it",
        do="Name the folder that the adapter was trained on with --base",
    )


def _aliases(name: str) -> Iterable[str]:
    """A module's current name, its earlier names, and its name in the text part alone."""
    yield name
    old = re.sub(
        r"^model\.(?=vision_tower|multi_modal_projector)",
        "",
        re.sub(r"^model\.language_model\.", "language_model.model.", name),
    )
    yield old
    yield re.sub(r"^vision_tower\.", "vision_tower.vision_model.", old)
    yield re.sub(r"^model\.language_model\.", "model.", name)


def _check_whole(
    model: Any, folder: Path, whole: dict[str, torch.Tensor], saved: Iterable[str]
) -> None:
    """Check the weights that were trained without LoRA, usually the projector: all weights of a
    module, or none.
    """
    own = dict(model.named_parameters())
    for name, weight in whole.items():
        if name not in own or own[name].shape != weight.shape:
            raise PartError(
                f"the adapter {folder} does not fit the base",
                got=f"{name} of shape {tuple(weight.shape)}",
                wanted=f"shape {tuple(own[name].shape)}" if name in own else "a weight of the base",
                do="Name the folder that it was trained on with --base",
            )
    modules = {
        (
            name.rpartition(".")[0]
            if "multi_modal_projector" not in name
            else "model.multi_modal_projector"
        )
        for name in whole
    }
    modules |= {
        name
        for name, _ in model.named_modules()
        if any(name == one or name.endswith(f".{one}") for one in saved)
    }
    lacking = sorted(
        name
        for name in own
        if name not in whole and any(name.startswith(f"{module}.") for module in modules)
    )
    lacking += [one for one in saved if not any(f".{one}." in f".{name}" for name in whole)]
    if lacking:
        raise PartError(
            f"the adapter {folder} is incomplete",
            got=f"no {lacking[0]}",
            wanted="all of what was trained along",
        )


def _adapted(
    model: Any, folder: Path, lora: dict[str, dict[str, torch.Tensor]], config: LoraConfig
) -> Any:
    ranks = {name: int(pair["A"].shape[0]) for name, pair in lora.items()}
    alphas = {}
    for name in lora:
        keys = [get_pattern_key(list(config.alpha_pattern), one) for one in _aliases(name)]
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
    lost = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if ".lora_" in key)]
    if lost:
        raise PartError(
            f"the adapter {folder} does not fit the base",
            got=f"{len(lost)} weights without a place, such as {lost[0]}",
        )
    return adapted.eval()


def _exact(values: Mapping[str, float]) -> dict[str, float]:
    """Escape the names, which PEFT reads as regular expressions."""
    return {re.escape(name): value for name, value in values.items()}
