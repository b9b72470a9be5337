"""Import source: checks from its files, before a weight is read, whether a LLaVA-format folder can
be imported.

whole folder    config.json of model type llava; text part of a language family, or a Phi-3
                rewritten as llama, with Phi-3's tokenizer
adapter         adapter_config.json with adapter_model.safetensors, and possibly a projector in a
                file of its own; its base is a whole folder
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from ..errors import PartError
from ..families import (
    FAMILIES,
    Family,
    check_same_family,
    family_of_tokenizer,
    family_titles,
    missing_chat_tokens,
    text_model_types,
)
from ..model.device import DTYPES
from ..model.projectors.native import LLAVA
from ..opening import validate_folder
from ..opening.documents import read_json_object
from ..opening.files import check_regular_file
from ..opening.headers import BUFFER_SUFFIXES
from ..parts import load_auto, load_weights, resolve_part, split_revision
from ..vision.encoders.base import ENCODERS, encoder_of

REWRITTEN = "llama"  # model type of a Phi-3 that was rewritten (llama.py)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Files that LLaVA saves beside an adapter.
EXTRA_FILES = ("mm_projector.safetensors", "non_lora_trainables.safetensors")
#: Files that determine how a folder is loaded.
CONFIG_FILES = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class Source:
    """A `base` LLaVA-format folder, and the `adapter` folder if an adapter is imported."""

    base: Path
    adapter: Path | None
    config: Any
    dtype: torch.dtype
    made_from: tuple[str, ...]

    @property
    def encoder(self) -> str:
        """Encoder family of the vision tower, as in a recipe's `vision.encoder`."""
        found = encoder_of(self.config.vision_config.model_type)
        assert found is not None  # it was checked
        return found


def find_source(name: str, base: str | None) -> Source:
    """Find and check the source. Raises PartError for everything that cannot become a model
    folder.
    """
    folder = Path(name).expanduser()
    adapter = folder if (folder / ADAPTER_CONFIG).is_file() else None
    if adapter is None:
        if base is not None:
            raise PartError(
                f"{name} is no adapter, so it has no base",
                got=f"--base {base}",
                wanted=f"a folder with {ADAPTER_CONFIG}",
            )
        _check_supported(folder)
        whole, origins = resolve_part(name), [name]
    else:
        check_adapter_files(adapter)
        told = base or _read_base(adapter)
        if not told or "\0" in told:
            raise PartError(
                f"the adapter {name} does not say what it was trained on",
                do="Name the folder with --base",
            )
        whole, origins = resolve_part(told), [told]
    config = _check(whole)
    return Source(
        whole,
        adapter,
        config,
        stored_dtype(whole),
        tuple(split_revision(one)[0] for one in origins if not Path(one).expanduser().is_dir()),
    )


def _read_base(adapter: Path) -> str | None:
    """The base that an adapter names, with the revision that it names if the base is a Hub id."""
    facts = read_json_object(adapter / ADAPTER_CONFIG)
    told, revision = facts.get("base_model_name_or_path"), facts.get("revision")
    if not isinstance(told, str) or not told:
        return None
    if (
        Path(told).expanduser().is_dir()
        or not isinstance(revision, str)
        or split_revision(f"{told}@{revision}")[1] is None
    ):
        return told
    return f"{told}@{revision}"


def open_source(source: Source) -> Any:
    """Load the whole folder with plain transformers, in float32.

    Raises PartError unless every stored weight is used and none is missing.
    """
    model = load_weights(LLAVA.model_class(), source.base, dtype=torch.float32)
    placed = sum(weight.numel() for weight in model.state_dict().values())
    stored = sum(_sizes(source.base).values())
    if placed != stored and not (source.config.text_config.tie_word_embeddings and placed > stored):
        raise PartError(
            f"{source.base} holds weights that the model it describes has no place for",
            got=f"{stored:,} numbers stored, {placed:,} placed",
            wanted="each in its place",
            do="Check that config.json belongs to the weights",
        )
    return model.eval()


