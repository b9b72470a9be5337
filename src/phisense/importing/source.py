"""What lies in a LLaVA-format folder, and whether it can be taken: everything is judged by what the files say, before a weight is read.

whole folder    config.json of model type llava; text part phi3, or llama with Phi-3's tokenizer
adapter         adapter_config.json with adapter_model.safetensors, and perhaps a projector in a file of its own;
                its base is a whole folder
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, LlavaForConditionalGeneration

from ..errors import PartError
from ..model.device import DTYPES
from ..parts import load_weights, open_auto, resolve_part, weight_files
from ..prompt import missing_tags
from ..vision.encoders import ENCODERS

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
#: LLaVA's own names for what it saves beside an adapter.
BESIDE = ("mm_projector.safetensors", "non_lora_trainables.safetensors")
#: What says how a folder is to be opened.
TOLD = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
KINDS = {model_type: name for name, kind in ENCODERS.items() for model_type in kind.model_types}


@dataclass(frozen=True)
class Source:
    """A `whole` LLaVA-format folder, and the folder of an `adapter` to it, if it is that which is imported."""

    whole: Path
    adapter: Path | None
    config: Any
    dtype: torch.dtype
    made_from: tuple[str, ...]

    @property
    def encoder(self) -> str:
        return KINDS[self.config.vision_config.model_type]


def find_source(named: str, base: str | None) -> Source:
    """Raises PartError, saying what, got, wanted and what to do, for everything that cannot become a model folder."""
    folder = Path(named).expanduser()
    adapter = folder if (folder / ADAPTER_CONFIG).is_file() else None
    if adapter is None:
        if base is not None:
            raise PartError(f"{named} is no adapter, so it has no base", got=f"--base {base}", wanted=f"a folder with {ADAPTER_CONFIG}")
        _refuse_others(folder)
        whole, origins = resolve_part(named), [named]
    else:
        check_adapter_files(adapter)
        told = base or read_facts(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
        if not told:
            raise PartError(f"the adapter {named} does not say what it was trained on", do="Name the folder with --base")
        whole, origins = resolve_part(str(told)), [str(told)]
    config = _check(whole)
    return Source(whole, adapter, config, stored_dtype(whole), tuple(one for one in origins if not Path(one).expanduser().is_dir()))


def open_source(source: Source) -> Any:
    """The whole folder in plain transformers, in float32. Raises PartError unless every stored weight has a place and none is missing."""
    model = load_weights(LlavaForConditionalGeneration, source.whole, dtype=torch.float32)
    placed = sum(weight.numel() for weight in model.state_dict().values())
    stored = sum(_sizes(source.whole).values())
    if placed != stored and not (source.config.text_config.tie_word_embeddings and placed > stored):
        raise PartError(
            f"{source.whole} holds weights that the model it describes has no place for",
            got=f"{stored:,} numbers stored, {placed:,} placed",
            wanted="each in its place",
            do="Check that config.json belongs to the weights",
        )
    return model.eval()


def check_adapter_files(folder: Path) -> None:
    """Raises PartError unless all that was trained is there as safetensors."""
    names = {path.name for path in folder.iterdir()}
    pickled = [Path(name).with_suffix(".bin").name for name in (ADAPTER, *BESIDE) if name not in names]
    pickled = [name for name in pickled if name in names]
    if pickled:
        raise PartError(
            f"the adapter {folder} has weights in a pickled file",
            got=pickled[0],
            wanted=f"{Path(pickled[0]).stem}.safetensors; nothing is ever unpickled",
            do="Save it as safetensors where it was trained, or convert the file where you trust it",
        )
    if not (folder / ADAPTER).is_file():
        raise PartError(f"the adapter {folder} has no weights", got=f"no {ADAPTER}", do="Copy the whole folder")


def stored_dtype(folder: Path) -> torch.dtype:
    """The format of the weights; the widest if there are several."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = set()
    for path in weight_files(folder):
        with _opened(path) as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it is no dict
    odd = sorted(found - names.keys())
    if odd and odd != ["I64"]:  # position ids that older versions saved
        raise PartError(
            f"the weights in {folder} are quantised", got=", ".join(odd), wanted="float32, float16 or bfloat16", do="Take the original"
        )
    floats = [names[one] for one in found if one in names]
    return DTYPES[floats[0]] if len(floats) == 1 else torch.float32


