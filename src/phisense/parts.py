"""Resolve pretrained parts: a folder in hub layout, or a Hugging Face hub id with an optional
revision. Only safetensors weights are accepted.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts import detect_file_type
from .errors import PartError
from .opening import ValidatedFolder, validate_folder, weight_files
from .opening.files import cached_sha256
from .opening.headers import BUFFER_SUFFIXES, StoredTensor
from .opening.registered import published_prefixes, unused_weights
from .opening.shape_checks import any_of, build_meta_model, check_stored_weights
from .opening.tokenizer_steps import has_own_steps
from .safe_parsing import quote

if TYPE_CHECKING:
    import torch

#: Attention implementation of opened models; training chooses its own (model/device.py). A model's
#: configuration cannot override it.
ATTENTION_IMPLEMENTATION = "sdpa"
_CONFIG = "AutoConfig"
MAX_WEIGHT = 65_504  # largest finite float16; weights of published models are below 1,000
_DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.txt", "tokenizer.model"]
_UNSUPPORTED_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_part(part: str, *, download: bool = True) -> Path:
    """The local folder of `part`. A hub id, `owner/name` or `owner/name@revision`, is looked up in
    the cache and, with `download`, fetched if it is not there.

    Raises PartError if the folder, id or revision does not exist, or has no safetensors.
    """
    folder = Path(part).expanduser()
    if folder.is_file():
        kind = detect_file_type(folder)
        raise PartError(
            f"the part {part} is a file",
            got=None if kind is None else f"one that is {kind.name}",
            wanted=(
                "the folder that holds it, with config.json, *.safetensors and the tokenizer's or"
                " processor's files"
            ),
            do=None if kind is None else kind.do,
        )
    if not folder.is_dir():
        if not _is_id(part):
            raise PartError(
                f"there is no part {part}",
                got="no such folder",
                wanted="a folder in hub layout or a hub id such as openai/whisper-small",
            )
        folder = _from_hub(part, download)
    if not (folder / "config.json").is_file():
        found = _unsupported_weights(folder)
        raise PartError(
            f"the part {part} is not in hub layout",
            got=f"no config.json{f', but {found[0]}' if found else ''}",
            wanted="config.json, *.safetensors and the tokenizer's or processor's files",
            do=found[1] if found else None,
        )
    if not weight_files(folder):
        found = _unsupported_weights(folder)
        raise PartError(
            f"the part {part} has no safetensors",
            got=found[0] if found else None,
            wanted="*.safetensors; pickled weights are never loaded",
            do=found[1] if found else "Convert it once with safetensors",
        )
    return folder


def _unsupported_weights(folder: Path) -> tuple[str, str] | None:
    """The first weight file in an unsupported format and the remedy; None if no file is of a known
    type.
    """
    for path in sorted(folder.iterdir()):
        kind = detect_file_type(path) if path.is_file() else None
        if kind is not None and (
            kind.group in ("weights", "archive", "table") or path.suffix in _UNSUPPORTED_WEIGHTS
        ):
            return f"{quote(path.name)}, which is {kind.name}", kind.do
    return None


def pin_revision(part: str, *, download: bool = True) -> str:
    """A hub id pinned to the commit that it resolves to now, `owner/name@commit`; a folder, or an
    id with a commit, is returned unchanged.

    Raises PartError as `resolve_part` does.
    """
    name, revision = split_revision(part)
    if Path(part).expanduser().is_dir() or (revision is not None and _COMMIT.fullmatch(revision)):
        return part
    # the hub cache names a snapshot folder by its commit
    return f"{name}@{resolve_part(part, download=download).name}"


def split_revision(part: str) -> tuple[str, str | None]:
    """Split a hub id into id and revision; the revision is None if there is none."""
    if Path(part).expanduser().is_dir() or not _is_id(part):
        return part, None
    name, _, revision = part.partition("@")
    return name, revision or None


def _is_id(part: str) -> bool:
    return not part.startswith((".", "/", "~")) and part.count("/") == 1


def load_weights(model_class: Any, folder: Path, **options: Any) -> Any:
    """`model_class.from_pretrained` from safetensors only. Missing weights raise instead of being
    initialized at random with a warning, and so do weights without a place, which it would drop.
    A `state_dict` among the options is taken instead of the files' weights.

    Raises PartError naming the first missing, misshapen or surplus weight, before any is read, or
    if the files cannot be read. What an encoder's folder may hold besides is listed by its kind
    (`EncoderKind.unused_weights`).
    """
    judged = validate_folder(folder)
    config = options.pop("config", None) or load_auto(_CONFIG, folder)
    unused = unused_weights(config.model_type)
    if not isinstance(config, model_class.config_class) and hasattr(config, "vision_config"):
        config = config.vision_config  # of two towers, only vision is used
    check_stored_weights(
        folder, build_meta_model(model_class, config, folder), judged.headers, unused=unused
    )
    options |= {"unused": unused, "config": config}
    if "state_dict" in options:
        return _load(model_class, folder, None, **options)
    return _load(model_class, folder, folder, use_safetensors=True, **options)


def load_auto(auto: Any, folder: Path, **options: Any) -> Any:
    """`auto.from_pretrained` for a folder's configuration, tokenizer or processor, after validation
    (opening/). Remote code is never run.

    Raises PartError for files that cannot be read or have unsupported content.
    """
    judged = validate_folder(folder)
    name = auto if isinstance(auto, str) else auto.__name__
    try:
        if name == _CONFIG:
            return _config(judged)
        if name in ("AutoTokenizer", "AutoProcessor"):
            judged.check_tokenizer()
        if name in ("AutoImageProcessor", "AutoProcessor"):
            judged.check_processor()
        if name == "AutoTokenizer":
            options["config"] = _config(judged)
        options |= {"trust_remote_code": False, "local_files_only": True}
        made = auto.from_pretrained(folder, **options)
        if name == "AutoTokenizer" and has_own_steps(made, folder):
            from transformers import PreTrainedTokenizerFast

            made = PreTrainedTokenizerFast.from_pretrained(folder, **options)
        return made
    except PartError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # the readers' exceptions have no common base: tokenizers raises bare Exception, and Rust panics
    # are BaseException
    except BaseException as error:
        raise PartError(
            f"{folder} cannot be opened as {name.removeprefix('Auto').lower()}",
            got=" ".join(str(error).split())[:200] or type(error).__name__,
            do="Download it again",
        ) from error


def _config(judged: ValidatedFolder) -> Any:
    """The configuration described by the validated config.json; the folder is not read again."""
    from transformers import CONFIG_MAPPING

    facts = judged.config
    made: Any = CONFIG_MAPPING[facts["model_type"]].from_dict(copy.deepcopy(facts))
    made._attn_implementation = ATTENTION_IMPLEMENTATION
    return made


def load_submodel(
    model_class: Any, folder: Path, submodel: str, config: Any, **options: Any
) -> Any:
    """As `load_weights`, for the `language_model` or `vision_tower` of a model folder; only its
    weights are read.
    """
    from safetensors import SafetensorError, safe_open

    weights = {}
    stored = stored_weights(folder, submodel)
    check_stored_weights(
        folder,
        build_meta_model(model_class, config, folder),
        {name: entry for name, (_, entry) in stored.items()},
    )
    try:
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                for name, (there, entry) in stored.items():
                    if entry.file == path:
                        weights[name] = file.get_tensor(there)
    except (SafetensorError, OSError) as error:
        raise PartError(
            f"the model {folder} cannot be read", got=str(error).splitlines()[0], do="Make it again"
        ) from error
    return _load(model_class, folder, None, config=config, state_dict=weights, **options)


def stored_weights(
    folder: Path, submodel: str | None = None
) -> dict[str, tuple[str, StoredTensor]]:
    """For each weight of a validated folder, by its name in the model: its name in the file, and
    its header entry. Of a model folder those of `submodel`, by their names in it.
    """
    headers = validate_folder(folder).headers
    if submodel is None:
        return {name: (name, entry) for name, entry in headers.items()}
    inner = any_of(("model.", *published_prefixes()))
    inside = re.compile(rf"^(?:model\.)?{submodel}\.(?:{inner})?(.+)$")
    head = "model." if submodel == "language_model" else ""
    found = {}
    for name, entry in headers.items():
        matched = inside.match(name)
        if head and name.endswith("lm_head.weight"):
            found["lm_head.weight"] = name, entry
        elif matched:
            found[head + matched[1]] = name, entry
    return found


def _load(
    model_class: Any,
    folder: Path,
    source: Path | None,
    *,
    unused: Sequence[str] = (),
    **options: Any,
) -> Any:
    try:
        model, report = model_class.from_pretrained(
            source,
            output_loading_info=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=ATTENTION_IMPLEMENTATION,
            **options,
        )
    except Exception as error:  # a model class may raise anything for validated values
        raise PartError(
            f"the part {folder} cannot be loaded",
            got=(str(error) or type(error).__name__).splitlines()[0],
            do="Download the whole part again",
        ) from error
    _check_report(folder, report, unused)
    check_weights_finite(model, folder)
    return model


def _check_report(folder: Path, report: Mapping[str, Any], unused: Sequence[str]) -> None:
    """Raises PartError for each weight that transformers did not find, or did not use."""
    lacking = sorted(str(name) for name in (*report["missing_keys"], *report["mismatched_keys"]))
    if lacking:
        raise PartError(
            f"the part {folder} is incomplete",
            got=f"{len(lacking)} weights missing, such as {lacking[0]}",
            do="Download the whole part again",
        )
    surplus = sorted(
        name
        for name in map(str, report["unexpected_keys"])
        if not name.endswith(BUFFER_SUFFIXES) and not name.startswith(tuple(unused))
    )
    if surplus or report["error_msgs"]:
        raise PartError(
            f"the part {folder} does not fit the model that its config.json describes",
            got=(
                f"{len(surplus)} weights without a place, such as {surplus[0][:200]}"
                if surplus
                else str(report["error_msgs"][0])[:200]
            ),
            wanted="each in its place",
            do="Take config.json and the weights from one and the same model",
        )


def check_weights_finite(model: Any, folder: Path) -> None:
    """Raise PartError for a weight that is NaN, infinite or beyond float16's range: it would
    produce empty answers without an error.
    """
    for name, weight in model.named_parameters():
        check_finite(name, weight, folder)


def check_finite(name: str, weight: torch.Tensor, folder: Path) -> None:
    """As `check_weights_finite`, of one weight."""
    if weight.is_floating_point() and weight.numel() and weight.device.type != "meta":
        least, most = (float(one) for one in weight.detach().aminmax())
        if not -MAX_WEIGHT <= least <= most <= MAX_WEIGHT:
            raise PartError(
                f"the part {folder} holds weights that are no numbers of a model",
                got=f"{least:g} to {most:g} in {name}",
                wanted=f"at most {MAX_WEIGHT:,}",
                do="Download it again",
            )


def fingerprint(folder: Path) -> str:
    """sha256 over the names, configurations and weights of a part or model: equal if and only if it
    computes the same.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *weight_files(folder), *folder.glob("*.gguf")]):
        if path.name in (
            "manifest.json",
            "merge_report.json",
            "training.json",
            "import_report.json",
        ):  # reports about the model
            continue
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(cached_sha256(path)))
    return digest.hexdigest()


def _from_hub(part: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, revision = split_revision(part)
    download_it = f"hf download {name}{f' --revision {revision}' if revision else ''}"
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_DOWNLOAD_PATTERNS,
                local_files_only=not download,
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise PartError(
            f"the part {part} was not found",
            got=f"no such folder, and the hub says: {str(error).splitlines()[0].rstrip('.')}",
            do=(
                f"Check the name and the network, or download it and name its folder: {download_it}"
                " --local-dir parts/NAME"
            ),
        ) from error


def cache_folder() -> Path:
    """`PHISENSE_CACHE`, else `phisense` in the user's cache folder."""
    chosen = os.environ.get("PHISENSE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phisense"
