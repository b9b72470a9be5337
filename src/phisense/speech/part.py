"""A Whisper as CTranslate2 wants it: converted once from the transformers folder, kept in the user's cache."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import uuid
from pathlib import Path
from typing import Any, BinaryIO

from ..artefact import read_json, read_manifest, staged
from ..errors import ArtefactError, PartError
from ..parts import cache_folder, fingerprint, resolve_part
from .languages import LANGUAGES

KIND = "converted speech part"
TOKENIZER, FRONT_END = "tokenizer.json", "preprocessor_config.json"


def runnable_part(part: Path | str, cache: Path | None = None) -> Path:
    """The CTranslate2 folder for `part`: itself if it is one, else its conversion in `cache`, made now if it is not there.

    `part` may be an id of the hub (`parts.resolve_part`). The conversion is found again by the content of the part, not by its
    name. Raises PartError if `part` is missing, or no Whisper; ArtefactError if the cache cannot be written.
    """
    if (Path(part).expanduser() / "model.bin").is_file():
        return _checked(Path(part).expanduser())
    folder = resolve_part(str(part))
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "whisper":
        wanted = "whisper, or a Whisper converted by CTranslate2"
        raise PartError(f"{folder} is no speech part", got=f"a model of type {kind}", wanted=wanted)
    for name in (TOKENIZER, FRONT_END):
        if not (folder / name).is_file():
            raise PartError(f"the speech part {folder} is incomplete", got=f"no {name}", do="Download the whole part again")
    converted = (cache if cache is not None else cache_folder()) / f"speech-{fingerprint(folder)[:32]}"
    if not _finished(converted):
        _convert(folder, converted)
    return converted


def depths(folder: Path) -> tuple[int, int]:
    """How many encoder and decoder layers a CTranslate2 folder has, by the names of its weights.

    model.bin: version, name of the spec, its revision, count; then for each weight its name, rank, dimensions, type, bytes, data;
    numbers are little-endian, a string has its length (2 bytes) before it and a zero in its end (ctranslate2/specs/model_spec.py).
    Raises PartError if it ends too soon.
    """
    layers: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    try:
        with (folder / "model.bin").open("rb") as file:
            file.seek(4, os.SEEK_CUR)
            _text(file)
            _, count = struct.unpack("<II", file.read(8))
            for _ in range(count):
                if layer := re.match(r"(encoder|decoder)/(layer_\d+)/", _text(file)):
                    layers[layer[1]].add(layer[2])
                file.seek(4 * file.read(1)[0] + 1, os.SEEK_CUR)
                file.seek(struct.unpack("<I", file.read(4))[0], os.SEEK_CUR)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PartError(
            f"the converted Whisper {folder} is damaged", got="a model.bin that ends too soon", do="Convert it again"
        ) from error
    return len(layers["encoder"]), len(layers["decoder"])


def _text(file: BinaryIO) -> str:
    return file.read(struct.unpack("<H", file.read(2))[0]).rstrip(b"\0").decode()


def _checked(folder: Path) -> Path:
    # Without its tokenizer, faster-whisper would silently download another model's.
    for name in ("config.json", TOKENIZER):
        if not (folder / name).is_file():
            remedy = f"Copy {name} of the model it was converted from into it"
            raise PartError(f"the converted Whisper {folder} is incomplete", got=f"no {name}", do=remedy)
    return folder


def _finished(converted: Path) -> bool:
    if not converted.exists():
        return False
    try:
        read_manifest(converted, kind=KIND)
    except ArtefactError:  # damaged on the disk: out of the way, and made again
        broken = _beside(converted)
        converted.rename(broken)
        shutil.rmtree(broken)
        return False
    return True


def _convert(folder: Path, converted: Path) -> None:
    mine = _beside(converted)
    with staged(mine, kind=KIND, about={"part": folder.name}) as aside:
        _run_converter(folder, aside)
    try:
        mine.rename(converted)
    except OSError:  # a folder with files in it is never replaced: another process was first, and its conversion is as good
        shutil.rmtree(mine)
        read_manifest(converted, kind=KIND, verify=False)


def _beside(converted: Path) -> Path:
    return converted.with_name(f"{converted.name}.{uuid.uuid4().hex[:8]}")


def _run_converter(folder: Path, out: Path) -> None:
    from ctranslate2.converters import TransformersConverter  # here, as it imports torch and transformers
    from safetensors import SafetensorError

    class Converter(TransformersConverter):
        def load_model(self, model_class: Any, path: str, **options: Any) -> Any:
            return super().load_model(model_class, path, use_safetensors=True, **options)  # never a pickle that lies beside them

    try:
        # Half precision on the disk, which is how Whisper is published; what it computes in is chosen when it is loaded.
        Converter(str(folder), copy_files=[TOKENIZER, FRONT_END]).convert(str(out), quantization="float16", force=True)
        _name_languages(out)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise _not_converted(folder, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's own complaint, which `staged` puts into words
            raise
        raise _not_converted(folder, error) from error


def _name_languages(converted: Path) -> None:
    """The converter takes the languages from generation_config.json, where many tuned Whispers have none; the tokenizer has them."""
    config = read_json(converted / "config.json")
    if not config.get("lang_ids"):
        tokens = {token["content"]: token["id"] for token in read_json(converted / TOKENIZER).get("added_tokens", [])}
        config["lang_ids"] = sorted(tokens[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in tokens)
        (converted / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _not_converted(folder: Path, error: Exception) -> PartError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return PartError(f"the speech part {folder} cannot be converted", got=reason, do="Download the whole part again")
