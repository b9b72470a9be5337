"""Validation of every model folder before a library loads it: our own models, third-party parts,
and exports.

files.py              which files are read; links and special files; the manifest, if there is one
documents.py          JSON files, with limits on size, depth and values
configs.py            config.json; rope_checks.py its RoPE scaling
tokenizer_checks.py   tokenizer and image processor configurations
tokenizer_steps.py    whether a class of transformers splits as tokenizer.json says
registered.py         what encoders and projectors say of the folders that hold them
headers.py            the headers of the safetensors files
shape_checks.py       the configuration against those headers, on the meta device, so that a
                      declared but absent model allocates nothing
gguf.py               a GGUF file, by its header; gguf_header.py reads that
whisper.py            consistency of a Whisper folder; the header of CTranslate2's model.bin
sandbox.py            what runs only in a subprocess with resource limits: third-party chat
                      templates, the loaders of llama.cpp and CTranslate2

A folder that passes may still hold another model than its name says: only a manifest proves the
content. It cannot hang or crash this process, exhaust its memory, make it read or fetch anything
outside the folder, or run code. A rejected folder raises PartError; a difference from the manifest
raises ArtifactError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..artifacts import Manifest
from ..errors import PartError
from .configs import overridden_keys, validate_config
from .documents import check_string_lengths, read_json_object
from .files import file_states, read_files, verify_manifest
from .headers import StoredTensor, read_headers, weight_files
from .tokenizer_checks import validate_processor, validate_tokenizer, validate_tokenizer_config

__all__ = ["ValidatedFolder", "check_servable", "validate_folder", "weight_files"]

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class ValidatedFolder:
    """A folder whose files may be loaded.

    `documents` are its JSON files by name; `manifest` is None if the folder has none.
    """

    folder: Path
    documents: dict[str, dict[str, object]]
    manifest: Manifest | None
    _headers: dict[str, StoredTensor] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, object]:
        """config.json without the keys that phisense sets itself."""
        if "config.json" not in self.documents:
            raise PartError(
                f"{self.folder} cannot be opened as config",
                got="no config.json",
                do="Copy the whole folder",
            )
        return validate_config(self.folder / "config.json", self.documents["config.json"])

    @property
    def headers(self) -> dict[str, StoredTensor]:
        """Every stored weight by name; read on first access."""
        if not self._headers:
            self._headers.update(read_headers(self.folder))
        return self._headers

    def check_tokenizer(self) -> None:
        """Raise PartError for a tokenizer that must not be loaded."""
        if "tokenizer.json" not in self.documents:
            raise PartError(
                f"{self.folder} cannot be opened as tokenizer",
                got="no tokenizer.json",
                do=(
                    "Save it once as tokenizer.json, with AutoTokenizer.from_pretrained and"
                    " save_pretrained of transformers"
                ),
            )
        check_string_lengths(self.folder / "tokenizer.json", self.documents["tokenizer.json"])
        validate_tokenizer(self.folder / "tokenizer.json", self.documents["tokenizer.json"])
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            validate_tokenizer_config(self.folder / name, self.documents.get(name, {}))

    def check_processor(self) -> None:
        """Raise PartError for an image processor that must not be loaded."""
        for name in PROCESSOR_FILES:
            validate_processor(self.folder / name, self.documents.get(name, {}))


def check_servable(folder: Path, template: str) -> None:
    """Check a folder that another program (vLLM, transformers) will load as it is.

    Such a program honors the configuration keys that phisense drops, and renders the chat template
    in the folder. Raises PartError for a key that only phisense ignores, or for a chat template
    other than `template`.
    """
    judged = validate_folder(folder)
    if "tokenizer.json" in judged.documents:
        judged.check_tokenizer()
    judged.check_processor()
    chosen = sorted(overridden_keys(judged.documents["config.json"]))
    templates = {
        name: facts["chat_template"]
        for name, facts in judged.documents.items()
        if facts.get("chat_template")
    }
    templates |= {
        path.name: path.read_text(errors="replace")
        for path in read_files(folder)
        if path.suffix == ".jinja"
    }
    odd = sorted(name for name, text in templates.items() if text != template)
    if chosen or odd:
        raise PartError(
            f"another program would open {folder} otherwise than phisense does",
            got=f"{chosen[0]} in config.json" if chosen else f"another chat template in {odd[0]}",
            wanted="what phisense merge or import writes",
            do="Take it in with phisense import",
        )


_validated: dict[Path, tuple[object, ValidatedFolder]] = {}


def validate_folder(folder: Path) -> ValidatedFolder:
    """Validate all files of a folder before a library loads any; cached until a file changes.

    Raises PartError for a folder that must not be loaded, ArtifactError for a difference from its
    manifest.
    """
    files = read_files(folder)
    known = _validated.get(folder)
    if known is not None and known[0] == _folder_state(files, known[1]):
        return known[1]
    # First, so that a damaged file is reported as damaged, not by what the damage looks like.
    manifest = verify_manifest(folder, files)
    documents = {
        path.name: read_json_object(path)
        for path in files
        if path.suffix == ".json" and path.parent == folder
    }
    made = ValidatedFolder(folder, documents, manifest)
    while len(_validated) >= 32:
        _validated.pop(next(iter(_validated)))
    _validated[folder] = (_folder_state(files, made), made)
    return made


def _folder_state(files: list[Path], folder: ValidatedFolder) -> object:
    """Cache key that changes with every file that is read or named in the manifest."""
    named = [
        folder.folder / name
        for name in (folder.manifest.files if folder.manifest is not None else ())
    ]
    every = sorted({*files, *(path for path in named if path.is_file())})
    return tuple(str(path) for path in every), file_states(every)
