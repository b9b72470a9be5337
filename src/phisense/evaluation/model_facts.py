"""Facts about a model for the report, from what its folder records of its training, its merge and
its parts. Nothing here needs torch.

`ModelFacts` is the content of `facts.json`: the content of `training.json`
(model/training_record.py), `parts` from `config.json`, `merge` from `merge_report.json`, `export`
from `export.json`. It keeps the JSON as read, with typed access to the fields that the page and the
model card show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import artifacts
from ..conversations.common_answers import RECORD_KEY
from ..pipeline.json_fields import JsonObject, as_object, objects, optional, table
from ..pipeline.results import TrainingVerdict
from .training_facts import (
    ComputedIn,
    LossCurve,
    MergeFacts,
    StageFacts,
    TrainingFile,
)

FACTS = "facts.json"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`document` is the JSON as read, empty for a folder that records nothing; the fields that are
    shown are typed. `stages` is empty if the model was not trained by phisense, or merged before
    stages were recorded.
    """

    document: JsonObject = field(default_factory=dict)
    name: str | None = None
    seed: int | None = None
    recipe: JsonObject = field(default_factory=dict)
    parts: Mapping[str, object] = field(default_factory=dict)
    data: tuple[TrainingFile, ...] = ()
    held_out: tuple[str, ...] = ()
    hours: float = 0.0
    stages: Mapping[str, StageFacts] | None = None
    curves: Mapping[str, LossCurve] = field(default_factory=dict)
    trainable: int | None = None
    projector_change: float | None = None
    looks: TrainingVerdict | None = None
    arithmetic: ComputedIn | None = None
    merge: MergeFacts | None = None

    def __bool__(self) -> bool:
        """Whether anything is recorded."""
        return bool(self.document)

    def to_dict(self) -> dict[str, object]:
        """The content of `facts.json`: `document`, unchanged."""
        return dict(self.document)

    @classmethod
    def from_dict(cls, document: object, source: str = FACTS) -> ModelFacts:
        """Read `facts.json`; unknown keys are kept in `document`. Raises ArtifactError, naming
        `source`, for a missing field or a wrong type.
        """
        found = as_object(document, source)
        looks, arithmetic, merge, recipe = (
            optional(found, key, dict, source) for key in ("looks", "arithmetic", "merge", "recipe")
        )
        return cls(
            found,
            optional(found, "name", str, source),
            optional(recipe or {}, "seed", int, f"{source}: recipe"),
            recipe or {},
            optional(found, "parts", dict, source) or {},
            tuple(TrainingFile.from_dict(one, source) for one in objects(found, "data", source)),
            tuple(map(str, optional(found, "held_out", list, source) or ())),
            optional(found, "hours", float, source) or 0.0,
            None
            if "stages" not in found
            else {
                name: StageFacts.from_dict(one, f"{source}: stage {name}")
                for name, one in table(found, "stages", source).items()
            },
            {
                name: LossCurve.from_dict(one, f"{source}: curve {name}")
                for name, one in table(found, "curves", source).items()
            },
            optional(found, "trainable", int, source),
            optional(found, "projector_change", float, source),
            TrainingVerdict.from_dict(looks, f"{source}: looks") if looks else None,
            ComputedIn.from_dict(arithmetic, f"{source}: arithmetic") if arithmetic else None,
            MergeFacts.from_dict(merge, f"{source}: merge") if merge else None,
        )


def read_model_facts(model: Path) -> ModelFacts:
    """The facts of a model folder, a folder of GGUF files, or any other folder: whatever is
    recorded there. Raises ArtifactError for files in another format than phisense writes.
    """
    facts = dict(_json(model / "training.json"))
    facts.pop(RECORD_KEY, None)  # the evaluation has compared with them
    if report := _json(model / "merge_report.json"):
        facts["merge"] = report
    if exported := _json(model / "export.json"):
        facts["export"] = exported
    if parts := read_parts(model):
        facts["parts"] = _named(parts, optional(facts, "recipe", dict, str(model)) or {})
    if facts and "name" not in facts:
        manifest = _json(model / artifacts.MANIFEST)
        about = optional(manifest, "about", dict, str(model)) or {}
        facts["name"] = about.get("recipe") or model.resolve().name
    return ModelFacts.from_dict(facts, str(model))


def read_parts(model: Path) -> dict[str, dict[str, object]]:
    """The parts described by `config.json`, in terms that a reader knows."""
    config = _json(model / "config.json")
    text, seen = (
        optional(config, key, dict, str(model)) or {} for key in ("text_config", "vision_config")
    )
    found = {
        "language": _told(
            text,
            kind="model_type",
            layers="num_hidden_layers",
            width="hidden_size",
            vocabulary="vocab_size",
        ),
        "vision": _told(
            seen,
            kind="model_type",
            layers="num_hidden_layers",
            width="hidden_size",
            picture_pixels="image_size",
            patch_pixels="patch_size",
        ),
        "whole": _told(config, kind="model_type", dtype="dtype"),
    }
    return {part: about for part, about in found.items() if about}


def _told(config: JsonObject, **keys: str) -> dict[str, object]:
    return {word: config[key] for word, key in keys.items() if config.get(key) is not None}


def _named(parts: Mapping[str, JsonObject], recipe: JsonObject) -> dict[str, object]:
    """`parts` with the names that the recipe gives them, and the parts that `config.json` does not
    describe.
    """
    named: dict[str, object] = {
        part: {**_part_name(recipe, part), **about} for part, about in parts.items()
    }
    if "projector" in recipe:
        named["projector"] = recipe["projector"]
    if speech := _part_name(recipe, "speech"):
        named["speech"] = speech
    return named


def _part_name(recipe: JsonObject, section: str) -> dict[str, object]:
    found = recipe.get(section)
    return {"name": found["part"]} if isinstance(found, Mapping) and "part" in found else {}


def _json(path: Path) -> JsonObject:
    """The JSON object of a file; empty if there is no file."""
    return as_object(artifacts.read_json(path) or {}, str(path)) if path.is_file() else {}