def check_adapter_files(folder: Path) -> None:
    """Raises PartError unless all trained weights are there as safetensors."""
    names = {path.name for path in folder.iterdir()}
    pickled = [
        Path(name).with_suffix(".bin").name
        for name in (ADAPTER_WEIGHTS, *EXTRA_FILES)
        if name not in names
    ]
    pickled = [name for name in pickled if name in names]
    if pickled:
        raise PartError(
            f"the adapter {folder} has weights in a pickled file",
            got=pickled[0],
            wanted=f"{Path(pickled[0]).stem}.safetensors; nothing is ever unpickled",
            do=(
                "Save it as safetensors where it was trained, or convert the file where you"
                " trust it"
            ),
        )
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *EXTRA_FILES):
        if (folder / name).exists() or (folder / name).is_symlink():
            check_regular_file(folder / name, folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise PartError(
            f"the adapter {folder} has no weights",
            got=f"no {ADAPTER_WEIGHTS}",
            do="Copy the whole folder",
        )


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the stored weights; float32 if there are several."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = {one.dtype for one in validate_folder(folder).headers.values()}
    floats = [names[one] for one in found if one in names]
    return DTYPES[floats[0]] if len(floats) == 1 else torch.float32


def _check(folder: Path) -> Any:
    raw = read_json_object(folder / "config.json")
    found = raw.get("model_type")
    if found != LLAVA.model_type:
        also = "; its text part alone is no LLaVA" if found in text_model_types() else ""
        raise PartError(
            f"{folder} is no LLaVA-format folder",
            got=f"model type {found}{also}",
            wanted=(
                "llava, as llava-hf's and xtuner's -hf folders are; not LLaVA-NeXT (anyres),"
                " several pictures, other classes"
            ),
        )
    _check_supported(folder)
    config = load_auto(AutoConfig, folder)
    text, seen = config.text_config, config.vision_config
    if text.model_type not in text_model_types():
        raise PartError(
            f"the text part of {folder} is no {family_titles()}",
            got=text.model_type,
            wanted=f"{', '.join(text_model_types())}, or a Phi-3 rewritten as {REWRITTEN}",
        )
    encoder = encoder_of(seen.model_type)
    if encoder is None:
        raise PartError(
            f"the vision tower of {folder} is not known here",
            got=seen.model_type,
            wanted=" or ".join(ENCODERS),
        )
    _check_tower(folder, seen, config.vision_feature_layer)
    strategy = ENCODERS[encoder].strategy
    if config.vision_feature_select_strategy != strategy:
        raise PartError(
            f"the projector of {folder} reads other rows than are read here",
            got=config.vision_feature_select_strategy,
            wanted=strategy,
        )
    tokenizer = load_auto(AutoTokenizer, folder)
    _, missing = missing_chat_tokens(tokenizer)
    if missing:
        raise PartError(
            f"the text part of {folder} is a {text.model_type.title()} of another tokenizer",
            got=f"no {', '.join(missing)}",
            wanted=f"the chat tags of {family_titles()}",
            do="Only LLaVA models on one of these can be taken",
        )
    if not is_rewritten(text, family_of_tokenizer(tokenizer)):
        check_same_family(text, tokenizer, folder)
    return config


def is_rewritten(text: Any, family: Family) -> bool:
    """Whether a text part of this configuration, with a tokenizer of `family`, is a Phi-3 that was
    rewritten as a Llama.
    """
    return bool(text.model_type == REWRITTEN and family.model_type == FAMILIES["phi3"].model_type)


def _check_tower(folder: Path, seen: Any, layer: Any) -> None:
    if not isinstance(layer, int):
        raise PartError(
            f"the projector of {folder} reads several layers of the tower",
            got=layer,
            wanted="one, such as -2",
        )
    depth, sides = seen.num_hidden_layers, (seen.image_size, seen.patch_size)
    if (
        not all(isinstance(one, int) and one > 0 for one in (depth, *sides))
        or seen.image_size < seen.patch_size
    ):
        raise PartError(
            f"the vision tower of {folder} has no patches",
            got=f"image_size {sides[0]}, patch_size {sides[1]}, num_hidden_layers {depth}",
            wanted="whole numbers above 0, and patches no larger than the picture",
        )
    if not -depth - 1 <= layer <= depth:
        raise PartError(
            f"the projector of {folder} reads a layer that the tower lacks",
            got=f"vision_feature_layer {layer}",
            wanted=f"{-depth - 1} to {depth}, for {depth} layers and what goes into the first",
        )


def _check_supported(folder: Path) -> None:
    """Raises PartError for features of LLaVA-format folders that a model folder does not
    support.
    """
    said = (
        {
            name: facts
            for name, facts in validate_folder(folder).documents.items()
            if name in CONFIG_FILES
        }
        if folder.is_dir()
        else {}
    )
    coded = [name for name, facts in said.items() if "auto_map" in facts]
    if coded:
        raise PartError(
            f"{folder} wants code of its own to be run",
            got=f"auto_map in {coded[0]}",
            wanted="classes of transformers; nobody else's code is run here",
            do="If its model type is llava, take auto_map out of the file and import it again",
        )
    facts = said.get("preprocessor_config.json", {})
    if "image_grid_pinpoints" in facts or facts.get("image_aspect_ratio") == "anyres":
        raise PartError(
            f"{folder} cuts pictures into tiles (anyres)",
            got="image_grid_pinpoints",
            wanted="one view of a picture",
        )
    if "quantization_config" in said.get("config.json", {}):
        raise PartError(
            f"the weights in {folder} are quantised",
            got="a quantization_config",
            wanted="the original weights",
        )


def _sizes(folder: Path) -> dict[str, int]:
    """Number of elements of each stored weight, without the position ids that older versions
    saved.
    """
    return {
        name: math.prod(one.shape)
        for name, one in validate_folder(folder).headers.items()
        if not name.endswith(BUFFER_SUFFIXES)
    }
