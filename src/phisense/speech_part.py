"""What a speech part is: a Whisper as transformers saves it, or one converted by CTranslate2, with
every file that transcribing needs.

    transformers   config.json of a Whisper, *.safetensors, tokenizer.json, preprocessor_config.json
    CTranslate2    model.bin, config.json, vocabulary.json or vocabulary.txt, tokenizer.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import PartError
from .opening import validate_folder, weight_files
from .opening.whisper import MODEL_BIN
from .parts import resolve_part

TOKENIZER_FILE, FRONT_END_FILE = "tokenizer.json", "preprocessor_config.json"
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")  # CTranslate2 reads the first that exists


@dataclass(frozen=True, slots=True)
class SpeechPart:
    """The local folder of a complete speech part; `converted` if it is in CTranslate2's format."""

    folder: Path
    converted: bool


def find_speech_part(part: Path | str, *, download: bool = True) -> SpeechPart:
    """Locate `part`, a folder or a Hub id (`parts.resolve_part`), and check that it is complete.

    The weights are not read. Raises PartError if it does not exist, lacks a file, or is no Whisper.
    """
    folder = Path(part).expanduser()
    if _is_converted(folder):
        _check_converted_files(folder)
        return SpeechPart(folder, converted=True)
    folder = resolve_part(str(part), download=download)
    kind = validate_folder(folder).config["model_type"]
    if kind != "whisper":
        wanted = "whisper, or a Whisper converted by CTranslate2"
        raise PartError(f"{folder} is no speech part", got=f"a model of type {kind}", wanted=wanted)
    for name in (TOKENIZER_FILE, FRONT_END_FILE):
        if not (folder / name).is_file():
            raise PartError(
                f"the speech part {folder} is incomplete",
                got=f"no {name}",
                do="Download the whole part again",
            )
    return SpeechPart(folder, converted=False)


def _is_converted(folder: Path) -> bool:
    """Whether a folder is in CTranslate2's format, complete or not: transformers' has safetensors,
    and no file named vocabulary.
    """
    if (folder / MODEL_BIN).is_file():
        return True
    return (
        folder.is_dir()
        and any((folder / name).is_file() for name in _VOCABULARIES)
        and not weight_files(folder)
    )


def _check_converted_files(folder: Path) -> None:
    # Without its tokenizer, faster-whisper would silently download another model's.
    for name in ("config.json", TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise _incomplete(
                folder, name, f"Copy {name} of the model it was converted from into it"
            )
    for names in ((MODEL_BIN,), _VOCABULARIES):
        if not any((folder / name).is_file() for name in names):
            raise _incomplete(folder, " or ".join(names), "Convert it again")


def _incomplete(folder: Path, lacking: str, do: str) -> PartError:
    return PartError(f"the converted Whisper {folder} is incomplete", got=f"no {lacking}", do=do)
