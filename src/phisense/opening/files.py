"""Which files of a model folder are read; each must be a regular file of the folder and match its
manifest.

    read        *.safetensors, *.gguf, the JSON and text files of a model, its tokenizer and its
                processor, by name
    ignored     everything else: README, licenses, code (*.py), and pickled weights beside
                safetensors (.bin, .pt, .h5, ...), which nothing here ever opens
    rejected    an adapter beside the weights and a distributed checkpoint, which transformers
                would load unasked; under a name that is read, links out of the folder and
                anything but a regular file

A snapshot in the hub's cache consists of links to the `blobs` folder beside it; these are accepted.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from .. import artifacts
from ..artifacts import MANIFEST, Manifest, is_inside
from ..errors import ArtifactError, PartError
from .documents import read_json_object

_logger = logging.getLogger(__name__)

_PHISENSE = ("manifest", "training", "merge_report", "import_report", "export")
_TRANSFORMERS = (
    *(
        "config",
        "generation_config",
        "preprocessor_config",
        "processor_config",
        "video_preprocessor_config",
        "audio_tokenizer_config",
    ),
    *(
        "tokenizer",
        "tokenizer_config",
        "special_tokens_map",
        "added_tokens",
        "vocab",
        "chat_template",
        "tekken",
        "normalizer",
    ),
)
#: `config.5.0.0.json` and the like are variants for one version of transformers that a config.json
#: may name.
_READ_FILES = re.compile(
    rf"(?:{'|'.join((*_PHISENSE, *_TRANSFORMERS))})\.json|(?:config|tokenizer)\..+\.json"
    r"|.+\.index\.json|.+\.(?:safetensors|gguf|jinja|model)|(?:merges|vocab)\.txt"
)
_ADAPTERS = re.compile(r"adapter_(?:config\.json|model\..+)")
_DISTRIBUTED = re.compile(r"shard-.+-model-.+\.safetensors")
_TEMPLATES = "additional_chat_templates"  # the only subfolder that readers look into
MAX_FILES = 10_000
MAX_TEXT_FILE_BYTES = 64_000_000  # bytes of *.txt, *.model and *.jinja
MIN_PROGRESS_BYTES = 1_000_000_000  # bytes from which verification reports progress

_digests: dict[tuple[int, ...], str] = {}


def read_files(folder: Path) -> list[Path]:
    """The files that any reader of the folder may open.

    Raises PartError for one that must not be opened.
    """
    found = list(_inside(folder, folder))
    if (folder / _TEMPLATES).is_dir():
        found += _inside(folder, folder / _TEMPLATES)
    return sorted(found)


def _inside(folder: Path, where: Path) -> Iterable[Path]:
    try:
        names = sorted(os.listdir(where))
    except OSError as error:
        raise PartError(f"{where} cannot be read", got=error.strerror) from error
    if len(names) > MAX_FILES:
        raise PartError(
            f"{where} is no model folder",
            got=f"{len(names):,} files",
            wanted=f"at most {MAX_FILES:,}",
        )
    for name in names:
        path = where / name
        if _ADAPTERS.fullmatch(name):
            raise PartError(
                f"{folder} holds an adapter beside its weights",
                got=name,
                wanted="a model folder, without an adapter that would be put on it unasked",
                do=(
                    "Move the adapter's files into a folder of their own; phisense import ADAPTER"
                    " --base FOLDER puts it on, measured"
                ),
            )
        if _DISTRIBUTED.fullmatch(name):
            raise PartError(
                f"{folder} holds a distributed checkpoint",
                got=name,
                wanted="safetensors",
                do="Take that file away",
            )
        if not _READ_FILES.fullmatch(name):
            continue
        check_regular_file(path, folder)
        yield path


def check_regular_file(path: Path, folder: Path) -> None:
    """Raise PartError unless `path` is a regular file inside `folder`."""
    home, blobs = folder.resolve(), _hub_cache_blobs(folder)
    try:
        kind = path.stat().st_mode
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # a broken link or a link loop
        raise PartError(
            f"{path} cannot be read", got="a link that leads nowhere", do="Copy the file itself"
        ) from error
    if not (place.is_relative_to(home) or (blobs is not None and place.parent == blobs)):
        raise PartError(
            f"{path} is a link out of its folder",
            got=str(place),
            wanted="a file of the folder",
            do="Copy the file itself into the folder",
        )
    if stat.S_ISDIR(kind) and path.suffix not in (".json", ".safetensors", ".gguf"):
        return
    if not stat.S_ISREG(kind):
        raise PartError(
            f"{path} is no regular file", got=_kind(kind), wanted="a file", do="Take it away"
        )
    if path.suffix in (".txt", ".model", ".jinja") and path.stat().st_size > MAX_TEXT_FILE_BYTES:
        raise PartError(
            f"{path} cannot be read",
            got=f"{path.stat().st_size:,} bytes",
            wanted=f"at most {MAX_TEXT_FILE_BYTES:,}",
        )


def _hub_cache_blobs(folder: Path) -> Path | None:
    """Target folder of a hub-cache snapshot's links; None outside such a snapshot.

    .../models--OWNER--NAME/snapshots/REVISION -> .../blobs
    """
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parents[1].name.startswith("models--"):
        return place.parents[1] / "blobs"
    return None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


# The manifest.


def verify_manifest(folder: Path, files: Iterable[Path]) -> Manifest | None:
    """Verify a folder against its manifest and return the manifest, or None if there is none.

    Every named file must have its sha256, and every file that is read must be named. Raises
    ArtifactError for any difference. Hashes are cached while a file is unchanged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = load_manifest(folder)
    named = manifest.files
    for inner in sorted({(folder / name).parent for name in named} - {folder}):
        if inner.is_dir():
            files = [*files, *read_files(inner)]
    total = sum(facts.bytes for name, facts in named.items() if not _compute_sha256(folder / name))
    if total >= MIN_PROGRESS_BYTES:
        _logger.info("%s: checking %s GB against the manifest", folder.name, f"{total / 1e9:,.1f}")
    for name, facts in named.items():
        file = folder / name
        if (
            not file.is_file()
            or file.stat().st_size != facts.bytes
            or cached_sha256(file) != facts.sha256
        ):
            what = (
                "other content than its manifest names"
                if file.is_file()
                else "no such file, which its manifest names"
            )
            raise ArtifactError(
                f"{file} is damaged",
                got=what,
                do=f"Make the {manifest.kind} again, or copy it whole",
            )
    strange = sorted(
        {one.relative_to(folder).as_posix() for one in files} - named.keys() - {MANIFEST}
    )
    if strange:
        raise ArtifactError(
            f"{folder} holds files that its manifest does not name",
            got=", ".join(strange[:3]),
            do="Take them away: a reader would open them as the model's",
        )
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Load and validate a manifest without reading the files that it names.

    `{"kind", "about", "files": {name: {"bytes", "sha256"}}}`; names are of files inside the folder.
    """
    path = folder / MANIFEST
    document = read_json_object(path)
    files = document.get("files")
    if not (
        isinstance(document.get("kind"), str)
        and isinstance(document.get("about"), dict)
        and isinstance(files, dict)
        and len(files) <= MAX_FILES
    ):
        raise ArtifactError(
            f"{path} is no manifest",
            got="other keys or types",
            wanted="kind, about and files",
            do="Make the folder again",
        )
    for name, facts in files.items():
        if (
            not is_inside(name)
            or not isinstance(facts, dict)
            or type(facts.get("bytes")) is not int
            or not isinstance(facts.get("sha256"), str)
        ):
            raise ArtifactError(
                f"{path} names something that is no file of the folder",
                got=name[:200],
                wanted="names inside it, with bytes and sha256",
            )
        if (
            not (folder / name).resolve().is_relative_to(folder.resolve())
            and (folder / name).exists()
        ):
            raise ArtifactError(
                f"{path} names a link out of its folder",
                got=name[:200],
                wanted="a file of the folder",
            )
    return Manifest.from_dict(document, str(path))


def cached_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, cached while the file is unchanged."""
    key = _file_state(path)
    if key not in _digests:
        _digests[key] = artifacts.file_sha256(path)
    return _digests[key]


def _compute_sha256(path: Path) -> bool:
    return path.is_file() and _file_state(path) in _digests


def _file_state(path: Path) -> tuple[int, ...]:
    """Device, inode, size and times: changes whenever the file is written."""
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def file_states(files: Iterable[Path]) -> tuple[tuple[int, ...], ...]:
    """States of several files, to detect any change."""
    return tuple(_file_state(path) for path in files)
