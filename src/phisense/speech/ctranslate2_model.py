"""CTranslate2 model of a Whisper: converted once from the transformers folder, and stored in the
user's cache.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .. import safe_replace
from ..artifacts import read_json, read_manifest, translate_disk_errors, write_manifest
from ..errors import ArtifactError, PartError, PhisenseError, UsageError
from ..opening import validate_folder
from ..opening.whisper import WhisperShape, check_consistent, check_converted, read_model_bin
from ..parts import cache_folder, fingerprint, load_auto, load_weights
from ..speech_part import FRONT_END_FILE, TOKENIZER_FILE, find_speech_part
from .languages import LANGUAGES

CTRANSLATE2_KIND = "converted speech part"


def ctranslate2_folder(part: Path | str, cache: Path | None = None) -> Path:
    """Return the CTranslate2 folder for `part`: `part` itself if it is one, else its conversion in
    `cache`, made if missing.

    `part` is any that `find_speech_part` finds. Conversions are keyed by the content of the part,
    not by its name. Raises PartError if `part` is missing or not a Whisper, ArtifactError if the
    cache cannot be written.
    """
    found = find_speech_part(part)
    if found.converted:
        return _check_converted_folder(found.folder)
    folder = found.folder
    judged = validate_folder(folder)
    judged.check_tokenizer()
    judged.check_processor()
    config = load_auto("AutoConfig", folder)
    shape = WhisperShape(
        config.vocab_size,
        config.num_mel_bins,
        config.max_source_positions,
        config.decoder_layers,
        config.decoder_attention_heads,
    )
    check_consistent(folder, judged.documents, shape)
    converted = (
        cache if cache is not None else cache_folder()
    ) / f"speech-{fingerprint(folder)[:32]}"
    if not _is_finished(converted):
        _convert(folder, converted)
    return converted


def layer_counts(folder: Path) -> tuple[int, int]:
    """Number of encoder and decoder layers of a CTranslate2 folder, from its weight names. Raises
    PartError if it is damaged.
    """
    layers: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    for name in read_model_bin(folder):
        if layer := re.match(r"(encoder|decoder)/(layer_\d+)/", name):
            layers[layer[1]].add(layer[2])
    return len(layers["encoder"]), len(layers["decoder"])


def _check_converted_folder(folder: Path) -> Path:
    judged = validate_folder(folder)
    judged.check_tokenizer()
    judged.check_processor()
    check_converted(folder, judged.documents)
    return folder


def _is_finished(converted: Path) -> bool:
    if not converted.exists():
        return False
    try:
        read_manifest(converted, kind=CTRANSLATE2_KIND)
    except ArtifactError:  # damaged on disk: discard and convert again
        safe_replace.discard(converted)
        return False
    return True


def _convert(folder: Path, converted: Path) -> None:
    """Convert, unless another process finishes first: its result is equivalent."""
    with translate_disk_errors(converted):
        safe_replace.remove_leftovers(converted.parent)
        with safe_replace.staging_folder(converted, kind=CTRANSLATE2_KIND) as aside:
            _run_converter(folder, aside)
            write_manifest(aside, kind=CTRANSLATE2_KIND, about={"part": folder.name})
            try:
                safe_replace.commit(aside, converted, kind=CTRANSLATE2_KIND, overwrite=False)
            except UsageError:
                read_manifest(converted, kind=CTRANSLATE2_KIND, verify=False)


def _run_converter(folder: Path, out: Path) -> None:
    # deferred: imports torch and transformers
    from ctranslate2.converters import transformers as converters
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    class Converter(converters.TransformersConverter):
        def _load(self) -> Any:
            """Replaces the original to load through phisense: a validated folder, checked against
            the configuration, from safetensors only.
            """
            import torch

            config = load_auto("AutoConfig", folder)
            dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
            model = load_weights(
                WhisperForConditionalGeneration, folder, config=config, dtype=dtype
            )
            with torch.no_grad():
                spec = converters._MODEL_LOADERS["WhisperConfig"](
                    model, load_auto(AutoTokenizer, folder)
                )
            for name in (TOKENIZER_FILE, FRONT_END_FILE):
                spec.register_file(str(folder / name))
            return spec

    try:
        # Stored in float16, as Whisper is published; the compute type is chosen when loading.
        Converter(str(folder)).convert(str(out), quantization="float16", force=True)
        _add_language_ids(out)
    except PhisenseError:
        raise
    except OSError as error:
        if error.errno is not None:  # an OS error, which `translate_disk_errors` reports
            raise
        raise _conversion_error(folder, error) from error
    except Exception as error:  # any failure on a file that passed validation
        raise _conversion_error(folder, error) from error


def _add_language_ids(converted: Path) -> None:
    """Add missing language ids to the config: the converter reads them from generation_config.json,
    where many fine-tuned Whispers have none; the tokenizer has them.
    """
    config = read_json(converted / "config.json")
    if not config.get("lang_ids"):
        tokens = {
            token["content"]: token["id"]
            for token in read_json(converted / TOKENIZER_FILE).get("added_tokens", [])
        }
        config["lang_ids"] = sorted(
            tokens[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in tokens
        )
        (converted / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _conversion_error(folder: Path, error: Exception) -> PartError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return PartError(
        f"the speech part {folder} cannot be converted",
        got=reason,
        do="Download the whole part again",
    )
