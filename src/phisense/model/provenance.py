"""Provenance of a run: a digest of each part's content, kept in the run folder.

parts.json    {part: {"sha256", "revision"}}, written when the run begins; of the vision part also
              "image_size", the side in pixels of the images that it reads

language     weights and configuration of the language part
tokenizer    tokenizer files of the language part
chat         token ids and labels of a fixed conversation
vision       weights and configuration of the vision part
processor    image processor files of the vision part
projector    weights and configuration of the model folder that the recipe starts from
speech       all of the speech part, if it is available locally

Only content counts, not paths or modification times. A Hub id is pinned to the commit that it
resolved to when it was first used (`pin_revisions`), and every later step loads that commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from transformers import AutoTokenizer

from .. import artifacts
from ..chat_tokenizer import prepare_tokenizer
from ..conversations import IMAGE, Message
from ..errors import ArtifactError, PartError
from ..opening.files import cached_sha256
from ..parts import load_auto, pin_revision, resolve_part, split_revision
from ..pipeline.records import Record, omitted
from ..prompt import Prompt
from ..recipe import Recipe
from ..vision.encoders.loading import stored_vision_config, vision_config

PARTS_FILE = "parts.json"

_WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json")
_TOKENIZER = (
    *(
        "tokenizer*.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
    ),
    *("chat_template.*", "additional_chat_templates/*"),
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_SPEECH = ("*.json", "*.safetensors", "*.txt", "model.bin")
_NAMES = {
    "language": "language part",
    "tokenizer": "tokenizer of the language part",
    "chat": "chat format",
    "vision": "vision part",
    "processor": "picture processor of the vision part",
    "projector": "projector to start from",
    "speech": "speech part",
}
_ROWS = 1 << 31  # above any vocabulary size: only the tokenizer is used, not the embedding matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDigest(Record):
    """SHA-256 of a part's content, in hexadecimal, and its commit if it is a Hub id; of the vision
    part the side of its images in pixels, if it was recorded.
    """

    sha256: str
    revision: str | None = None
    image_size: int | None = omitted()


PartDigests = dict[str, PartDigest]


def digest_parts(recipe: Recipe) -> PartDigests:
    """Current digest of each part, and its revision if it is a Hub id. Raises PartError for a
    missing part.
    """
    return _with_image_size(recipe, _digest_files(recipe)) | _digest_chat_format(recipe)


def _with_image_size(recipe: Recipe, parts: PartDigests) -> PartDigests:
    vision = recipe.vision
    side = vision_config(resolve_part(vision.part), vision.encoder, vision.size).image_size
    return parts | {"vision": replace(parts["vision"], image_size=side)}


def _digest_files(recipe: Recipe) -> PartDigests:
    language, vision = resolve_part(recipe.language.part), resolve_part(recipe.vision.part)
    found = {
        "language": _digest_folder(recipe.language.part, language, _WEIGHTS),
        "tokenizer": _digest_folder(recipe.language.part, language, _TOKENIZER),
        "vision": _digest_folder(recipe.vision.part, vision, _WEIGHTS),
        "processor": _digest_folder(recipe.vision.part, vision, _PROCESSOR),
    }
    if recipe.start is not None:
        found["projector"] = _digest_folder(recipe.start, resolve_part(recipe.start), _WEIGHTS)
    if recipe.speech is not None and (speech := _local_speech_part(recipe.speech.part)) is not None:
        found["speech"] = _digest_folder(recipe.speech.part, speech, _SPEECH)
    return found


def write_digests(run: Path, parts: PartDigests) -> None:
    """Write the digests of the parts into the run's folder."""
    artifacts.write_json(run / PARTS_FILE, {name: one.to_dict() for name, one in parts.items()})


def read_digests(run: Path) -> PartDigests | None:
    """Digests that the run began with; None if there is no record. Raises ArtifactError for a
    damaged record.
    """
    path = run / PARTS_FILE
    if not path.is_file():
        return None
    told = artifacts.read_json(path)
    if not isinstance(told, dict) or not all(
        isinstance(one, dict) and isinstance(one.get("sha256"), str) for one in told.values()
    ):
        raise ArtifactError(
            f"{path} is damaged", got="other content than a digest of each part", do="Train again"
        )
    return {name: PartDigest.from_dict(one, f"{path}: {name}") for name, one in told.items()}


def check_parts_unchanged(
    run: Path, recipe: Recipe, *, do: str = "Put it back as it was, or train again"
) -> PartDigests:
    """Digests of the current parts. Raises PartError naming each part that changed since the run
    began.

    Every step that continues from a run calls this first. A speech part that is not available
    locally is not checked.
    """
    wanted = read_digests(run)
    if wanted is None:
        return digest_parts(recipe)
    found = _digest_files(recipe)
    _compare(run, found, wanted, [name for name in _NAMES if name != "chat"], do)
    found = _with_image_size(recipe, found)
    _compare_image_size(run, recipe, found["vision"], wanted.get("vision"))
    chat = _digest_chat_format(
        recipe
    )  # only after the tokenizer was checked: another one may not even load
    _compare(run, chat, wanted, ["chat"], do)
    return found | chat


