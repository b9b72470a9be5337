"""The model folder: what `merge` writes and everything else reads. It opens in plain transformers without phisense.

config.json, generation_config.json, *.safetensors      the native model
processor_config.json, tokenizer files, chat template   the native processor
merge_report.json                                       what the merge measured
training.json                                           what was trained, on what, with which curves: see history.py
manifest.json                                           written last: phisense's facts and every file's sha256
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ..artefact import MANIFEST, check_is_model, read_json
from ..errors import ArtefactError
from ..prompt import Prompt
from .arithmetic import INFERENCE, Step, choose
from .assembly import Phi3WithProjector, _window
from .device import format_name
from .projectors import nested_pool
from .quantized import allow_inference_layout, compute_in, keep_readable, nf4

KIND = "model folder"
WHOLE = ("model.vision_tower", "model.multi_modal_projector", "lm_head")  # never quantised


def load_model(
    folder: Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    picture_tokens: int | None = None,
    quantise: bool = False,
    step: Step = "evaluate",
) -> Phi3WithProjector:
    """Opens a model folder for inference. What it computes in is `dtype`, or what arithmetic.py chooses for `step`.

    `picture_tokens` chooses among those that a model of nested training serves; `quantise` holds the language part in NF4.
    Raises ArtefactError if the folder is missing, unfinished, or holds another kind of model.
    """
    check_is_model(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type not in ("llava", "aya_vision"):
            raise ArtefactError(
                f"{folder} holds another kind of model", got=config.model_type, wanted="a merged model folder", do="Run phisense merge RUN"
            )
        pool = nested_pool(config, picture_tokens)
        stored = getattr(torch, str(config.dtype).removeprefix("torch.")) if config.dtype else torch.float32
        arithmetic = choose(step, device, asked=_asked(folder), stored=stored)
        if dtype is not None:
            arithmetic = replace(choose(step, device, asked=format_name(dtype)), dtype=dtype, reason="it was asked for")
        dtype, where = arithmetic.dtype, arithmetic.device
        how: dict[str, Any] = {"quantization_config": nf4(dtype, WHOLE)} if quantise else {}
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32 if quantise else dtype, device_map={"": where}, trust_remote_code=False, **how
        )
        processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{folder} cannot be opened", got=str(error).splitlines()[0], do="Run phisense merge again") from error
    if quantise:
        compute_in(model, dtype)
    keep_readable(model)
    if arithmetic.layout == INFERENCE:
        allow_inference_layout(model)
    return Phi3WithProjector(model.eval(), processor, Prompt(processor.tokenizer), window(config), pool, arithmetic)


def _asked(folder: Path) -> str:
    """The number format that the recipe of the model asked for."""
    manifest = folder / MANIFEST
    found = read_json(manifest) if manifest.is_file() else {}
    return str(found["about"].get("compute_dtype", "auto")) if found.get("kind") == KIND else "auto"


def window(config: Any) -> int:
    """Tokens that a conversation with a model of this configuration may have."""
    return _window(config, 4096)


def save_model(loaded: Phi3WithProjector, folder: Path) -> None:
    """Writes model and processor into `folder`, without a manifest: the caller stages the folder."""
    for config in (loaded.model.config, loaded.model.config.text_config, loaded.model.config.vision_config):
        config._name_or_path = ""  # where the parts lay on this machine is nobody else's business
    loaded.model.save_pretrained(folder, max_shard_size="4GB", state_dict=_published(loaded.model))
    loaded.processor.save_pretrained(folder)


def _published(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names that published LLaVA folders have: a CLIP or SigLIP tower says `vision_model.`, as vLLM's loader wants.

    transformers has dropped that from its classes and reads both; a model it has opened it saves as it found it.
    """
    weights: dict[str, torch.Tensor] = model.state_dict()
    opened = getattr(model, "_weight_conversions", None) is not None
    if opened or not model.config.vision_config.model_type.startswith(("clip", "siglip")):
        return weights
    tower = "model.vision_tower."
    return {
        f"{tower}vision_model.{name.removeprefix(tower)}" if name.startswith(tower) else name: weight for name, weight in weights.items()
    }
