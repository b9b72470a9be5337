"""Finds pretrained parts: a folder in hub layout, or an id on the Hugging Face hub. Only safetensors are ever taken."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from .errors import PartError

MODEL_TYPES = ("llava", "aya_vision")  # of whole models, as phisense writes them
_WANTED = ["*.json", "*.safetensors", "*.txt", "tokenizer.model"]


def resolve_part(part: str, *, download: bool = True) -> Path:
    """The local folder of `part`; an id of the hub is looked up in the cache and, if `download`, fetched where it is not there.

    Raises PartError if there is no such folder or id, or it has no safetensors.
    """
    folder = Path(part).expanduser()
    if not folder.is_dir():
        if part.startswith((".", "/", "~")) or part.count("/") != 1:
            raise PartError(
                f"there is no part {part}", got="no such folder", wanted="a folder in hub layout or a hub id such as openai/whisper-small"
            )
        folder = _from_hub(part, download)
    if not (folder / "config.json").is_file():
        raise PartError(
            f"the part {part} is not in hub layout",
            got="no config.json",
            wanted="config.json, *.safetensors and the tokenizer's or processor's files",
        )
    if not weight_files(folder):
        raise PartError(
            f"the part {part} has no safetensors",
            wanted="*.safetensors; pickled weights are never loaded",
            do="Convert it once with safetensors",
        )
    return folder


def load_weights(model_class: Any, folder: Path, **options: Any) -> Any:
    """`model_class.from_pretrained`, in safetensors only; weights that the part lacks are an error, not a warning and random numbers.

    Raises PartError naming the first missing or misshapen weight, or saying why the files cannot be read.
    """
    return _loaded(model_class, folder, folder, use_safetensors=True, **options)


def open_auto(auto: Any, folder: Path, **options: Any) -> Any:
    """`auto.from_pretrained` of a folder's configuration, tokenizer or processor. Code that lies there is not run, and nobody is asked to.

    Raises PartError for files that cannot be read.
    """
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # the readers' own kinds have no base in common: tokenizers raises bare ones
        raise PartError(
            f"{folder} cannot be opened as {auto.__name__.removeprefix('Auto').lower()}",
            got=" ".join(str(error).split())[:200] or type(error).__name__,
            do="Download it again",
        ) from error


def load_half(model_class: Any, folder: Path, half: str, config: Any, **options: Any) -> Any:
    """As `load_weights`, for the `language_model` or `vision_tower` of a model folder: its weights alone are read."""
    from safetensors import SafetensorError, safe_open

    weights = {}
    inside = re.compile(rf"^(?:model\.)?{half}\.(?:model\.|vision_model\.)?(.+)$")
    head = "model." if half == "language_model" else ""
    try:
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118, it is no dict
                    found = inside.match(name)
                    if head and name.endswith("lm_head.weight"):
                        weights["lm_head.weight"] = file.get_tensor(name)
                    elif found:
                        weights[head + found[1]] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise PartError(f"the model {folder} cannot be read", got=str(error).splitlines()[0], do="Make it again") from error
    return _loaded(model_class, folder, None, config=config, state_dict=weights, **options)


def _loaded(model_class: Any, folder: Path, source: Path | None, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise PartError(
            f"the part {folder} cannot be loaded",
            got=(str(error) or type(error).__name__).splitlines()[0],
            do="Download the whole part again",
        ) from error
    lacking = sorted(str(name) for name in (*report["missing_keys"], *report["mismatched_keys"]))
    if lacking:
        raise PartError(
            f"the part {folder} is incomplete",
            got=f"{len(lacking)} weights missing, such as {lacking[0]}",
            do="Download the whole part again",
        )
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model folder; those its index names where there is one."""
    return sorted(folder.glob("*.safetensors"))


def fingerprint(folder: Path) -> str:
    """sha256 over the names, configs and weights of a part or model: equal exactly where it computes the same."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *weight_files(folder), *folder.glob("*.gguf")]):
        if path.name in ("manifest.json", "merge_report.json", "training.json", "import_report.json"):  # what is told of it
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _from_hub(part: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(part, allow_patterns=_WANTED, local_files_only=not download))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise PartError(
            f"the part {part} was not found",
            got=f"no such folder, and the hub says: {str(error).splitlines()[0].rstrip('.')}",
            do=f"Check the name and the network, or download it and name its folder: hf download {part} --local-dir parts/NAME",
        ) from error


def cache_folder() -> Path:
    """`PHISENSE_CACHE`, else `phisense` in the user's cache folder."""
    chosen = os.environ.get("PHISENSE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phisense"