def _compare(
    run: Path, found: PartDigests, wanted: PartDigests, names: Sequence[str], do: str
) -> None:
    unknown = {"speech"} - (wanted.keys() & found.keys())
    other = [
        name
        for name in names
        if name not in unknown and _digest_in(found, name) != _digest_in(wanted, name)
    ]
    if other:
        raise PartError(
            f"{run} was trained with another"
            f" {' and another '.join(_NAMES[name] for name in other)}",
            got=", ".join(_describe(found, name) for name in other),
            wanted=", ".join(_describe(wanted, name) for name in other),
            do=do,
        )


def _compare_image_size(
    run: Path, recipe: Recipe, found: PartDigest, wanted: PartDigest | None
) -> None:
    """Raises PartError for images of another size. A run that recorded none was trained at that of
    the part's config.json.
    """
    if wanted is None:
        return
    vision = recipe.vision
    stored = stored_vision_config(resolve_part(vision.part), vision.encoder).image_size
    side = stored if wanted.image_size is None else wanted.image_size
    if found.image_size != side:
        raise PartError(
            f"{run} was trained on images of another size",
            got=f"{found.image_size} pixels a side",
            wanted=side,
            do=f"Set vision.size to {side}",
        )


def pin_revisions(
    recipe: Recipe, *, earlier: Recipe | None = None, encoder_only: bool = False
) -> Recipe:
    """The recipe with each Hub id pinned to a commit.

    In this order: the commit that the recipe names, the one that the `earlier` recipe of its run
    was pinned to, the one that its features were made with, or the current one. The speech part is
    pinned only if it is available locally; nothing is downloaded for it. Raises PartError for a
    part that is not found.
    """
    known = {
        split_revision(told)[0]: told
        for told in (_store_part(recipe), *_part_ids(earlier))
        if told and split_revision(told)[1]
    }

    def at(part: str, *, download: bool = True) -> str:
        return pin_revision(
            part if split_revision(part)[1] else known.get(part, part), download=download
        )

    changes: dict[str, Any] = {
        "vision": recipe.vision.model_copy(update={"part": at(recipe.vision.part)})
    }
    if recipe.start is not None:
        changes["start"] = at(recipe.start)
    if not encoder_only:
        changes["language"] = recipe.language.model_copy(update={"part": at(recipe.language.part)})
        if (
            recipe.speech is not None
            and _local_speech_part(known.get(recipe.speech.part, recipe.speech.part)) is not None
        ):
            changes["speech"] = recipe.speech.model_copy(
                update={"part": at(recipe.speech.part, download=False)}
            )
    return recipe.model_copy(update=changes)


def _part_ids(recipe: Recipe | None) -> Sequence[str]:
    if recipe is None:
        return ()
    return [
        part
        for part in (
            recipe.language.part,
            recipe.vision.part,
            recipe.speech and recipe.speech.part,
            recipe.start,
        )
        if part
    ]


def _store_part(recipe: Recipe) -> str | None:
    """Id and commit of the vision part that the recipe's features were made with, if it was a Hub
    id.
    """
    manifest = recipe.store / artifacts.MANIFEST
    try:
        told = artifacts.read_json(manifest) if manifest.is_file() else None
    except ArtifactError:  # of a damaged store; reading the store itself reports it
        return None
    about = told.get("about") if isinstance(told, dict) else None
    part = about.get("part") if isinstance(about, dict) else None
    return part if isinstance(part, str) else None


def _local_speech_part(part: str) -> Path | None:
    """Local folder of a speech part; a converted one has no safetensors, so `resolve_part` would
    not accept it.
    """
    if (Path(part).expanduser() / "model.bin").is_file():
        return Path(part).expanduser()
    try:
        return resolve_part(part, download=False)
    except PartError:
        return None


def _digest_folder(part: str, folder: Path, patterns: Sequence[str]) -> PartDigest:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {cached_sha256(path)}\n".encode())
    return PartDigest(sha256=digest.hexdigest(), revision=split_revision(part)[1])


def _digest_chat_format(recipe: Recipe) -> PartDigests:
    """Digest of the ids and labels of a conversation with a system message, an image of two tokens
    and two turns.
    """
    tokenizer: Any = load_auto(AutoTokenizer, resolve_part(recipe.language.part))
    prepare_tokenizer(tokenizer, _ROWS)
    row = Prompt(tokenizer).render_conversation(
        [
            Message("system", "Answer briefly."),
            Message("user", f"{IMAGE}\nWhat is it?"),
            Message("assistant", "A cat.\n\n Really."),
            Message("user", "And now?"),
            Message("assistant", "It is the same."),
        ],
        [2],
    )
    ids_and_labels = orjson.dumps([row.ids, row.labels])
    return {"chat": PartDigest(sha256=hashlib.sha256(ids_and_labels).hexdigest())}


def _digest_in(parts: PartDigests, name: str) -> str | None:
    return parts[name].sha256 if name in parts else None


def _describe(parts: PartDigests, name: str) -> str:
    if name not in parts:
        return "none"
    revision = parts[name].revision
    return f"{parts[name].sha256[:12]}{f' of revision {revision[:12]}' if revision else ''}"
