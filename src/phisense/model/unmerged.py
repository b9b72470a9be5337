"""Loads a finished run's model unmerged: the base as in training, with the trained adapter. Used by
`merge` and `evaluate RUN`.

The base is loaded in the same way and dtype as in training: its 4-bit codes are quantized from the
stored weights, and every other weight is rounded as it was in training. After that everything is
float32, with each 4-bit matrix replaced by its dequantized weight. (bitsandbytes' own layers are
not used: for inference on some CPUs they repack their weights and compute in bfloat16.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights

from .. import artifacts
from ..errors import MergeError, PartError, UsageError
from ..opening.shape_checks import check_shapes
from ..parts import resolve_part
from ..pipeline.results import RUN_KIND
from ..recipe import Recipe, load_recorded_recipe
from ..vision.encoders.loading import load_vision_tower
from .arithmetic import choose_arithmetic
from .assembly import Phi3WithProjector
from .device import DTYPES, describe_machine
from .projectors.image_tokens import nested_pool
from .provenance import check_parts_unchanged
from .quantized import codes_digest, dequantize, plain_digest
from .trainable import (
    ADAPTER_FOLDER,
    WEIGHTS_FOLDER,
    freeze_all_but_projector,
    load_trainable,
    unfreeze_language,
)

#: Keys of a finished run's recipe that may be changed: where parts and data are now, and how the
#: model is measured and written.
_CHANGEABLE_KEYS = (
    "language.part=",
    "vision.part=",
    "vision.size=",
    "speech.part=",
    "start=",
    "data.images=",
    "data.held_out=",
    "merge.",
    "evaluate.",
)


def load_run_recipe(run: Path, changes: Sequence[str] = ()) -> Recipe:
    """Recipe of a finished run, with `root` set to where the run is now, and with `changes`,
    key=value.

    Raises ArtifactError for an unfinished run, UsageError for a change to what was trained.
    """
    for change in changes:
        if not change.startswith(_CHANGEABLE_KEYS):
            raise UsageError(
                "a run's recipe cannot be changed there",
                got=change,
                wanted=", ".join(f"{key.rstrip('.=')}" for key in _CHANGEABLE_KEYS),
            )
    artifacts.read_manifest(run, kind=RUN_KIND)
    root = orjson.dumps(str(run.resolve().parent.parent)).decode()
    return load_recorded_recipe(run / "recipe.yaml", (f"root={root}", *changes))


def load_run(run: Path, recipe: Recipe, device: str, image_tokens: int | None) -> Phi3WithProjector:
    """Load the whole model of a finished run for inference, including its vision tower; `recipe` is
    what `load_run_recipe` returned. Raises PartError for changed parts.
    """
    check_parts_unchanged(run, recipe)
    built = load_with_adapter(recipe, run, device)
    attach_vision_tower(built, recipe, torch.float32)
    built.pool = nested_pool(built.model.config, image_tokens)
    built.arithmetic = choose_arithmetic("evaluate", built.device, compute_dtype="float32")
    return built


def load_with_adapter(
    recipe: Recipe,
    run: Path,
    device: str,
    *,
    original: bool = False,
    rename: Callable[[str], str] = str,
) -> Phi3WithProjector:
    """Load the base with the run's adapter in float32, or with its weights after full fine-tuning.

    `original` keeps the base as stored instead of quantizing and rounding it as in training. The
    vision tower is left out unless it was trained. Raises MergeError if a weight, renamed by
    `rename`, matches no module, PartError if the base is not the one used in training.
    """
    facts = artifacts.read_json(run / "train.json")
    quantize = recipe.train.quantize and not original
    as_held = recipe.train.lora is not None and not original
    dtype = (
        DTYPES[facts.get("arithmetic", {}).get("format", "float32")] if as_held else torch.float32
    )
    built = Phi3WithProjector.from_recipe(
        recipe,
        quantize=quantize,
        stored_features=not recipe.tunes_vision,
        device=device,
        dtype=dtype,
    )
    if recipe.train.lora is None:
        freeze_all_but_projector(built)
        load_trainable(unfreeze_language(built, recipe), run / WEIGHTS_FOLDER, rename)
        built.model.requires_grad_(False)
        return built
    if as_held:
        _check_base(built, facts, run)
    dequantize(built.model)
    built.model.float()
    config = LoraConfig.from_pretrained(str(run / ADAPTER_FOLDER))
    config.inference_mode = True
    adapted = PeftModel(built.model, config)
    weights = {
        rename(name): weight
        for name, weight in load_peft_weights(str(run / ADAPTER_FOLDER), device="cpu").items()
    }
    _check_fits(adapted, weights, run)
    loaded = set_peft_model_state_dict(adapted, weights)
    lost = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if ".lora_" in key)]
    if lost:
        raise MergeError(
            "the adapter does not fit the base",
            got=f"{len(lost)} weights without a place or a value, such as {lost[0]}",
            wanted="each in its place",
        )
    built.model = adapted.eval().get_base_model()  # the LoRA layers stay in it, unmerged
    return built


def _check_fits(adapted: PeftModel, weights: dict[str, torch.Tensor], run: Path) -> None:
    """Raises MergeError unless the adapter's weights match the model: PEFT ignores weights that
    match nothing.
    """
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    homeless = sorted(weights.keys() - own.keys())
    if homeless:
        raise MergeError(
            "the adapter does not fit the base",
            got=f"{len(homeless)} weights without a place, such as {homeless[0]}",
        )
    check_shapes(
        "the adapter does not fit the base",
        {
            name: (tuple(weight.shape), f"in {run / ADAPTER_FOLDER}")
            for name, weight in weights.items()
        },
        {name: tuple(weight.shape) for name, weight in own.items()},
        wanted_by="as the base and adapter_config.json have it",
        do="Take the whole run folder as phisense train wrote it, or train again",
        error_type=MergeError,
    )


def attach_vision_tower(built: Phi3WithProjector, recipe: Recipe, dtype: torch.dtype) -> None:
    """Put the vision tower in place of StoredFeatures, unless it was trained and is there
    already.
    """
    if not recipe.tunes_vision:
        vision = recipe.vision
        tower = load_vision_tower(resolve_part(vision.part), vision.encoder, dtype, vision.size)
        built.model.model.vision_tower = tower.eval().to(built.device)


def _check_base(built: Phi3WithProjector, facts: dict[str, Any], run: Path) -> None:
    """Raises PartError unless the base in memory equals the one used in training, weight for
    weight; files are not compared.

    The 4-bit codes are compared only if the same library version made them on the same kind of
    device: another may round the last digit of a division differently, which changes codes at a
    boundary.
    """
    found = {"plain_weights": plain_digest(built.model)}
    then = facts.get("arithmetic", {})
    here = describe_machine(built.device).libraries.get("bitsandbytes")
    if (
        then.get("device") == built.device.type
        and then.get("libraries", {}).get("bitsandbytes") == here
    ):
        found["four_bit_codes"] = codes_digest(built.model)
    for name, value in found.items():
        wanted = facts.get(name)
        if wanted is not None and value != wanted:
            raise PartError(
                f"the base is not the one that {run} was trained on",
                got=f"{name.replace('_', ' ')} {str(value)[:12]}",
                wanted=wanted[:12],
                do="Put the language part back as it was, or train again",
            )
