"""Validation of tokenizer and image processor configurations before transformers or tokenizers
loads them.

tokenizer.json          BPE, with steps around it that only replace fixed strings: a custom regular
                        expression may backtrack forever on a text that a user types later, which
                        no test run can rule out; those of language families are known
tokenizer_config.json   special tokens and switches; no other files, no code, no classes but those
                        of transformers that read tokenizer.json
processor configs       one view per image, at the tower's input size; numbers with which an image
                        can be preprocessed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import PartError
from ..families import FAMILIES
from ..families.pre_tokenizers import PATTERNS
from .registered import image_processors, processors

_ALLOWED_STEPS = {
    "normalizer": (
        "Sequence",
        "Prepend",
        "Replace",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "Strip",
        "StripAccents",
        "ByteLevel",
    ),
    "pre_tokenizer": (
        "Sequence",
        "ByteLevel",
        "Metaspace",
        "Split",
        "Digits",
        "Punctuation",
        "Whitespace",
        "WhitespaceSplit",
    ),
    "post_processor": (
        "Sequence",
        "TemplateProcessing",
        "ByteLevel",
        "BertProcessing",
        "RobertaProcessing",
    ),
    "decoder": (
        "Sequence",
        "Replace",
        "ByteFallback",
        "Fuse",
        "Strip",
        "ByteLevel",
        "Metaspace",
        "BPEDecoder",
    ),
}
MAX_PIECE_LENGTH = (
    16  # characters that a step puts in for another text: more of them would be a bomb
)
MAX_STEPS = 32
_FILE_KEYS = (
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "fast_tokenizer_files",
    "added_tokens_file",
    "gguf_file",
    "spm_file",
)
_TOKENIZER_CLASSES = (
    "TokenizersBackend",
    "PreTrainedTokenizer",
    "LlamaTokenizer",
    "GPT2Tokenizer",
    "CodeLlamaTokenizer",
    "CLIPTokenizer",
    "WhisperTokenizer",
)
#: xtuner's folders name LLaVA-NeXT's processor but use one view per image; a processor that tiles
#: also names another image processor class.
_PROCESSOR_CLASSES = (
    "LlavaProcessor",
    "LlavaNextProcessor",
    "AyaVisionProcessor",
    "WhisperProcessor",
)
#: Besides those of the registered encoders.
_IMAGE_PROCESSOR_CLASSES = (
    "LlavaImageProcessor",
    "WhisperFeatureExtractor",
    "ViTImageProcessor",
    "ViTFeatureExtractor",
)
_SUFFIXES = ("Fast", "Pil", "Backend")
MAX_PROCESSOR_SIDE = 4096
#: Audio parameters of a Whisper; mel filters are computed from them.
_AUDIO_BOUNDS = {
    "feature_size": (1, 512),
    "sampling_rate": (1000, 192_000),
    "hop_length": (16, 16_000),
    "chunk_length": (1, 60),
    "n_fft": (16, 8192),
}


def validate_tokenizer(path: Path, document: Mapping[str, Any]) -> None:
    """Raise PartError for a tokenizer.json that is not BPE with fixed steps."""
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _unexpected_value(
            path, "model.type", model.get("type") if isinstance(model, dict) else model, "BPE"
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if (
        not isinstance(vocab, dict)
        or not isinstance(merges, list)
        or not all(type(i) is int and 0 <= i < 1 << 24 for i in vocab.values())
    ):
        raise _unexpected_value(path, "model", "no vocab of ids or no merges", "both")
    if model.get("dropout"):
        raise _unexpected_value(
            path, "model.dropout", model["dropout"], "none: the same text must give the same ids"
        )
    for name in ("truncation", "padding"):
        told_length = document.get(name)
        if isinstance(told_length, dict) and isinstance(told_length.get("strategy"), dict):
            raise _unexpected_value(
                path, name, "a fixed length", "none: phisense pads and cuts itself"
            )
    added = document.get("added_tokens", [])
    if not isinstance(added, list) or not all(
        isinstance(one, dict) and one.get("content") and type(one.get("id")) is int for one in added
    ):
        raise _unexpected_value(path, "added_tokens", "an entry without content or id", "both")
    for part, known in _ALLOWED_STEPS.items():
        steps = list(_steps(document.get(part)))
        if len(steps) > MAX_STEPS:
            raise _unexpected_value(path, part, f"more than {MAX_STEPS} steps", "fewer")
        for step in steps:
            _check_step(path, part, step, known)


def _check_step(path: Path, part: str, step: Mapping[str, Any], known: tuple[str, ...]) -> None:
    kind = step.get("type")
    if kind not in known:
        raise _unexpected_value(path, f"{part}.type", kind, " or ".join(known))
    pattern = step.get("pattern")
    fixed = isinstance(pattern, dict) and pattern.get("String")
    if pattern is not None and not fixed and not _is_known_pattern(pattern):
        raise _unexpected_value(
            path,
            f"{part}.pattern",
            pattern,
            "a fixed text: a regular expression of a stranger's may take for ever",
        )
    for key in ("content", "prepend", "replacement"):
        value = step.get(key)
        if value is not None and (not isinstance(value, str) or len(value) > MAX_PIECE_LENGTH):
            raise _unexpected_value(
                path, f"{part}.{key}", value, f"a text of at most {MAX_PIECE_LENGTH} characters"
            )


def _is_known_pattern(pattern: Any) -> bool:
    """Whether it is a regular expression of a language family or of llama.cpp's list, to the
    letter.
    """
    own = (known for family in FAMILIES.values() for known in family.tokenizer_patterns)
    return any(pattern == {"Regex": known} for known in (*PATTERNS, *own))


def _steps(step: Any, depth: int = 8) -> Iterator[Mapping[str, Any]]:
    """A step, and its nested steps if it is a sequence."""
    if step is None:
        return
    if not isinstance(step, dict) or depth == 0:
        yield {}
        return
    yield step
    for name in ("normalizers", "pretokenizers", "processors", "decoders"):
        inner = step.get(name)
        for one in inner if isinstance(inner, list) else ():
            yield from _steps(one, depth - 1)


def validate_tokenizer_config(path: Path, document: Mapping[str, Any]) -> None:
    """Raise PartError for references to other files, a class that reads other files, or values of a
    wrong type.
    """
    for key in _FILE_KEYS:
        if document.get(key) and not (key == "tokenizer_file" and _is_dangling_path(document[key])):
            raise _unexpected_value(path, key, document[key], "tokenizer.json of the folder itself")
    classes = (name for family in FAMILIES.values() for name in family.tokenizer_classes)
    known = (*_TOKENIZER_CLASSES, *classes)
    _check_class(path, "tokenizer_class", document.get("tokenizer_class"), known)
    for key in ("padding_side", "truncation_side"):
        if document.get(key) not in (None, "left", "right"):
            raise _unexpected_value(path, key, document[key], "left or right")
    for key, value in document.items():
        if key.endswith("_token") and not isinstance(value, (str, dict, bool, type(None))):
            raise _unexpected_value(path, key, value, "a text")


def _is_dangling_path(told: Any) -> bool:
    """Whether the value is a path on its author's machine, which many published folders contain.

    It does not exist here; the folder's own file is read instead.
    """
    try:
        return isinstance(told, str) and Path(told).is_absolute() and not Path(told).exists()
    except (OSError, ValueError):  # a name that is too long or contains a null byte
        return False


def validate_processor(path: Path, document: Mapping[str, Any]) -> None:
    """Raise PartError for an unsupported class or numbers that no preprocessing can use."""
    known = (*_PROCESSOR_CLASSES, *processors())
    _check_class(path, "processor_class", document.get("processor_class"), known)
    known = (*image_processors(), *_IMAGE_PROCESSOR_CLASSES)
    inner = document.get("image_processor")
    for facts in (document, *([inner] if isinstance(inner, dict) else [])):
        kind = facts.get("image_processor_type", facts.get("feature_extractor_type"))
        _check_class(path, "image_processor_type", kind, known)
        for key in ("size", "crop_size", "pad_size"):
            _check_sides(path, key, facts.get(key))
        for key in ("image_mean", "image_std"):
            _check_channel_values(path, key, facts.get(key))
        resample = facts.get("resample")
        if resample is not None and (type(resample) is not int or not 0 <= resample <= 5):
            raise _unexpected_value(path, "resample", resample, "0 to 5, one of Pillow's filters")
        scale = facts.get("rescale_factor")
        if scale is not None and (
            isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 1
        ):
            raise _unexpected_value(path, "rescale_factor", scale, "more than 0 and at most 1")
        for key, value in facts.items():
            if key.startswith("do_") and not isinstance(value, (bool, type(None))):
                raise _unexpected_value(path, key, value, "true or false")
    for key, (least, most) in _AUDIO_BOUNDS.items():
        value = document.get(key)
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise _unexpected_value(path, key, value, f"{least:,} to {most:,}")
    for key in ("patch_size", "num_additional_image_tokens"):
        value = document.get(key)
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_PROCESSOR_SIDE):
            raise _unexpected_value(path, key, value, f"0 to {MAX_PROCESSOR_SIDE}")


def _check_sides(path: Path, key: str, value: Any) -> None:
    sides = (
        list(value.values()) if isinstance(value, dict) else [value] if value is not None else []
    )
    if not all(
        one is None or (type(one) is int and 0 < one <= MAX_PROCESSOR_SIDE) for one in sides
    ):
        raise _unexpected_value(path, key, value, f"sides of 1 to {MAX_PROCESSOR_SIDE}")


def _check_channel_values(path: Path, key: str, value: Any) -> None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return
    numbers = isinstance(value, list) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in value
    )
    if (
        not numbers
        or len(value) != 3
        or not all(abs(one) <= 1000 for one in value)
        or (key == "image_std" and not all(value))
    ):
        raise _unexpected_value(path, key, value, "three numbers, and none of image_std 0")


def _check_class(path: Path, key: str, value: Any, known: tuple[str, ...]) -> None:
    if value is None:
        return
    plain = value
    for suffix in _SUFFIXES if isinstance(value, str) else ():
        plain = plain.removesuffix(suffix) if plain not in known else plain
    if plain not in known:
        raise _unexpected_value(path, key, value, " or ".join(known))


def _unexpected_value(path: Path, key: str, got: object, wanted: str) -> PartError:
    return PartError(
        f"{path} says what no model here says", got=f"{key} {str(got)[:120]}", wanted=wanted
    )
