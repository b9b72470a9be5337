"""What a report says of the model itself: what its folder tells of its training, its merge and its parts. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import artefact


def facts_of(model: Path) -> dict[str, Any]:
    """The content of `facts.json` for a model folder, a folder of GGUF files, or any other: whatever of it is told there.

    `name`, `parts` and, where phisense trained it, what `training.json` says (model/history.py), and `merge`, the merge's report.
    """
    facts: dict[str, Any] = _json(model / "training.json") or {}
    if report := _json(model / "merge_report.json"):
        facts["merge"] = report
    if exported := _json(model / "export.json"):
        facts["export"] = exported
    if parts := parts_of(model):
        facts["parts"] = _named(parts, facts.get("recipe", {}))
    manifest = _json(model / artefact.MANIFEST) or {}
    if facts and "name" not in facts:
        facts["name"] = manifest.get("about", {}).get("recipe") or model.resolve().name
    return facts


def parts_of(model: Path) -> dict[str, Any]:
    """What `config.json` says of the parts, in words that a reader knows."""
    config = _json(model / "config.json") or {}
    text, seen = config.get("text_config") or {}, config.get("vision_config") or {}
    found = {
        "language": _told(text, kind="model_type", layers="num_hidden_layers", width="hidden_size", vocabulary="vocab_size"),
        "vision": _told(
            seen, kind="model_type", layers="num_hidden_layers", width="hidden_size", picture_pixels="image_size", patch_pixels="patch_size"
        ),
        "whole": _told(config, kind="model_type", dtype="dtype"),
    }
    return {part: about for part, about in found.items() if about}


def _told(config: dict[str, Any], **keys: str) -> dict[str, Any]:
    return {word: config[key] for word, key in keys.items() if config.get(key) is not None}


def _named(parts: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """With the names that the recipe has for them, and the parts that the configuration does not know."""
    named = {part: {**({"name": recipe[part]["part"]} if part in recipe else {}), **about} for part, about in parts.items()}
    if "projector" in recipe:
        named["projector"] = recipe["projector"]
    if recipe.get("speech"):
        named["speech"] = {"name": recipe["speech"]["part"]}
    return named


def _json(path: Path) -> Any:
    return artefact.read_json(path) if path.is_file() else None