def _check(folder: Path) -> Any:
    raw = read_facts(folder / "config.json")
    found = raw.get("model_type")
    if found != "llava":
        also = "; its text part alone is no LLaVA" if found in ("phi3", "llama") else ""
        raise PartError(
            f"{folder} is no LLaVA-format folder",
            got=f"model type {found}{also}",
            wanted="llava, as llava-hf's and xtuner's -hf folders are; not LLaVA-NeXT (anyres), several pictures, other classes",
        )
    _refuse_others(folder)
    config = open_auto(AutoConfig, folder)
    text, seen = config.text_config, config.vision_config
    if text.model_type not in ("phi3", "llama"):
        raise PartError(f"the text part of {folder} is no Phi-3", got=text.model_type, wanted="phi3, or a Phi-3 rewritten as llama")
    if seen.model_type not in KINDS:
        raise PartError(f"the vision tower of {folder} is not known here", got=seen.model_type, wanted=" or ".join(ENCODERS))
    _check_tower(folder, seen, config.vision_feature_layer)
    strategy = ENCODERS[KINDS[seen.model_type]].strategy
    if config.vision_feature_select_strategy != strategy:
        raise PartError(
            f"the projector of {folder} reads other rows than are read here", got=config.vision_feature_select_strategy, wanted=strategy
        )
    tokenizer = open_auto(AutoTokenizer, folder)
    missing = missing_tags(tokenizer)
    if missing:
        raise PartError(
            f"the text part of {folder} is a {text.model_type.title()} of another tokenizer",
            got=f"no {', '.join(missing)}",
            wanted="Phi-3's chat tags",
            do="Only LLaVA models on a Phi-3 or Phi-3.5 can be taken",
        )
    return config


def _check_tower(folder: Path, seen: Any, layer: Any) -> None:
    if not isinstance(layer, int):
        raise PartError(f"the projector of {folder} reads several layers of the tower", got=layer, wanted="one, such as -2")
    depth, sides = seen.num_hidden_layers, (seen.image_size, seen.patch_size)
    if not all(isinstance(one, int) and one > 0 for one in (depth, *sides)) or seen.image_size < seen.patch_size:
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


def _refuse_others(folder: Path) -> None:
    """What a LLaVA-format folder may say that no model folder can."""
    said = {name: read_facts(folder / name) for name in TOLD if (folder / name).is_file()}
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
        raise PartError(f"{folder} cuts pictures into tiles (anyres)", got="image_grid_pinpoints", wanted="one view of a picture")
    if "quantization_config" in said.get("config.json", {}):
        raise PartError(f"the weights in {folder} are quantised", got="a quantization_config", wanted="the original weights")


def _sizes(folder: Path) -> dict[str, int]:
    """How many numbers each stored weight has; position ids, which older versions saved, are no weights."""
    sizes = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                if not name.endswith((".position_ids", ".inv_freq")):
                    sizes[name] = int(torch.Size(file.get_slice(name).get_shape()).numel())
    return sizes


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise PartError(f"{path} cannot be opened", got=str(error).splitlines()[0], do="Download it again") from error


def read_facts(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises PartError if there is none."""
    try:
        found: Any = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise PartError(f"{path} cannot be read", got=str(error).splitlines()[0]) from error
    if not isinstance(found, dict):
        raise PartError(f"{path} cannot be read", got=f"a JSON {type(found).__name__}", wanted="an object")
    return dict(found)
