"""What makes an adapter unusable: anything but plain LoRA, weights that match no module of the
base, modules without weights, wrong shapes, and untrusted patterns that cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from ..errors import PartError
from ..opening.sandbox import check_patterns
from ..opening.shape_checks import check_shapes
from .adapter_names import aliases, native_name
from .source import ADAPTER_WEIGHTS

_PLAIN_NAME = re.compile(r"[\w.]+")

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


def check_lora_options(folder: Path, facts: Mapping[str, object]) -> None:
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


def check_ranks(folder: Path, lora: dict[str, dict[str, torch.Tensor]], config: LoraConfig) -> None:
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


def check_module_patterns(model: Any, folder: Path, config: LoraConfig) -> None:
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
    names = sorted({alias for name, _ in model.named_modules() if name for alias in aliases(name)})
    wrong = check_patterns(patterns, names)
    if wrong is not None:
        raise PartError(
            f"the adapter {folder} names its modules by a pattern that cannot be used",
            got=wrong,
            wanted="names of modules",
        )


def check_modules(
    model: Any,
    folder: Path,
    lora: dict[str, dict[str, torch.Tensor]],
    config: LoraConfig,
    text_only: bool,
) -> None:
    """Raises PartError unless the adapter has weights for exactly the linear modules that its
    target modules name; `text_only` looks at those of the language model alone.
    """
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
        and any(check_target_module_exists(config, one) for one in aliases(name))
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


def check_matrix_shapes(model: Any, folder: Path, lora: dict[str, dict[str, torch.Tensor]]) -> None:
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


def check_full_weights(
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
