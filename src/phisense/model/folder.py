"""The model folder: written by `merge`, read by every later step. It opens in plain transformers
without phisense.

config.json, generation_config.json, *.safetensors      the native model
four_bit/beside.safetensors                             the adapter, and the scales of the 4-bit
                                                        base beside which it was trained: see
                                                        adapter_beside.py
processor_config.json, tokenizer files, chat template   the native processor
merge_report.json                                       measurements of the merge
training.json                                           training record: see training_record.py
manifest.json                                           written last: phisense's facts and every
                                                        file's sha256
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from ..artifacts import MANIFEST, check_is_model, read_json
from ..conversations import IMAGE, Message
from ..errors import ArtifactError, PartError
from ..families import check_same_family, context_window, family_of_config
from ..opening import validate_folder
from ..opening.configs import check_usable_config
from ..opening.registered import composite_model_types
from ..opening.shape_checks import build_meta_model, check_stored_weights
from ..parts import load_auto, load_weights
from ..prompt import Prompt
from ..vision.encoders.base import ENCODERS, encoder_of
from .adapter_beside import has_beside, load_beside
from .arithmetic import INFERENCE, Step, choose_arithmetic
from .assembly import Phi3WithProjector, make_generation_config
from .device import dtype_name
from .four_bit import check_four_bit
from .projectors.config import native_class
from .projectors.image_tokens import nested_pool
from .quantized import allow_repacking, forbid_repacking, nf4_config, set_compute_dtype
from .tied_head import match_config_to_head

MODEL_KIND = "model folder"
NEVER_QUANTIZED = (
    "model.vision_tower",
    "model.multi_modal_projector",
    "lm_head",
)  # modules that stay unquantized


def load_model(
    folder: Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    image_tokens: int | None = None,
    quantize: bool = False,
    measured: bool = True,
    step: Step = "evaluate",
) -> Phi3WithProjector:
    """Load a model folder for inference. The compute dtype is `dtype`, or the one that
    arithmetic.py chooses for `step`.

    `image_tokens` selects one of the numbers that a model with nested training supports. `quantize`
    loads the language part in NF4, with the adapter beside it if the folder holds one; what 4 bits
    cost the model must have been `measured` (four_bit.py), except to measure it. Raises
    ArtifactError if the folder is missing, unfinished, damaged, or holds another kind of model,
    PartError if its files are rejected, FourBitError if 4 bits would lose what was trained.
    """
    config = open_model_config(folder)
    if quantize and measured:
        check_four_bit(folder)
    pool = nested_pool(config, image_tokens)
    stored = (
        getattr(torch, str(config.dtype).removeprefix("torch.")) if config.dtype else torch.float32
    )
    arithmetic = choose_arithmetic(
        step, device, compute_dtype=_recipe_compute_dtype(folder), stored=stored
    )
    if dtype is not None:
        arithmetic = replace(
            choose_arithmetic(step, device, compute_dtype=dtype_name(dtype)),
            dtype=dtype,
            reason="it was asked for",
        )
    dtype, where = arithmetic.dtype, arithmetic.device
    processor = open_processor(folder, config)
    model = _load_native(folder, config, where, dtype, quantize)
    forbid_repacking(model)
    if arithmetic.layout == INFERENCE:
        allow_repacking(model)
    prompt = Prompt(processor.tokenizer)
    # decoding strategy and length are not taken from the folder's generation_config.json
    model.generation_config = make_generation_config(prompt)
    return Phi3WithProjector(
        model.eval(), processor, prompt, context_window(config), pool, arithmetic
    )


def _load_native(
    folder: Path, config: Any, device: torch.device, dtype: torch.dtype, quantize: bool
) -> Any:
    """The native model, computing in `dtype`."""
    model_class = native_class(config)
    if not quantize:
        return load_weights(
            model_class, folder, config=config, dtype=dtype, device_map={"": device}
        )
    quantization = nf4_config(dtype, NEVER_QUANTIZED)
    if has_beside(folder):
        model = load_beside(model_class, folder, config, quantization, device, dtype)
    else:
        model = load_weights(
            model_class,
            folder,
            config=config,
            dtype=torch.float32,  # codes are quantized from the stored weights
            device_map={"": device},
            quantization_config=quantization,
        )
    set_compute_dtype(model, dtype)
    return model


def open_model_config(folder: Path) -> Any:
    """Configuration of a model folder. Raises ArtifactError if there is none, PartError if it is
    rejected.
    """
    check_is_model(folder)
    found = validate_folder(folder).documents["config.json"].get("model_type")
    if found not in composite_model_types():
        raise ArtifactError(
            f"{folder} holds another kind of model",
            got=found,
            wanted="a merged model folder",
            do="Run phisense merge RUN",
        )
    config = load_auto(AutoConfig, folder)
    check_usable_config(folder, config)
    return config


def check_weights(folder: Path, config: Any) -> None:
    """Raises PartError unless the stored weights match the configuration, by their headers; for
    readers of single weights.
    """
    check_stored_weights(
        folder,
        build_meta_model(native_class(config), config, folder),
        validate_folder(folder).headers,
    )


def open_processor(folder: Path, config: Any) -> Any:
    """The folder's native processor, tested on an image and a question.

    Raises PartError now, not at the first request, if it cannot process them as the model needs.
    """
    processor: Any = load_auto(AutoProcessor, folder)
    side = config.vision_config.image_size
    try:
        pixels = processor.image_processor(
            [Image.new("RGB", (side, side // 2 + 1))], return_tensors="pt"
        )["pixel_values"]
        shape = tuple(pixels.shape)
    except Exception as error:  # any error of a processor class with unusual but valid settings
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PartError(
            f"the picture processor of {folder} prepares nothing",
            got=said,
            do="Run phisense merge again",
        ) from error
    if shape != (1, 3, side, side) or not pixels.isfinite().all():
        raise PartError(
            f"{folder} prepares pictures otherwise than its tower takes them",
            got=shape,
            wanted=(1, 3, side, side),
            do="Check processor_config.json against config.json",
        )
    check_tokenizer(folder, processor.tokenizer, config)
    return processor


def check_tokenizer(folder: Path, tokenizer: Any, config: Any) -> None:
    """Raises PartError unless the tokenizer encodes a question as the model needs it: whole chat
    tags, ids within the vocabulary.
    """
    rows, image = config.text_config.vocab_size, config.image_token_index
    try:
        prompt = Prompt(tokenizer)
        ids = prompt.render_for_completion(
            [Message("user", f"{IMAGE}\nWhat is 12 + 3, “née”?\n\t🙂 {'x' * 99}")], [2]
        )
        ids += tokenizer("a b\nc", add_special_tokens=False)["input_ids"]
        most = max(*ids, *tokenizer.get_vocab().values())
        prompt.decode(ids)
    except PartError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PartError(
            f"the tokenizer of {folder} does not read"
            f" {family_of_config(config.text_config).title}'s turns",
            got=said,
            do="Run phisense merge again",
        ) from error
    if most >= max(rows, 2) and rows != 1:
        raise PartError(
            f"the tokenizer of {folder} has more tokens than the model rows",
            got=f"id {most}",
            wanted=f"below {rows}",
        )
    if rows != 1:  # the vision folder of an export has one row
        check_same_family(config.text_config, tokenizer, folder)
    if prompt.image_id != image:
        raise PartError(
            f"the tokenizer of {folder} and its config.json do not agree on {IMAGE}",
            got=f"id {prompt.image_id}",
            wanted=f"id {image}",
        )


def _recipe_compute_dtype(folder: Path) -> str:
    """The `compute_dtype` of the recipe that the model was made with."""
    manifest = folder / MANIFEST
    found = read_json(manifest) if manifest.is_file() else {}
    return (
        str(found["about"].get("compute_dtype", "auto"))
        if found.get("kind") == MODEL_KIND
        else "auto"
    )


def save_model(loaded: Phi3WithProjector, folder: Path) -> None:
    """Write model and processor into `folder`, without a manifest: the caller stages the folder."""
    match_config_to_head(loaded.model, folder.name)
    for config in (
        loaded.model.config,
        loaded.model.config.text_config,
        loaded.model.config.vision_config,
    ):
        config._name_or_path = ""  # local paths of the parts must not be published
    loaded.model.save_pretrained(
        folder, max_shard_size="4GB", state_dict=_published_names(loaded.model)
    )
    loaded.processor.save_pretrained(folder)


def _published_names(model: Any) -> dict[str, torch.Tensor]:
    """State dict with the names of published LLaVA folders, in which CLIP and SigLIP towers have a
    `vision_model.` that vLLM's loader expects.

    transformers has dropped that prefix from its classes and reads both; it saves a loaded model
    under the names it was loaded with.
    """
    weights: dict[str, torch.Tensor] = model.state_dict()
    encoder = encoder_of(model.config.vision_config.model_type)
    opened = getattr(model, "_weight_conversions", None) is not None
    if opened or encoder is None:
        return weights
    tower = "model.vision_tower."
    named = f"{tower}{ENCODERS[encoder].published_prefix}"
    return {
        (f"{named}{name.removeprefix(tower)}" if name.startswith(tower) else name): weight
        for name, weight in weights.items()
    }
