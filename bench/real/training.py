"""The steps from data to a trained run: conversations, features, training, and doctor's plan beside
the measured peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import phisense
from phisense.errors import UsageError

from . import easy_vqa, photographs, tiny
from .building import unpacked
from .walk import Figures, Finished, Walk

RECIPES = Path(__file__).parent


def recipe_of(walk: Walk, name: str, *more: str) -> phisense.Recipe:
    """The recipe of a data set, with the walk's changes and `more`."""
    parts = (
        tiny.PARTS
        if walk.tiny
        else {
            "language": walk.folder / "parts" / "smollm2",
            "vision": walk.folder / "parts" / "dinov2",
        }
    )
    changes = [f"{section}.part={folder}" for section, folder in parts.items()]
    changes += tiny.CHANGES if walk.tiny else ()
    if name == "photographs":
        changes.append(f"data.images={_photographs(walk) / 'images'}")
    return phisense.load_recipe(
        RECIPES / f"{name}.yaml", (*changes, *walk.changes, *more), root=walk.folder
    )


def _photographs(walk: Walk) -> Path:
    if walk.photographs is None:
        raise UsageError(
            "the photographs are not in any package", do="Name their folder: --photographs FOLDER"
        )
    return Path(walk.photographs)


def prepare_photographs(walk: Walk) -> Figures:
    """Write the photographs' conversations and questions as phisense reads them."""
    apart = tiny.APART if walk.tiny else photographs.APART
    data = photographs.prepare(
        _photographs(walk), walk.folder / "data" / "photographs", apart=apart
    )
    return _counts(asdict(data))


def prepare_easy_vqa(walk: Walk) -> Figures:
    """Write easy-VQA's conversations, questions and images as phisense reads them."""
    data = easy_vqa.prepare(unpacked(walk, "easy_vqa"), walk.folder / "data" / "easy_vqa")
    return _counts(asdict(data))


def _counts(data: Mapping[str, Any]) -> Figures:
    return {name: value for name, value in data.items() if isinstance(value, int)}


def encode(name: str, walk: Walk) -> Figures:
    """Encode the images, those of every question included: the probe reads them, training those of
    the questions that it asks.
    """
    recipe = recipe_of(walk, name)
    asked = [one.path for one in recipe.data.instruct] + list(recipe.data.held_out)
    encoded = phisense.encode_features(
        recipe_of(walk, name, f"data.instruct=[{', '.join(map(str, asked))}]"), on_event=print
    )
    return {"images": encoded.images, "tokens": encoded.tokens, "width": encoded.width}


def train(name: str, walk: Walk) -> Figures:
    """Train both stages; the step's own peak memory is what doctor's plan is held to."""
    recipe = recipe_of(walk, name)
    found = phisense.train(recipe, resume=recipe.run.exists(), on_event=print)
    last = found.stages["instruct"]
    return {
        "steps": {stage: one.steps for stage, one in found.stages.items()},
        "loss": last.last_loss,
        "tokens_per_second": last.tokens_per_second,
        "verdict": found.verdict.verdict,
    }


def plan_memory(name: str, walk: Walk) -> Figures:
    """Doctor's predicted peak of training, over the measured one."""
    from phisense.doctor import find_devices, make_plan

    recipe = recipe_of(walk, name)
    trained = Finished.before(walk, f"{name}.train")
    plan = make_plan(recipe, find_devices()[0])
    predicted = max(one.peak.total for one in plan.steps if one.peak.step in recipe.train.stages)
    return {
        "predicted": round(predicted),
        "measured": trained.peak_bytes,
        "ratio": predicted / trained.peak_bytes,
    }
